package auth

import (
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// AddKey completes a key and adds it to a file of keys. It returns the key and its secret, which is stored nowhere.
// Two active keys of one name are AlreadyExists. A key without a tenant gets its name as the tenant.
func AddKey(path string, k Key, now time.Time) (Key, string, error) {
	if k.Tenant == "" {
		k.Tenant = k.Name
	}
	k, secret, err := NewKey(k, now)
	if err != nil {
		return Key{}, "", err
	}
	err = UpdateKeys(path, func(keys []Key) ([]Key, error) {
		if k.Name != "" && slices.ContainsFunc(keys, func(o Key) bool {
			return o.Name == k.Name && o.State(now) == "active"
		}) {
			return nil, fault.New(fault.AlreadyExists, "make key %q: %s has an active key of that name", k.Name, path)
		}
		return append(keys, k), nil
	})
	if err != nil {
		return Key{}, "", err
	}
	return k, secret, nil
}

// RotateKey gives a key of a file another secret and returns both. The key is given by its id, or by its name if no
// other key has it. The old secret is valid for the grace period.
func RotateKey(path, id string, grace time.Duration, now time.Time) (Key, string, error) {
	if grace < 0 {
		return Key{}, "", fault.Field("grace", "want 0 or more, got %v", grace)
	}
	var secret string
	k, err := changeKey(path, id, func(k *Key) error {
		if state := k.State(now); state != "active" {
			return fault.New(fault.FailedPrecondition, "rotate key %s: it is %s: make another", k.ID, state)
		}
		secret = k.Rotate(now, grace)
		return nil
	})
	return k, secret, err
}

// RevokeKey makes a key of a file invalid for good, with both of its secrets. Revoking it again changes nothing.
func RevokeKey(path, id string, now time.Time) (Key, error) {
	return changeKey(path, id, func(k *Key) error {
		if k.Revoked.IsZero() {
			k.Revoked = now.UTC().Truncate(time.Second)
		}
		k.Old = nil
		return nil
	})
}

// changeKey applies change to the key with an id, or to the only key with that name.
func changeKey(path, id string, change func(*Key) error) (Key, error) {
	var changed Key
	err := UpdateKeys(path, func(keys []Key) ([]Key, error) {
		var found []int
		for i, k := range keys {
			if k.ID == id { // an id is unique, even if another key has it as its name
				found = []int{i}
				break
			}
			if k.Name == id {
				found = append(found, i)
			}
		}
		switch len(found) {
		case 0:
			return nil, fault.New(fault.NotFound, "find key %q in %s: lamina keys list shows all", id, path)
		case 1:
			err := change(&keys[found[0]])
			changed = keys[found[0]]
			return keys, err
		}
		return nil, fault.Field("key", "%d keys have the name %q: give an id", len(found), id)
	})
	if err != nil {
		return Key{}, err
	}
	return changed, nil
}

// Public returns the key without the digests of its secrets.
func (k Key) Public() Key {
	k.Digest = ""
	if k.Old != nil {
		k.Old = &OldSecret{Until: k.Old.Until}
	}
	return k
}

// List returns the keys of the keyring's file, without the digests of their secrets.
func (r *Keyring) List() ([]Key, error) {
	if r.path == "" {
		return nil, errNoFile()
	}
	keys, err := ReadKeys(r.path)
	if err != nil {
		return nil, err
	}
	for i, k := range keys {
		keys[i] = k.Public()
	}
	return keys, nil
}

// Add is AddKey on the keyring's file. The secret is valid at once.
func (r *Keyring) Add(k Key) (added Key, secret string, err error) {
	err = r.update(func() error {
		added, secret, err = AddKey(r.path, k, r.now())
		return err
	})
	return added.Public(), secret, err
}

// Rotate is RotateKey on the keyring's file.
func (r *Keyring) Rotate(id string, grace time.Duration) (rotated Key, secret string, err error) {
	err = r.update(func() error {
		rotated, secret, err = RotateKey(r.path, id, grace, r.now())
		return err
	})
	return rotated.Public(), secret, err
}

// Revoke is RevokeKey on the keyring's file. The key is refused from now on.
func (r *Keyring) Revoke(id string) (revoked Key, err error) {
	err = r.update(func() error {
		revoked, err = RevokeKey(r.path, id, r.now())
		return err
	})
	return revoked.Public(), err
}

// update changes the file and reads it again. If only the reading fails the change has been made, and Run tries to
// read it again.
func (r *Keyring) update(change func() error) error {
	if r.path == "" {
		return errNoFile()
	}
	if err := change(); err != nil {
		return err
	}
	if err := r.load(); err != nil {
		r.log.Error("read keys: the keys from before stay", "error", err)
	}
	return nil
}

func errNoFile() error {
	return fault.New(fault.FailedPrecondition, "change keys: they are in no file")
}
