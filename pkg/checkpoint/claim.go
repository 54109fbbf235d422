package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// A claim is the right to write to a folder of checkpoints. It is a folder, .claim-N, in which its holder prepares
// whatever it writes. A checkpoint is committed by moving its folder out of the claim, and removed by moving it into
// the claim. Whoever takes the next claim moves the claims before it away. From then on every such move of their
// holders fails, because its source or its target has gone. So two holders never both commit, whatever either of
// them believes, and however long it was suspended between two operations.
const claimPrefix = ".claim-"

// claimTries bounds the attempts to take a claim when others take some at the same time.
const claimTries = 100

// Take takes the next claim on the folder and ends all claims before it. The returned store writes under it.
func (s *Store) Take() (*Store, error) {
	if err := s.fs.MakeDir(s.dir); err != nil {
		return nil, fault.Wrap(codeOf(err), err, "make the folder of checkpoints")
	}
	for range claimTries {
		names, err := s.fs.List(s.dir)
		if err != nil {
			return nil, fault.Wrap(codeOf(err), err, "claim the folder of checkpoints")
		}
		var before []uint64
		last := uint64(0)
		for _, name := range names {
			if n, ok := claimNumber(name); ok {
				before, last = append(before, n), max(last, n)
			}
		}
		out := &Store{fs: s.fs, dir: s.dir, claim: claimName(last + 1)}
		err = s.fs.Mkdir(path.Join(s.dir, out.claim))
		if errors.Is(err, fs.ErrExist) {
			continue // somebody else was faster: the later one counts
		}
		if err != nil {
			return nil, fault.Wrap(codeOf(err), err, "claim the folder of checkpoints")
		}
		for _, n := range before {
			if err := out.retire(claimName(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, fault.New(fault.Unavailable, "claim the folder of checkpoints: %d others were faster", claimTries)
}

func claimName(n uint64) string { return claimPrefix + strconv.FormatUint(n, 10) }

func claimNumber(name string) (uint64, bool) {
	text, ok := strings.CutPrefix(name, claimPrefix)
	n, err := strconv.ParseUint(text, 10, 63)
	return n, ok && err == nil && claimName(n) == name
}

// IsClaim reports whether a name is that of a claim.
func IsClaim(name string) bool {
	_, ok := claimNumber(name)
	return ok
}

// Claim returns the name of the store's claim, for Claimed; empty if it has none.
func (s *Store) Claim() string { return s.claim }

// Term returns the number of the store's claim, which grows with each holder; 0 if it has none.
func (s *Store) Term() uint64 {
	n, _ := claimNumber(s.claim)
	return n
}

// Claimed returns a store that writes under a claim that another process has taken.
func (s *Store) Claimed(claim string) *Store { return &Store{fs: s.fs, dir: s.dir, claim: claim} }

// Held returns an error if the store's claim has ended: Aborted if somebody else has taken a later one.
func (s *Store) Held() error {
	if s.claim == "" {
		return nil
	}
	_, err := s.fs.List(path.Join(s.dir, s.claim))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Aborted, "write checkpoints: %s has been superseded by another trainer's claim", s.claim)
	}
	return err
}

// work is the folder in which a checkpoint is written.
func (s *Store) work(step uint64) string {
	if s.claim == "" {
		return s.path(step)
	}
	return path.Join(s.dir, s.claim, path.Base(s.path(step)))
}

// retire moves an entry of the folder into the claim and removes it there. What cannot be removed stays until the
// claim ends.
func (s *Store) retire(name string) error {
	to := ""
	for i := range claimTries {
		to = path.Join(s.dir, s.claim, fmt.Sprintf("old-%d-%s", i, strings.TrimPrefix(name, ".")))
		if _, err := s.fs.List(to); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err := s.fs.Rename(path.Join(s.dir, name), to); err != nil {
		return err
	}
	// The files must not be gone while the name may still come back after a loss of power.
	for _, dir := range []string{path.Join(s.dir, s.claim), s.dir} {
		if err := s.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	return s.removeAll(to)
}

// removeAll removes a folder with all that is in it.
func (s *Store) removeAll(name string) error {
	names, err := s.fs.List(name)
	if err != nil { // a file, or gone
		if err := s.fs.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	for _, n := range names {
		if err := s.removeAll(path.Join(name, n)); err != nil {
			return err
		}
	}
	return s.fs.Remove(name)
}
