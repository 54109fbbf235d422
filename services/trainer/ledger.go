package trainer

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
)

// ledgerLine says which samples a committed step has read. The samples of token data are named
// folder/epoch/sample; those of a text by their offsets in tokens.
type ledgerLine struct {
	Step  uint64       `json:"step"`
	Slots []ledgerSlot `json:"slots"`
}

// ledgerSlot is a slot, with the replica whose loss was counted for it.
type ledgerSlot struct {
	Slot    int      `json:"slot"`
	Replica int      `json:"replica"`
	Samples []string `json:"samples"`
}

// stepFile is a file with lines of JSON, each for one committed step, in order.
type stepFile struct{ f *os.File }

// openSteps opens a file of the run, with the lines of steps up to the last checkpoint.
func (t *training) openSteps(name string) (*stepFile, error) {
	return openSteps(filepath.Join(t.run.dir, name), filepath.Join(t.run.dir, checkpoint.Name, t.store.Claim(), name),
		t.step())
}

// openSteps opens a file and leaves out the lines of steps after the given one, because a resumed run repeats these
// steps. A line that a crash has left incomplete is left out, too. The file is written anew in a folder that only
// the leader of the run has, and takes the place of the old one: a trainer that has been deposed still writes to
// that.
func openSteps(path, work string, upTo uint64) (out *stepFile, err error) {
	f, err := os.OpenFile(work, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	old, err := os.Open(path)
	if err == nil {
		var keep int64
		if keep, err = lengthUpTo(old, upTo); err == nil {
			_, err = io.Copy(f, io.NewSectionReader(old, 0, keep))
		}
		err = errors.Join(err, old.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	return &stepFile{f}, os.Rename(work, path)
}

// lengthUpTo returns the length of the lines of steps up to the given one.
func lengthUpTo(r io.Reader, upTo uint64) (int64, error) {
	var keep int64
	for lines := bufio.NewReaderSize(r, 1<<16); ; {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return keep, nil
		}
		if err != nil {
			return 0, err
		}
		var l struct {
			Step uint64 `json:"step"`
		}
		if json.Unmarshal(text, &l) != nil || l.Step > upTo {
			return keep, nil
		}
		keep += int64(len(text))
	}
}

// write appends a line.
func (s *stepFile) write(line any) error {
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	_, err = s.f.Write(append(text, '\n'))
	return err
}

// sync makes the lines durable.
func (s *stepFile) sync() error { return s.f.Sync() }

// Close closes the file.
func (s *stepFile) Close() error { return s.f.Close() }
