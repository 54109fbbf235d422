package auth

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/gofrs/flock"

	"github.com/lamina-mesh/lamina/internal/configfile"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	fileVersion = 1
	maxFile     = 64 << 20
	maxKeys     = 100_000
	lockWait    = 10 * time.Second // for another process that changes the file
	lockRetry   = 20 * time.Millisecond
)

// keyFile is the content of a file of keys.
type keyFile struct {
	Version int   `json:"version"`
	Keys    []Key `json:"keys"`
}

// ParseKeys reads the content of a file of keys. An error names the key and the field.
func ParseKeys(text []byte) ([]Key, error) {
	var f keyFile
	if err := configfile.JSON(text, &f); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read keys")
	}
	if f.Version != fileVersion {
		return nil, fault.Field("version", "want %d, got %d", fileVersion, f.Version)
	}
	if len(f.Keys) > maxKeys {
		return nil, fault.Field("keys", "%d are more than %d", len(f.Keys), maxKeys)
	}
	ids, digests := map[string]bool{}, map[string]bool{}
	for i := range f.Keys {
		k := &f.Keys[i]
		if err := k.Check(); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "read key %d", i)
		}
		if ids[k.ID] || digests[k.Digest] {
			return nil, fault.New(fault.Invalid, "read key %d: another key has its id or digest", i)
		}
		ids[k.ID], digests[k.Digest] = true, true
	}
	return f.Keys, nil
}

// unread is the error of a file of keys that cannot be opened.
func unread(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.NotFound, err, "read keys: lamina keys create makes the file")
	}
	return fault.Wrap(fault.CodeOf(err), err, "read keys")
}

// ReadKeys reads a file of keys. On Unix it refuses a file that others may write.
func ReadKeys(path string) ([]Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unread(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "read keys")
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0 {
		return nil, fault.New(fault.FailedPrecondition, "read keys: others may write %s: run chmod go-w on it", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "read keys of %s", path)
	}
	if len(text) > maxFile {
		return nil, fault.New(fault.Invalid, "read keys of %s: more than %d bytes", path, maxFile)
	}
	keys, err := ParseKeys(text)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read keys of %s", path)
	}
	return keys, nil
}

// UpdateKeys changes a file of keys, which it creates if there is none. The file is replaced at once, so that a
// reader sees the keys before or after the change. A lock file keeps other processes from changing it meanwhile.
func UpdateKeys(path string, change func([]Key) ([]Key, error)) (err error) {
	unlock, err := lockFile(path + ".lock")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	keys, err := ReadKeys(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if keys, err = change(keys); err != nil {
		return err
	}
	text, err := json.MarshalIndent(keyFile{Version: fileVersion, Keys: keys}, "", "  ")
	if err != nil {
		return fault.Wrap(fault.Internal, err, "write keys")
	}
	if _, err := ParseKeys(text); err != nil { // never write what cannot be read again
		return err
	}
	return replaceFile(path, append(text, '\n'))
}

// lockFile locks a file of the operating system's locks, which end with their process, and returns a function that
// unlocks it. The file stays: a process could otherwise lock one that another one has just removed. So one that is left
// over, also by a version that took its existence for the lock, locks nothing. It is made for the owner and the group
// of its folder: an administrator who changes the keys must not lock out the service that changes them afterwards.
func lockFile(path string) (func() error, error) {
	if made, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640); err == nil {
		if folder, err := os.Stat(filepath.Dir(path)); err == nil {
			keepOwner(made, folder)
		}
		if err := made.Close(); err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "lock keys")
		}
	}
	f := flock.New(path, flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	switch ok, err := f.TryLockContext(ctx, lockRetry); {
	case ok:
		return f.Close, nil
	case ctx.Err() == nil:
		return nil, fault.Wrap(fault.Unavailable, errors.Join(err, f.Close()), "lock keys")
	}
	return nil, fault.Wrap(fault.Unavailable, f.Close(), "lock keys: another process has held %s for %v: try again",
		path, lockWait)
}

// replaceFile writes a file durably under a temporary name, and then gives it its name. It keeps the mode and, as far
// as the caller may, the owner of the file that it replaces. A new file is for the owner of its folder: a service whose
// first key an administrator makes must be able to read it.
func replaceFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp") // mode 0600
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "write %s", path)
	}
	if old, missing := os.Stat(path); missing == nil {
		keepOwner(f, old)
		err = f.Chmod(old.Mode().Perm())
	} else if folder, missing := os.Stat(filepath.Dir(path)); missing == nil {
		err = adopt(f, folder)
	}
	if err == nil {
		_, err = f.Write(text)
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, errors.Join(err, os.Remove(f.Name())), "write %s", path)
	}
	if dir, err := os.Open(filepath.Dir(path)); err == nil { // not every system can sync a folder
		_ = dir.Sync()
		_ = dir.Close()
	}
	return nil
}
