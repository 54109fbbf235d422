package checkpoint

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Store is a folder of checkpoints.
type Store struct {
	fs    FS
	dir   string
	claim string // under which it writes; empty if nobody else can write
}

// Name is the folder of checkpoints in the folder of a run.
const Name = "checkpoints"

// New returns the checkpoints in a folder of a file system. The folder need not exist.
func New(files FS, dir string) *Store { return &Store{fs: files, dir: path.Clean(dir)} }

const stepPrefix = "step-"

func (s *Store) path(step uint64) string {
	return path.Join(s.dir, fmt.Sprintf("%s%08d", stepPrefix, step))
}

// Steps lists the steps that have a folder, whole or not, in ascending order.
func (s *Store) Steps() ([]uint64, error) {
	names, err := s.fs.List(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []uint64
	for _, name := range names {
		text, ok := strings.CutPrefix(name, stepPrefix)
		step, perr := strconv.ParseUint(text, 10, 64)
		if ok && perr == nil && path.Join(s.dir, name) == s.path(step) {
			out = append(out, step)
		}
	}
	slices.Sort(out)
	return out, err
}

// Begin makes the folder of a checkpoint and removes what is in it.
func (s *Store) Begin(step uint64) error {
	if s.claim != "" {
		err := s.removeAll(s.work(step))
		if err == nil {
			err = s.fs.Mkdir(s.work(step))
		}
		if err != nil {
			return fault.Wrap(codeOf(err), err, "make the folder of checkpoint %d", step)
		}
		return nil
	}
	if err := s.Remove(step); err != nil {
		return err
	}
	if err := s.fs.MakeDir(s.path(step)); err != nil {
		return fault.Wrap(codeOf(err), err, "make the folder of checkpoint %d", step)
	}
	return nil
}

// Discard removes what has been written of a checkpoint that is not committed.
func (s *Store) Discard(step uint64) error {
	if s.claim == "" {
		return s.Remove(step)
	}
	return s.removeAll(s.work(step))
}

// Remove removes a checkpoint, whole or not. The manifest is removed first, and durably, so that at no time
// does it describe files that are gone.
func (s *Store) Remove(step uint64) error {
	dir := s.path(step)
	names, err := s.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.claim != "" {
		return s.retire(path.Base(dir))
	}
	if slices.Contains(names, manifestName) {
		if err := s.fs.Remove(path.Join(dir, manifestName)); err != nil {
			return err
		}
		if err := s.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	for _, name := range names {
		if name != manifestName {
			if err := s.fs.Remove(path.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return s.fs.Remove(dir)
}

// Commit completes a checkpoint, whose files are written. From its return on the checkpoint is durable.
func (s *Store) Commit(m Manifest) (*Checkpoint, error) {
	slices.SortFunc(m.Files, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	var err error
	if m.Weights, err = m.WeightsDigest(); err != nil {
		return nil, err
	}
	text, err := m.Encode()
	if err != nil {
		return nil, err
	}
	dir := s.work(m.Step)
	c := s.checkpoint(&m, text)
	c.dir = dir
	if err := c.checkSizes(); err != nil {
		return nil, err
	}
	if err := s.fs.SyncDir(dir); err != nil {
		return nil, err
	}
	p, err := s.create(dir, manifestName)
	if err != nil {
		return nil, err
	}
	if _, err := p.Write(text); err != nil {
		return nil, errors.Join(err, p.Abort())
	}
	if _, _, err := p.Commit(); err != nil {
		return nil, err
	}
	if s.claim != "" {
		if err := s.fs.SyncDir(dir); err != nil {
			return nil, err
		}
		if err := s.publish(m.Step); err != nil {
			return nil, err
		}
	}
	dir = s.path(m.Step)
	c.dir = dir
	for at := dir; ; at = path.Dir(at) {
		if err := s.fs.SyncDir(at); err != nil {
			return nil, err
		}
		if at == "." || at == "/" {
			return c, nil
		}
	}
}

// publish moves the folder of a checkpoint out of the claim, in place of one of the same step.
func (s *Store) publish(step uint64) error {
	if err := s.Remove(step); err != nil {
		return fault.Wrap(codeOf(err), err, "replace checkpoint %d", step)
	}
	if err := s.fs.Rename(s.work(step), s.path(step)); err != nil {
		return fault.Wrap(codeOf(err), err, "commit checkpoint %d", step)
	}
	return nil
}

// Open reads the manifest of a checkpoint and checks the sizes of its files. It reads no tensor.
func (s *Store) Open(step uint64) (*Checkpoint, error) {
	text, err := s.readManifest(step)
	if err != nil {
		return nil, err
	}
	m, err := ParseManifest(text)
	if err != nil {
		return nil, err
	}
	if m.Step != step {
		return nil, damage(manifestName, "", 0, "step %d is not the folder's, %d", m.Step, step)
	}
	c := s.checkpoint(m, text)
	return c, c.checkSizes()
}

func (s *Store) readManifest(step uint64) ([]byte, error) {
	f, err := s.fs.Open(path.Join(s.path(step), manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damage(manifestName, "", 0, "it is missing: the checkpoint was not completed")
	}
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err == nil && size > maxManifest {
		err = damage(manifestName, "", 0, "%d bytes are more than %d", size, maxManifest)
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.NewSectionReader(f, 0, size))
	}
	return text, errors.Join(err, f.Close())
}

// Newest returns the newest checkpoint that Open accepts, among those of at most the given step, or nil
// if there is none. It calls skip with each one that is newer but damaged. A checkpoint of another run, or
// of an older version of Lamina, is an error.
func (s *Store) Newest(run string, upTo uint64, skip func(step uint64, err error)) (*Checkpoint, error) {
	steps, err := s.Steps()
	if err != nil {
		return nil, err
	}
	for _, step := range slices.Backward(steps) {
		if step > upTo {
			continue
		}
		c, err := s.Open(step)
		if err == nil && c.Run != run {
			return nil, fault.New(fault.FailedPrecondition, "resume from checkpoint %d: it belongs to another manifest",
				step)
		}
		if err == nil {
			return c, nil
		}
		if code := fault.CodeOf(err); code != fault.DataLoss && code != fault.NotFound {
			return nil, fault.Wrap(code, err, "open checkpoint %d", step)
		}
		skip(step, err)
	}
	return nil, nil
}

// Keep says which checkpoints Rotate keeps.
type Keep struct {
	Last int                    // the newest ones
	Best int                    // those with the lowest validation losses
	Not  func(step uint64) bool // checkpoints known to be damaged; nil for none
}

// Rotate removes the checkpoints that need not be kept, and what is left of those that were not
// completed. It must not run while another checkpoint is being written.
func (s *Store) Rotate(k Keep) error {
	steps, err := s.Steps()
	if err != nil {
		return err
	}
	var whole []*Checkpoint
	for _, step := range slices.Backward(steps) {
		c, err := s.Open(step)
		switch {
		case err == nil && (k.Not == nil || !k.Not(step)):
			whole = append(whole, c)
		case err != nil && fault.CodeOf(err) != fault.DataLoss && fault.CodeOf(err) != fault.NotFound:
			return err // this may pass
		}
	}
	keep := map[uint64]bool{}
	for i, c := range whole {
		keep[c.Step] = i < k.Last
	}
	measured := slices.DeleteFunc(slices.Clone(whole), func(c *Checkpoint) bool { return c.Validation == nil })
	slices.SortStableFunc(measured, func(a, b *Checkpoint) int { return cmp.Compare(*a.Validation, *b.Validation) })
	for _, c := range measured[:min(k.Best, len(measured))] {
		keep[c.Step] = true
	}
	for _, step := range steps {
		if !keep[step] {
			if err := s.Remove(step); err != nil {
				return err
			}
		}
	}
	return nil
}
