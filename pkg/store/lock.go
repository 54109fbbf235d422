package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const lockTick = 25 * time.Millisecond // between two tries

// held is a lock that this process holds.
type held struct{ f *flock.Flock }

func (h *held) release() error { return h.f.Close() }

// lockFile waits for a lock. The file of the lock may be removed by whoever holds it, so the lock counts only if its
// path still names the same file afterwards.
func (s *Store) lockFile(ctx context.Context, name string, shared bool) (*held, error) {
	for {
		h, err := s.tryLock(name, shared)
		if h != nil || err != nil {
			return h, err
		}
		timer := time.NewTimer(lockTick)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "wait for %s, which another process holds", name)
		}
	}
}

// tryLock tries once. It returns nil if another one holds the lock.
func (s *Store) tryLock(name string, shared bool) (*held, error) {
	f := flock.New(filepath.Join(s.dir, name), flock.SetPermissions(0o644))
	try := f.TryLock
	if shared {
		try = f.TryRLock
	}
	ok, err := try()
	if err != nil || !ok {
		_ = f.Close()
		return nil, err
	}
	mine, err := f.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(filepath.Join(s.dir, name)); err == nil && os.SameFile(mine, now) {
			return &held{f}, nil
		}
	}
	_ = f.Close()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return nil, err
}

// locked calls body while this process alone may change the models.
func (s *Store) locked(ctx context.Context, body func() error) error {
	h, err := s.lockFile(ctx, "lock", false)
	if err != nil {
		return err
	}
	return errors.Join(body(), h.release())
}
