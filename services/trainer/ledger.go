package trainer

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
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

// openSteps opens a file and cuts off the lines of steps after the given one, because a resumed run repeats
// these steps. A line that a crash has left incomplete is cut off, too.
func openSteps(path string, upTo uint64) (*stepFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	keep, err := lengthUpTo(f, upTo)
	if err == nil {
		err = f.Truncate(keep)
	}
	if err == nil {
		_, err = f.Seek(keep, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &stepFile{f}, nil
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
