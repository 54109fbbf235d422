package store

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// staleAfter is how long a partial file that nobody continues is kept.
const staleAfter = 14 * 24 * time.Hour

// usage returns the bytes of all files, whole and partial.
func (s *Store) usage() (int64, error) {
	total := int64(0)
	entries, err := fs.ReadDir(s.root.FS(), "files")
	if err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "add up the store of models")
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil {
			total += info.Size()
		} else if !errors.Is(err, fs.ErrNotExist) { // it has just been removed
			return 0, fault.Wrap(fault.Unavailable, err, "add up the store of models")
		}
	}
	partial, err := s.partials()
	for _, p := range partial {
		total += p.bytes
	}
	return total, err
}

// Usage returns the bytes of all files, whole and partial.
func (s *Store) Usage() (int64, error) { return s.usage() }

// Reserve makes room for a number of bytes. It removes unfinished fetches that nobody continues and then the models
// that were used least recently. Those in use stay, and so does the model of the name keep. The error is Exhausted if
// there is not enough room then, and nothing is removed in this case.
func (s *Store) Reserve(ctx context.Context, bytes int64, keep string) error {
	if s.limit <= 0 {
		return nil
	}
	return s.locked(ctx, func() error { return s.makeRoom(bytes, keep) })
}

// candidate is something that can be removed.
type candidate struct {
	frees  int64
	stale  bool // a fetch that nobody continues
	used   time.Time
	remove func() error
}

// makeRoom is Reserve for a caller that holds the lock.
func (s *Store) makeRoom(bytes int64, keep string) error {
	used, err := s.usage()
	if err != nil {
		return err
	}
	if s.limit <= 0 || used+bytes <= s.limit {
		return nil
	}
	candidates, err := s.candidates(keep)
	if err != nil {
		return err
	}
	free := s.limit - used
	n := 0
	for ; n < len(candidates) && free < bytes; n++ {
		free += candidates[n].frees
	}
	if free < bytes {
		return fault.New(fault.Exhausted, "store %d bytes: the store is limited to %d, of which %d are in use or were "+
			"asked for: remove models (lamina rm) or raise the limit", bytes, s.limit, s.limit-free)
	}
	for _, c := range candidates[:n] {
		if err := c.remove(); err != nil {
			return err
		}
	}
	return s.sweep()
}

// candidates lists what may be removed, in order. Files that several models share count for the last one of them.
func (s *Store) candidates(keep string) ([]candidate, error) {
	models, err := s.Models()
	if err != nil && fault.CodeOf(err) != fault.DataLoss {
		return nil, err
	}
	slices.SortFunc(models, func(a, b Model) int { return a.LastUsed.Compare(b.LastUsed) })
	shared := map[Sum]int{}
	for _, m := range models {
		for sum := range distinct(m.Files) {
			shared[sum]++
		}
	}
	var out []candidate
	for _, m := range models {
		if m.InUse || m.Name == keep {
			continue
		}
		c := candidate{used: m.LastUsed, remove: func() error {
			err := s.drop(&m.Manifest)
			var used *InUseError
			if errors.As(err, &used) { // since then
				return fault.Wrap(fault.Exhausted, err, "make room in the store")
			}
			return err
		}}
		for sum, size := range distinct(m.Files) {
			if shared[sum]--; shared[sum] == 0 {
				c.frees += size
			}
		}
		out = append(out, c)
	}
	partial, err := s.partials()
	if err != nil {
		return nil, err
	}
	for _, p := range partial {
		if !p.locked {
			out = append(out, candidate{frees: p.bytes, stale: true, used: p.changed,
				remove: func() error { return s.removePartial(p.key) }})
		}
	}
	slices.SortStableFunc(out, func(a, b candidate) int {
		if a.stale != b.stale {
			if a.stale {
				return -1
			}
			return 1
		}
		return cmp.Or(a.used.Compare(b.used))
	})
	return out, nil
}

// distinct returns the files of a model by their digests.
func distinct(files []File) map[Sum]int64 {
	out := map[Sum]int64{}
	for _, f := range files {
		out[f.SHA256] = f.Size
	}
	return out
}

// partialInfo describes a partial file.
type partialInfo struct {
	key     string
	bytes   int64
	changed time.Time
	locked  bool
}

func (s *Store) partials() ([]partialInfo, error) {
	entries, err := fs.ReadDir(s.root.FS(), "partial")
	if err != nil {
		return nil, err
	}
	var out []partialInfo
	for _, e := range entries {
		p := partialInfo{key: e.Name()}
		if stat, err := s.root.Stat(filepath.Join("partial", p.key, logName)); err == nil {
			p.changed = stat.ModTime()
			p.bytes = s.loggedBytes(p.key, stat.Size())
		}
		locks, err := s.lockPartial(p.key)
		if err != nil {
			return nil, err
		}
		p.locked = len(locks) == 0
		for _, h := range locks {
			_ = h.release()
		}
		out = append(out, p)
	}
	return out, nil
}

// lockPartial locks a partial file against fetches and uses. It returns nil if there are any.
func (s *Store) lockPartial(key string) ([]*held, error) {
	fetch, err := s.tryLock("locks/"+key, false)
	if fetch == nil || err != nil {
		return nil, err
	}
	use, err := s.tryLock("uses/"+key, false)
	if use == nil || err != nil {
		return nil, errors.Join(err, fetch.release())
	}
	return []*held{fetch, use}, nil
}

// removePartial removes a partial file unless somebody is fetching or using it.
func (s *Store) removePartial(key string) error {
	locks, err := s.lockPartial(key)
	if len(locks) == 0 {
		return err
	}
	err = errors.Join(s.root.RemoveAll("partial/"+key), s.root.Remove("locks/"+key), s.root.Remove("uses/"+key))
	for _, h := range locks {
		err = errors.Join(err, h.release())
	}
	return err
}

// Sweep removes what no model has: files, folders of models that were replaced, and old unfinished fetches.
func (s *Store) Sweep(ctx context.Context) error { return s.locked(ctx, s.sweep) }

// sweep is Sweep for a caller that holds the lock.
func (s *Store) sweep() error {
	models, err := s.Models()
	if err != nil { // the files of a damaged manifest are not known, so nothing is removed
		if fault.CodeOf(err) == fault.DataLoss {
			return nil
		}
		return err
	}
	wanted := map[string]bool{} // digests, and keys of models
	for _, m := range models {
		wanted[m.key()] = true
		for _, f := range m.Files {
			wanted[f.SHA256.String()] = true
		}
	}
	if err := s.sweepTrees(wanted); err != nil {
		return err
	}
	for _, dir := range []string{"files", "sums"} {
		err := s.each(dir, func(name string) error {
			if wanted[name] {
				return nil
			}
			// A fetch that has found the file keeps it until it has committed its model.
			lock := "locks/sha256-" + name
			h, err := s.tryLock(lock, false)
			if h == nil || err != nil {
				return err
			}
			return errors.Join(s.root.Remove(dir+"/"+name), s.root.Remove(lock), h.release())
		})
		if err != nil {
			return err
		}
	}
	err = s.each("origins", func(name string) error {
		if text, err := s.read("origins/"+name, maxOrigin); err == nil && wanted[string(text)] {
			return nil
		}
		return s.root.Remove("origins/" + name)
	})
	if err != nil {
		return err
	}
	partial, err := s.partials()
	if err != nil {
		return err
	}
	for _, p := range partial {
		if !p.locked && time.Since(p.changed) > staleAfter {
			if err := s.removePartial(p.key); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepTrees removes the folders of models that were replaced, unless they are in use.
func (s *Store) sweepTrees(wanted map[string]bool) error {
	return s.each("trees", func(key string) error {
		if wanted[key] {
			return nil
		}
		if strings.HasPrefix(key, treeTemp) { // of a commit that was killed: this process holds the lock
			return s.root.RemoveAll("trees/" + key)
		}
		h, err := s.tryLock("uses/"+key, false)
		if h == nil || err != nil {
			return err
		}
		return errors.Join(s.root.RemoveAll("trees/"+key), s.root.Remove("uses/"+key), h.release())
	})
}

// each calls do with each name of a folder.
func (s *Store) each(dir string, do func(name string) error) error {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := do(e.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
