package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Options configure a store.
type Options struct {
	// Limit bounds the bytes of files; 0 means no limit.
	Limit int64
}

// Store is a folder of models.
type Store struct {
	dir   string
	root  *os.Root
	limit int64
}

// Open opens the store in a folder, and makes it if it does not exist.
func Open(dir string, o Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, part := range []string{"models", "trees", "files", "sums", "partial", "origins", "uses", "locks"} {
		if err := os.MkdirAll(filepath.Join(dir, part), 0o755); err != nil {
			return nil, fault.Wrap(fault.FailedPrecondition, err, "open the store of models")
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.Wrap(fault.FailedPrecondition, err, "open the store of models")
	}
	return &Store{dir: dir, root: root, limit: o.Limit}, nil
}

// Close closes the store. Leases and partial files stay valid.
func (s *Store) Close() error { return s.root.Close() }

// Model is a model of the store.
type Model struct {
	Manifest
	Path     string // its folder
	LastUsed time.Time
	InUse    bool
}

// Models lists the models, sorted by name. Models whose manifests are damaged are left out, and the error names them.
func (s *Store) Models() ([]Model, error) {
	entries, err := fs.ReadDir(s.root.FS(), "models")
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "list models")
	}
	var out []Model
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || CheckName(name) != nil {
			continue
		}
		m, err := s.manifest(name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // it has just been removed
		case err != nil:
			errs = append(errs, err)
		default:
			out = append(out, s.describe(m))
		}
	}
	slices.SortFunc(out, func(a, b Model) int { return cmp.Compare(a.Name, b.Name) })
	return out, errors.Join(errs...)
}

// describe adds what the file system knows of a model.
func (s *Store) describe(m *Manifest) Model {
	out := Model{Manifest: *m, Path: s.tree(m)}
	use := useOf(m)
	if stat, err := s.root.Stat(use); err == nil {
		out.LastUsed = stat.ModTime()
	}
	h, err := s.tryLock(use, false)
	if h != nil {
		_ = h.release()
	}
	out.InUse = h == nil && err == nil
	return out
}

func (s *Store) tree(m *Manifest) string { return s.path("trees/" + m.key() + "/" + m.Name) }

func (s *Store) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

func useOf(m *Manifest) string { return "uses/" + m.key() }

// Model returns a model by its name. The error is NotFound if there is none.
func (s *Store) Model(name string) (Model, error) {
	m, err := s.manifest(name)
	if err != nil {
		return Model{}, err
	}
	return s.describe(m), nil
}

// manifest reads the manifest of a name.
func (s *Store) manifest(name string) (*Manifest, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	text, err := s.read("models/"+name+".json", MaxManifest)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.Wrap(fault.NotFound, err,
				"find model %s in the store: lamina models lists those that are there", name)
		}
		return nil, fault.Wrap(fault.CodeOf(err), err, "find model %s in the store", name)
	}
	m, err := ParseManifest(text)
	if err == nil && m.Name != name {
		err = refuse("name", "want that of its file, %s, got %s", name, m.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("find model %s in the store: %w", name, err)
	}
	return m, nil
}

// read reads a file of at most a number of bytes.
func (s *Store) read(name string, most int64) ([]byte, error) {
	f, err := s.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fault.New(fault.DataLoss, "read %s: want at most %d bytes", name, most)
	}
	return text, err
}

// write replaces a file: it exists with its old or its new content, whatever happens.
func (s *Store) write(name string, data []byte) (err error) {
	temp := name + ".tmp" // the caller holds the lock
	f, err := s.root.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := s.root.Rename(temp, name); err != nil {
		return err
	}
	return s.syncDir(filepath.Dir(name))
}

// syncDir makes the names of a folder durable.
func (s *Store) syncDir(name string) error {
	d, err := s.root.Open(name)
	if err != nil {
		return err
	}
	_ = d.Sync() // some systems cannot sync a folder
	return d.Close()
}

// Lease keeps a model in the store while it is used.
type Lease struct {
	Model
	lock *held
	drop func() error // what else ends with the use; nil for nothing
}

// Close ends the use.
func (l *Lease) Close() error {
	var err error
	if l.drop != nil {
		err = l.drop()
	}
	return errors.Join(err, l.lock.release())
}

// Acquire returns a model by its name and keeps it from being removed until the lease is closed, or this process has
// ended. The error is NotFound if there is none.
func (s *Store) Acquire(ctx context.Context, name string) (*Lease, error) {
	for {
		m, err := s.manifest(name)
		if err != nil {
			return nil, err
		}
		use := useOf(m)
		lock, err := s.lockFile(ctx, use, true) // it waits only for one who is removing the model
		if err != nil {
			return nil, err
		}
		again, err := s.manifest(name)
		if err == nil && again.key() == m.key() {
			now := time.Now()
			_ = s.root.Chtimes(use, now, now) // a folder that is read-only has no last use
			out := &Lease{Model: Model{Manifest: *m, Path: s.tree(m), LastUsed: now, InUse: true}, lock: lock}
			return out, nil
		}
		if err := lock.release(); err != nil {
			return nil, err
		}
	}
}

// Remove removes a model. The error is FailedPrecondition while it is in use.
func (s *Store) Remove(ctx context.Context, name string) (freed int64, err error) {
	err = s.locked(ctx, func() error {
		m, err := s.manifest(name)
		damaged := fault.CodeOf(err) == fault.DataLoss
		if err != nil && !damaged {
			return err
		}
		before, err := s.usage()
		if err != nil {
			return err
		}
		if damaged {
			err = s.root.Remove("models/" + name + ".json")
		} else {
			err = s.drop(m)
		}
		if err == nil {
			err = s.sweep()
		}
		if err != nil {
			return err
		}
		after, err := s.usage()
		freed = before - after
		return err
	})
	return freed, err
}

// dropWait is how long a model has to be in use until it is not removed.
const dropWait = time.Second

// InUseError reports a model that cannot be removed now.
type InUseError struct{ Name string }

// Error names the model.
func (e *InUseError) Error() string {
	return fmt.Sprintf("remove model %s: a process is using it", e.Name)
}

// FaultCode returns FailedPrecondition.
func (e *InUseError) FaultCode() fault.Code { return fault.FailedPrecondition }

// drop removes the manifest and the tree of a model. The caller holds the lock, and calls sweep for the files.
func (s *Store) drop(m *Manifest) error {
	ctx, cancel := context.WithTimeout(context.Background(), dropWait) // who lists models takes the lock for a moment
	defer cancel()
	h, err := s.lockFile(ctx, useOf(m), false)
	switch {
	case ctx.Err() != nil:
		return &InUseError{m.Name}
	case err != nil:
		return err
	}
	err = s.root.Remove("models/" + m.Name + ".json")
	if err == nil {
		err = s.syncDir("models")
	}
	if err == nil {
		err = s.root.RemoveAll("trees/" + m.key())
	}
	if err == nil {
		err = s.root.Remove(useOf(m)) // whoever waits for it looks at its name again
	}
	return errors.Join(err, h.release())
}
