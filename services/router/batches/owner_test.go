package batches_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/batches"
)

// newGuard returns a guard with one key, and the owner of the key.
func newGuard(t *testing.T, change func(*auth.Key)) (*auth.Guard, *auth.Principal) {
	t.Helper()
	k := auth.Key{Tenant: "team", Roles: []auth.Role{auth.User}}
	change(&k)
	k, secret, err := auth.NewKey(k, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ring := auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{})
	p, err := ring.Authenticate(secret)
	if err != nil {
		t.Fatal(err)
	}
	g := auth.NewGuard(ring, "")
	g.Meters = auth.NewMeters(nil)
	return g, p
}

func TestOwner_BudgetOfRequestsSlowsTheBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard, p := newGuard(t, func(k *auth.Key) { k.Requests = 2 })
		b := newBackend(nil)
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Guard = guard })
		defer r.stop()
		r.caller = p
		start := time.Now()
		got := r.ended(r.create(r.upload(chats("a", "b", "c", "d", "e", "f")), chat))
		// Two requests at once and two a minute; the tries in between cost nothing.
		if took := time.Since(start); got.Counts.Completed != 6 || took < 2*time.Minute || took > 4*time.Minute {
			t.Errorf("%+v after %v", got.Counts, took)
		}
		for text, n := range b.ran() {
			if n != 1 {
				t.Errorf("%s ran %d times", text, n)
			}
		}
	})
}

// TestOwner_ATriedAgainRequestCountsOnce has requests that a full router refuses five times. Only the first try takes
// one of the two requests a minute.
func TestOwner_ATriedAgainRequestCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard, p := newGuard(t, func(k *auth.Key) { k.Requests = 2 })
		var b *backend
		b = newBackend(func(_ context.Context, text string) error {
			if b.ran()[text] <= 5 {
				return fault.New(fault.Unavailable, "no room").After(time.Second)
			}
			return nil
		})
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Guard = guard })
		defer r.stop()
		r.caller = p
		start := time.Now()
		got := r.ended(r.create(r.upload(chats("a", "b", "c", "d")), chat))
		// Two requests at once, two within a minute, and half a minute for the tries of the last one.
		if took := time.Since(start); got.Counts.Completed != 4 || took < time.Minute || took > 3*time.Minute {
			t.Errorf("%+v after %v", got.Counts, took)
		}
		for text, n := range b.ran() {
			if n != 6 {
				t.Errorf("%s was tried %d times", text, n)
			}
		}
	})
}

func TestOwner_ModelScopeHoldsForEachRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard, p := newGuard(t, func(k *auth.Key) { k.Models = []string{"other"} })
		b := newBackend(func(ctx context.Context, _ string) error { // as the router checks it
			if auth.Tenant(ctx) != "team" {
				t.Errorf("the tenant is %q", auth.Tenant(ctx))
			}
			return auth.CheckModel(ctx, "m", "sha256:1")
		})
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Guard = guard })
		defer r.stop()
		r.caller = p
		got := r.ended(r.create(r.upload(chats("a")), chat))
		a := r.results(got.ErrorFileID)["a"]
		if got.Counts.Failed != 1 || a.Response == nil || a.Response.StatusCode != http.StatusForbidden ||
			!strings.Contains(string(a.Response.Body), "model_not_allowed") {
			t.Errorf("%+v: %+v", got, a)
		}
	})
}

func TestOwner_WithoutTheVerbOfTheEndpointMakesNoBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard, p := newGuard(t, func(k *auth.Key) { k.Verbs = []auth.Verb{auth.Batch, auth.Embed} })
		r := newRig(t, t.TempDir(), newBackend(nil), func(o *batches.Options) { o.Guard = guard })
		defer r.stop()
		r.caller = p
		file := r.upload(chats("a"))
		status, answer := r.call("POST", "/v1/batches", `{"input_file_id":"`+file+`","endpoint":"`+chat+
			`","completion_window":"24h"}`)
		if status != 403 {
			t.Errorf("%d %v", status, answer)
		}
		w := r.raw("POST", "/v1/batches", "application/json", `{"input_file_id":"`+file+
			`","endpoint":"/v1/embeddings","completion_window":"24h"}`)
		var b batch.Batch
		if err := json.Unmarshal(w.Body.Bytes(), &b); err != nil || w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		r.ended(b.ID)
	})
}

func TestOwner_WhoseKeyEndsEndsTheBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard, p := newGuard(t, func(k *auth.Key) { k.Expires = time.Now().Add(150 * time.Second) })
		b := newBackend(func(context.Context, string) error {
			time.Sleep(time.Minute) // of virtual time
			return nil
		})
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Guard, o.Limits.Requests = guard, 1 })
		defer r.stop()
		r.caller = p
		got := r.ended(r.create(r.upload(chats("a", "b", "c", "d", "e")), chat))
		if got.Status != batch.Failed || got.Counts.Completed != 3 || got.Errors.Data[0].Code != "batch_stopped" ||
			!strings.Contains(got.Errors.Data[0].Message, "owner") || len(r.results(got.OutputFileID)) != 3 {
			t.Errorf("%+v %+v", got, got.Errors)
		}
	})
}

// TestOwner_WhoseKeyHasChanged changes the key between two processes, and so between two requests of the batch.
func TestOwner_WhoseKeyHasChanged(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*auth.Key)
		status batch.Status
		failed int
	}{
		"another tenant":      {func(k *auth.Key) { k.Tenant = "others" }, batch.Failed, 0},
		"no batches any more": {func(k *auth.Key) { k.Verbs = []auth.Verb{auth.Generate} }, batch.Completed, 1},
		"more rights":         {func(k *auth.Key) { k.Roles = append(k.Roles, auth.Operator) }, batch.Completed, 0},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				guard, p := newGuard(t, func(*auth.Key) {})
				dir := t.TempDir()
				first := newRig(t, dir, newBackend(func(ctx context.Context, _ string) error {
					<-ctx.Done()
					return ctx.Err()
				}), func(o *batches.Options) { o.Guard = guard })
				first.caller = p
				id := first.create(first.upload(chats("a")), chat)
				synctest.Wait()
				first.stop()

				k := auth.Key{Tenant: "team", Roles: []auth.Role{auth.User}}
				c.change(&k)
				k, _, err := auth.NewKey(k, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				k.ID = strings.TrimPrefix(p.ID, "key:")
				b := newBackend(nil)
				second := newRig(t, dir, b, func(o *batches.Options) {
					o.Guard = auth.NewGuard(auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{}), "")
				})
				defer second.stop()
				second.caller = p
				got := second.ended(id)
				ran := len(b.ran())
				if got.Status != c.status || got.Counts.Failed != c.failed || ran != got.Counts.Completed {
					t.Errorf("%s with %+v, and %d requests ran", got.Status, got.Counts, ran)
				}
			})
		})
	}
}

// TestOwner_OfATokenKeepsItsGrant makes a batch as the holder of a token, for which only the stored grant speaks.
func TestOwner_OfATokenKeepsItsGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard, _ := newGuard(t, func(*auth.Key) {})
		grant := auth.Grant{ID: "token:a", Tenant: "team", Roles: []auth.Role{auth.User}, Models: []string{"other"}}
		b := newBackend(func(ctx context.Context, _ string) error { return auth.CheckModel(ctx, "m", "sha256:1") })
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Guard = guard })
		defer r.stop()
		r.caller = grant.Principal(nil, nil)
		if got := r.ended(r.create(r.upload(chats("a")), chat)); got.Counts.Failed != 1 {
			t.Errorf("the scope of a token does not hold: %+v", got)
		}
		grant.Models = []string{"m"}
		r.caller = grant.Principal(nil, nil)
		if got := r.ended(r.create(r.upload(chats("a")), chat)); got.Counts.Completed != 1 {
			t.Errorf("a token may not use its model: %+v", got)
		}
	})
}
