//go:build unix

package auth_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
)

// TestUpdateKeys_TheLockIsForTheOwnerOfItsFolder is about an administrator who makes the first key of a service. Only
// root can give the folder away; for other users it is theirs.
func TestUpdateKeys_TheLockIsForTheOwnerOfItsFolder(t *testing.T) {
	dir := t.TempDir()
	if os.Getuid() == 0 {
		if err := os.Chown(dir, 12345, 12346); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "keys.json")
	if _, _, err := auth.AddKey(path, auth.Key{Name: "a", Roles: []auth.Role{auth.User}}, time.Now()); err != nil {
		t.Fatal(err)
	}
	folder, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := os.Stat(path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	want, got := folder.Sys().(*syscall.Stat_t), lock.Sys().(*syscall.Stat_t)
	if got.Uid != want.Uid || got.Gid != want.Gid || lock.Mode().Perm()&0o027 != 0 {
		t.Errorf("the lock belongs to %d:%d with %v, the folder to %d:%d", got.Uid, got.Gid, lock.Mode(), want.Uid,
			want.Gid)
	}
}

// TestUpdateKeys_TheFirstFileIsForTheService is about the same administrator: the service, which is the owner of the
// folder or of its group, can read the file, and nobody else can.
func TestUpdateKeys_TheFirstFileIsForTheService(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make files for others")
	}
	for name, row := range map[string]struct {
		uid, gid     int
		folder, want os.FileMode
	}{
		"the service's own":         {12345, 12346, 0o700, 0o600},
		"read by its group":         {0, 12346, 0o750, 0o640},
		"closed to its group":       {0, 12346, 0o700, 0o600},
		"root's, open to everybody": {0, os.Getegid(), 0o755, 0o600},
	} {
		dir := t.TempDir()
		if err := errors.Join(os.Chown(dir, row.uid, row.gid), os.Chmod(dir, row.folder)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "keys.json")
		for range 2 { // the second change replaces the file
			if _, _, err := auth.AddKey(path, auth.Key{Roles: []auth.Role{auth.User}}, time.Now()); err != nil {
				t.Fatal(err)
			}
			file, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			got := file.Sys().(*syscall.Stat_t)
			if int(got.Uid) != row.uid || int(got.Gid) != row.gid || file.Mode().Perm() != row.want {
				t.Errorf("%s: the file is for %d:%d with %v", name, got.Uid, got.Gid, file.Mode())
			}
		}
	}
}

// A slow reader of the file has the keys from before a revocation: they must not replace those from after it.
func TestKeyring_RevokedWhileTheFileIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	k, secret, err := auth.AddKey(path, auth.Key{Name: "a", Roles: []auth.Role{auth.User}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := auth.OpenKeyring(path, auth.KeyringOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".kept"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.Run(ctx)
	}()
	pipe, err := os.OpenFile(path, os.O_WRONLY, 0) // waits until Run reads
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".kept", path); err != nil {
		t.Fatal(err)
	}
	revoked := make(chan error, 1)
	go func() {
		_, err := r.Revoke(k.ID)
		revoked <- err
	}()
	wait := time.NewTimer(time.Second / 2)
	select {
	case err = <-revoked: // it has overtaken the reader
		revoked <- err
	case <-wait.C: // it waits for the reader
	}
	cancel() // Run does not read once more
	if _, err := pipe.Write(before); err != nil {
		t.Fatal(err)
	}
	if err := pipe.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := <-revoked; err != nil {
		t.Fatal(err)
	}
	if _, err := r.Authenticate(secret); err == nil {
		t.Error("the revoked key is valid")
	}
}
