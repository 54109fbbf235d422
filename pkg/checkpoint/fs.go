package checkpoint

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
)

// FS is a file system. Names are slash-separated paths inside of it; "." is its root. A missing file or
// folder is fs.ErrNotExist. Methods may be called concurrently.
type FS interface {
	// Create makes a file, or empties one that exists.
	Create(name string) (WriteFile, error)
	// Open opens a file for reading.
	Open(name string) (ReadFile, error)
	// Rename gives a file or folder another name, perhaps in another folder. It replaces a file at to.
	Rename(from, to string) error
	// Remove removes a file or an empty folder.
	Remove(name string) error
	// MakeDir makes a folder and those above it. A folder that exists is no error.
	MakeDir(name string) error
	// Mkdir makes a folder in one that exists. One that exists already is fs.ErrExist.
	Mkdir(name string) error
	// List returns the names in a folder, sorted.
	List(name string) ([]string, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(name string) error
}

// WriteFile is a file that is being written.
type WriteFile interface {
	io.Writer
	// Sync makes the bytes durable.
	Sync() error
	// Close closes the file. Bytes that Sync has not made durable may be lost.
	Close() error
}

// ReadFile is a file that is open for reading.
type ReadFile interface {
	io.ReaderAt
	io.Closer
	// Size returns the number of bytes.
	Size() (int64, error)
}

// Dir is the FS of a folder, which need not exist before MakeDir. No name leads out of the folder, not
// even through a symbolic link.
type Dir string

var _ FS = Dir("")

// in calls do with the opened folder.
func (d Dir) in(do func(*os.Root) error) error {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return err
	}
	return errors.Join(do(root), root.Close())
}

// Create implements FS.
func (d Dir) Create(name string) (WriteFile, error) {
	var out *os.File
	err := d.in(func(r *os.Root) (err error) {
		out, err = r.Create(filepath.FromSlash(name))
		return err
	})
	return out, err
}

// Open implements FS.
func (d Dir) Open(name string) (ReadFile, error) {
	var out *os.File
	err := d.in(func(r *os.Root) (err error) {
		out, err = r.Open(filepath.FromSlash(name))
		return err
	})
	return dirFile{out}, err
}

// dirFile is a file of a Dir.
type dirFile struct{ *os.File }

// Size implements ReadFile.
func (f dirFile) Size() (int64, error) {
	stat, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return stat.Size(), nil
}

// Rename implements FS.
func (d Dir) Rename(from, to string) error {
	return d.in(func(r *os.Root) error { return r.Rename(filepath.FromSlash(from), filepath.FromSlash(to)) })
}

// Remove implements FS.
func (d Dir) Remove(name string) error {
	return d.in(func(r *os.Root) error { return r.Remove(filepath.FromSlash(name)) })
}

// MakeDir implements FS.
func (d Dir) MakeDir(name string) error {
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return err
	}
	return d.in(func(r *os.Root) error { return r.MkdirAll(filepath.FromSlash(name), 0o755) })
}

// Mkdir implements FS.
func (d Dir) Mkdir(name string) error {
	return d.in(func(r *os.Root) error { return r.Mkdir(filepath.FromSlash(name), 0o755) })
}

// List implements FS.
func (d Dir) List(name string) ([]string, error) {
	var out []string
	err := d.in(func(r *os.Root) error {
		f, err := r.Open(filepath.FromSlash(name))
		if err != nil {
			return err
		}
		out, err = f.Readdirnames(-1)
		return errors.Join(err, f.Close())
	})
	slices.Sort(out)
	return out, err
}

// SyncDir implements FS. Windows has no such operation; its file systems log the changes of names.
func (d Dir) SyncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	return d.in(func(r *os.Root) error {
		f, err := r.Open(filepath.FromSlash(name))
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
