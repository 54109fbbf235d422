package auth_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func TestKeyring_OneAnswerToEveryInvalidSecret(t *testing.T) {
	c := &clock{at: start}
	valid, secret := newKey(t, func(k *auth.Key) { k.Expires = start.Add(time.Hour) })
	revoked, revokedSecret := newKey(t, func(k *auth.Key) { k.Revoked = start })
	rotated, oldSecret := newKey(t, nil)
	newSecret := rotated.Rotate(start, time.Minute)
	r := auth.NewKeyring([]auth.Key{valid, revoked, rotated}, auth.KeyringOptions{Now: c.now})
	check := func(when string, good []string, bad map[string]string) {
		t.Helper()
		for _, s := range good {
			if p, err := r.Authenticate(s); err != nil || p.Tenant != "team" || !strings.HasPrefix(p.ID, "key:") {
				t.Errorf("%s: %+v, %v", when, p, err)
			}
		}
		_, want := r.Authenticate("")
		if fault.CodeOf(want) != fault.Unauthenticated {
			t.Fatalf("no secret: %v", want)
		}
		for name, s := range bad {
			if _, err := r.Authenticate(s); err == nil || err.Error() != want.Error() ||
				fault.CodeOf(err) != fault.Unauthenticated {
				t.Errorf("%s, %s: %v, want %v", when, name, err, want)
			}
		}
	}
	wrong := map[string]string{"wrong": auth.NewSecret(), "a digest": valid.Digest, "an id": valid.ID,
		"revoked": revokedSecret, "long": secret + strings.Repeat("x", 1000), "prefix": secret[:len(secret)-1]}
	check("now", []string{secret, oldSecret, newSecret}, wrong)
	var callers []*auth.Principal // whose calls go on
	for _, s := range []string{oldSecret, secret, newSecret} {
		p, err := r.Authenticate(s)
		if err != nil {
			t.Fatal(err)
		}
		callers = append(callers, p)
	}
	stillValid := func(when string, want ...bool) {
		t.Helper()
		for i, p := range callers {
			if err := p.Check(); (err == nil) != want[i] || err != nil && fault.CodeOf(err) != fault.Unauthenticated {
				t.Errorf("%s, caller %d: %v", when, i, err)
			}
		}
	}
	stillValid("now", true, true, true)
	c.pass(time.Minute)
	wrong["replaced"] = oldSecret
	check("after the grace", []string{secret, newSecret}, wrong)
	stillValid("after the grace", false, true, true)
	c.pass(time.Hour)
	wrong["expired"] = secret
	check("after the expiry", []string{newSecret}, wrong)
	stillValid("after the expiry", false, false, true)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestKeyring_FollowsItsFileAndSurvivesDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	add := func() string {
		k, secret := newKey(t, nil)
		if err := auth.UpdateKeys(
			path,
			func(keys []auth.Key) ([]auth.Key, error) { return append(keys, k), nil },
		); err != nil {
			t.Fatal(err)
		}
		return secret
	}
	first := add()
	var lines logtest.Buffer
	r, err := auth.OpenKeyring(path, auth.KeyringOptions{Log: slog.New(slog.NewTextHandler(&lines, nil)),
		Now: func() time.Time { return start }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	valid := func(secret string) bool {
		_, err := r.Authenticate(secret)
		return err == nil
	}
	if !valid(first) {
		t.Fatal("the first key is not valid")
	}
	second := add()
	eventually(t, "the second key is valid", func() bool { return valid(second) })
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(
		t,
		"the damage is logged",
		func() bool { return strings.Contains(lines.String(), "keys from before stay") },
	)
	if !valid(first) || !valid(second) {
		t.Error("keys are lost by damage to the file")
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := auth.UpdateKeys(path, func(keys []auth.Key) ([]auth.Key, error) {
		keys[0].Revoked = start
		return keys, nil
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first key is revoked", func() bool { return !valid(first) })
	if !valid(second) {
		t.Error("the second key is not valid")
	}
	for _, secret := range []string{first, second} {
		if strings.Contains(lines.String(), strings.TrimPrefix(secret, auth.Prefix)) {
			t.Error("a secret is in the log")
		}
	}
}

func TestCheckModel_FollowsTheKeysScope(t *testing.T) {
	k, secret := newKey(t, func(k *auth.Key) { k.Models = []string{"small", "sha256:1"} })
	r := auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{Now: func() time.Time { return start }})
	p, err := r.Authenticate(secret)
	if err != nil {
		t.Fatal(err)
	}
	ctx := auth.WithPrincipal(t.Context(), p)
	if err := auth.CheckModel(ctx, "base", "sha256:2", "base:poet"); err == nil {
		t.Error("a model with an adapter that the key does not have")
	}
	if err := auth.CheckModel(ctx, "base", "sha256:2", "small"); err != nil {
		t.Errorf("a model by another name: %v", err)
	}
	for _, c := range []struct {
		name, digest string
		ok           bool
	}{{"small", "sha256:9", true}, {"other", "sha256:1", true}, {"large", "sha256:2", false}, {"", "", false}} {
		if err := auth.CheckModel(ctx, c.name, c.digest); (err == nil) != c.ok ||
			!c.ok && fault.CodeOf(err) != fault.PermissionDenied {
			t.Errorf("%q %q: %v", c.name, c.digest, err)
		}
		if err := auth.CheckModel(t.Context(), c.name, c.digest); err != nil {
			t.Errorf("nobody has to authenticate: %v", err)
		}
	}
}

// Who is refused learns what to ask for.
func TestAllow_SaysWhichVerbIsMissing(t *testing.T) {
	k, secret := newKey(t, func(k *auth.Key) { k.Roles = []auth.Role{auth.User} })
	g := &auth.Guard{Keys: auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{Now: func() time.Time { return start }})}
	for want, rule := range map[string]auth.Rule{
		"it needs the verb observe":   {Verb: auth.Observe},
		"it is for services alone":    {Services: []auth.Service{auth.RouterService}},
		"call thing: key:" + k.ID[:4]: {Verb: auth.Keys},
	} {
		if _, err := g.Allow("thing", rule, true, auth.Credentials{Secret: secret}); err == nil ||
			fault.CodeOf(err) != fault.PermissionDenied || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", rule, err, want)
		}
	}
}
