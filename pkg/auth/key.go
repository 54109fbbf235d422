package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	// Prefix begins every secret, so that people and scanners recognise one.
	Prefix = "lamina_"
	// secretBytes is the number of random bytes of a secret.
	secretBytes = 32
	// MaxBudget is the largest budget a minute.
	MaxBudget = 100_000_000
	// maxName is the maximum length of a key's name in bytes.
	maxName = 64
)

// Key is an API key as it is stored. Its secret is not part of it.
type Key struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
	Digest string `json:"sha256,omitempty"` // of the secret, in hexadecimal
	Tenant string `json:"tenant,omitempty"`
	Roles  []Role `json:"roles"`
	// Verbs restricts what the roles give; empty for no restriction.
	Verbs []Verb `json:"verbs,omitempty"`
	// Models are names or digests of the models that the key may use; empty for all.
	Models   []string  `json:"models,omitempty"`
	Requests int64     `json:"requests_per_minute,omitempty"` // 0 for no limit
	Tokens   int64     `json:"tokens_per_minute,omitempty"`   // of prompts and answers; 0 for no limit
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires,omitzero"` // zero for never
	Revoked  time.Time `json:"revoked,omitzero"` // zero unless the key was revoked
	// Old is the secret before the last rotation, which is valid until its time.
	Old *OldSecret `json:"old,omitempty"`
}

// OldSecret is a secret that a rotation has replaced.
type OldSecret struct {
	Digest string    `json:"sha256"`
	Until  time.Time `json:"until"`
}

// NewSecret returns a random secret of 256 bits.
func NewSecret() string {
	b := make([]byte, secretBytes)
	rand.Read(b) // never fails
	return Prefix + hex.EncodeToString(b)
}

// DigestOf returns the SHA-256 digest of a secret in hexadecimal.
func DigestOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// NewKey completes a key with an id and a time, and returns it with its secret, which is stored nowhere.
func NewKey(k Key, now time.Time) (Key, string, error) {
	id := make([]byte, 6)
	rand.Read(id)
	secret := NewSecret()
	k.ID, k.Digest, k.Created = hex.EncodeToString(id), DigestOf(secret), now.UTC().Truncate(time.Second)
	return k, secret, k.Check()
}

// Check returns an error that names the first field with a value that is not allowed.
func (k *Key) Check() error {
	if !hexadecimal(k.ID, 12) {
		return fault.Field("id", "want 12 hexadecimal digits, got %q", k.ID)
	}
	if !hexadecimal(k.Digest, 2*sha256.Size) {
		return fault.Field("sha256", "want %d hexadecimal digits", 2*sha256.Size)
	}
	if k.Old != nil && !hexadecimal(k.Old.Digest, 2*sha256.Size) {
		return fault.Field("old.sha256", "want %d hexadecimal digits", 2*sha256.Size)
	}
	return k.checkScope()
}

// checkScope checks whom the key is for and what it allows.
func (k *Key) checkScope() error {
	if err := printable("name", k.Name, maxName); err != nil {
		return err
	}
	if err := printable("tenant", k.Tenant, MaxTenant); err != nil {
		return err
	}
	if len(k.Roles) == 0 {
		return fault.Field("roles", "want one or more of %s", join(Roles()))
	}
	for _, r := range k.Roles {
		if _, err := ParseRole(string(r)); err != nil {
			return err
		}
	}
	for _, v := range k.Verbs {
		if _, err := ParseVerb(string(v)); err != nil {
			return err
		}
	}
	for i, m := range k.Models {
		if err := printable(fmt.Sprintf("models[%d]", i), m, 512); err != nil {
			return err
		}
		if m == "" {
			return fault.Field(fmt.Sprintf("models[%d]", i), "is empty")
		}
	}
	for field, n := range map[string]int64{"requests_per_minute": k.Requests, "tokens_per_minute": k.Tokens} {
		if n < 0 || n > MaxBudget {
			return fault.Field(field, "want 0 to %d, got %d", MaxBudget, n)
		}
	}
	return nil
}

func hexadecimal(s string, length int) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == length
}

func printable(field, s string, limit int) error {
	if len(s) > limit {
		return fault.Field(field, "%d bytes are more than %d", len(s), limit)
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return fault.Field(field, "byte %d is not printable ASCII", i)
		}
	}
	return nil
}

// State returns active, expired or revoked.
func (k *Key) State(now time.Time) string {
	switch {
	case !k.Revoked.IsZero():
		return "revoked"
	case !k.Expires.IsZero() && !now.Before(k.Expires):
		return "expired"
	}
	return "active"
}

// May reports whether the roles of the key give a verb that the key is not restricted from.
func (k *Key) May(v Verb) bool {
	return (len(k.Verbs) == 0 || slices.Contains(k.Verbs, v)) && granted(k.Roles, v)
}

func granted(roles []Role, v Verb) bool {
	for _, r := range roles {
		if slices.Contains(r.Verbs(), v) {
			return true
		}
	}
	return false
}

// Rotate replaces the secret of a key and returns the new one. The old one is valid for another while.
func (k *Key) Rotate(now time.Time, grace time.Duration) string {
	secret := NewSecret()
	k.Old = nil
	if grace > 0 {
		k.Old = &OldSecret{Digest: k.Digest, Until: now.Add(grace).UTC().Truncate(time.Second)}
	}
	k.Digest = DigestOf(secret)
	return secret
}
