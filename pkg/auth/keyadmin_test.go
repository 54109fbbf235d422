package auth_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestKeyring_ChangesOfItsFileCountAtOnce(t *testing.T) {
	c := &clock{at: start}
	path := filepath.Join(t.TempDir(), "keys.json")
	if _, _, err := auth.AddKey(path, auth.Key{Name: "first", Roles: []auth.Role{auth.User}}, start); err != nil {
		t.Fatal(err)
	}
	r, err := auth.OpenKeyring(path, auth.KeyringOptions{Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	valid := func(secret string) bool {
		_, err := r.Authenticate(secret)
		return err == nil
	}
	k, secret, err := r.Add(auth.Key{Name: "second", Roles: []auth.Role{auth.Operator}})
	if err != nil || !valid(secret) || k.Digest != "" || k.Tenant != "second" {
		t.Fatalf("add: %+v, %v", k, err)
	}
	if _, _, err := r.Add(auth.Key{Name: "second", Roles: []auth.Role{auth.User}}); fault.CodeOf(err) !=
		fault.AlreadyExists {
		t.Errorf("the same name again: %v", err)
	}
	if _, _, err := r.Add(auth.Key{Name: "third"}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("without a role: %v", err)
	}
	_, another, err := r.Rotate("second", time.Minute)
	if err != nil || !valid(secret) || !valid(another) {
		t.Errorf("rotate: %v", err)
	}
	c.pass(time.Minute)
	if valid(secret) || !valid(another) {
		t.Error("after the grace period the old secret is still valid, or the new one is not")
	}
	if _, _, err := r.Rotate(k.ID, -1); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a negative grace period: %v", err)
	}
	if k, err := r.Revoke(k.ID); err != nil || valid(another) || k.State(c.now()) != "revoked" {
		t.Errorf("revoke: %+v, %v", k, err)
	}
	if _, _, err := r.Rotate(k.ID, 0); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("rotate a revoked key: %v", err)
	}
	if _, err := r.Revoke("nobody"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("revoke an unknown key: %v", err)
	}
	keys, err := r.List()
	if err != nil || len(keys) != 2 || keys[0].Digest != "" {
		t.Errorf("list: %+v, %v", keys, err)
	}
}

func TestKeyring_WithoutAFileChangesNothing(t *testing.T) {
	r := auth.NewKeyring(nil, auth.KeyringOptions{})
	_, err := r.List()
	_, _, err2 := r.Add(auth.Key{Name: "a", Roles: []auth.Role{auth.User}})
	if fault.CodeOf(err) != fault.FailedPrecondition || fault.CodeOf(err2) != fault.FailedPrecondition {
		t.Errorf("%v, %v", err, err2)
	}
}

func TestRevokeKey_IDThatAnotherKeyHasAsItsName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	k, _, err := auth.AddKey(path, auth.Key{Name: "first", Roles: []auth.Role{auth.User}}, start)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := auth.AddKey(path, auth.Key{Name: k.ID, Roles: []auth.Role{auth.User}}, start); err != nil {
		t.Fatal(err)
	}
	if revoked, err := auth.RevokeKey(path, k.ID, start); err != nil || revoked.Name != "first" {
		t.Errorf("revoked %+v, %v", revoked, err)
	}
}
