//go:build unix

package auth_test

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
)

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
