package auth_test

import (
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
)

// BenchmarkKeyring_WrongSecrets compares the times of secrets that are wrong in different ways. They must not tell how
// much of a secret is right.
func BenchmarkKeyring_WrongSecrets(b *testing.B) {
	var keys []auth.Key
	good := ""
	for range 1000 {
		k, secret := newKey(b, nil)
		keys, good = append(keys, k), secret
	}
	revoked, revokedSecret := newKey(b, func(k *auth.Key) { k.Revoked = start })
	r := auth.NewKeyring(append(keys, revoked), auth.KeyringOptions{Now: func() time.Time { return start }})
	digits := strings.TrimPrefix(good, auth.Prefix)
	with := func(right int) string {
		rest := strings.Map(func(c rune) rune {
			if c == '0' {
				return '1'
			}
			return '0'
		}, digits[right:])
		return auth.Prefix + digits[:right] + rest
	}
	for name, secret := range map[string]string{"None": with(0), "Half": with(32), "AllButOne": with(63),
		"Revoked": revokedSecret} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := r.Authenticate(secret); err == nil {
					b.Fatal("a wrong secret is valid")
				}
			}
		})
	}
}
