package auth_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// renewed stores the owner of work as a file does, and renews it.
func renewed(t *testing.T, g *auth.Guard, p *auth.Principal) (*auth.Principal, error) {
	t.Helper()
	text, err := json.Marshal(p.Owner())
	if err != nil {
		t.Fatal(err)
	}
	var o *auth.Grant
	if err := json.Unmarshal(text, &o); err != nil {
		t.Fatal(err)
	}
	return g.Renew(o)
}

func TestGuard_RenewsTheOwnerOfAKeyWithWhatTheKeyIsNow(t *testing.T) {
	c := &clock{at: start}
	k, secret := newKey(t, func(k *auth.Key) {
		k.Expires, k.Requests, k.Models = start.Add(time.Hour), 5, []string{"m"}
	})
	g := auth.NewGuard(auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{Now: c.now}), "")
	before, err := g.Authenticate(auth.Credentials{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	after, err := renewed(t, g, before)
	if err != nil || after.ID != before.ID || after.Tenant != "team" || after.Meter() != before.Meter() {
		t.Fatalf("%+v, %v", after, err)
	}
	ctx := auth.WithPrincipal(context.Background(), after)
	if !auth.MayUse(ctx, "m") || auth.MayUse(ctx, "other") {
		t.Error("the scope of the key is lost")
	}
	less := k
	less.Models, less.Verbs = []string{"other"}, []auth.Verb{auth.Embed}
	changed := auth.NewGuard(auth.NewKeyring([]auth.Key{less}, auth.KeyringOptions{Now: c.now}), "")
	now, err := renewed(t, changed, before)
	if err != nil || now.May(auth.Rule{Verb: auth.Generate}) || auth.MayUse(auth.WithPrincipal(ctx, now), "m") {
		t.Errorf("a key that may less by now: %+v, %v", now, err)
	}
	c.pass(time.Hour)
	if err := after.Check(); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("the key has expired: %v", err)
	}
	revoked := k
	revoked.Expires, revoked.Revoked = time.Time{}, start
	for what, keys := range map[string][]auth.Key{"expired": {k}, "gone": {}, "revoked": {revoked}} {
		g := auth.NewGuard(auth.NewKeyring(keys, auth.KeyringOptions{Now: c.now}), "")
		if p, err := renewed(t, g, before); fault.CodeOf(err) != fault.Unauthenticated {
			t.Errorf("%s: %+v, %v", what, p, err)
		}
	}
	if p, err := renewed(t, auth.NewGuard(nil, ""), before); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("a guard without keys: %+v, %v", p, err)
	}
}

func TestGuard_RenewsOthersWithWhatTheyHad(t *testing.T) {
	g := auth.NewGuard(nil, "")
	g.Meters = auth.NewMeters(nil)
	grant := auth.Grant{ID: "token:a", Tenant: "team", Roles: []auth.Role{auth.User}, Models: []string{"m"},
		Verbs: []auth.Verb{auth.Batch}, Tokens: 60}
	meter, err := g.Meters.Of("token:a", 0, 60)
	if err != nil {
		t.Fatal(err)
	}
	p, err := renewed(t, g, grant.Principal(meter, nil))
	if err != nil || p.ID != "token:a" || p.Tenant != "team" || p.Meter() != meter ||
		p.May(auth.Rule{Verb: auth.Generate}) || !p.May(auth.Rule{Verb: auth.Batch}) ||
		auth.MayUse(auth.WithPrincipal(context.Background(), p), "other") {
		t.Errorf("%+v, %v", p, err)
	}
	grant.Roles = []auth.Role{"odd"}
	if p, err := g.Renew(&grant); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a stored grant with an unknown role: %+v, %v", p, err)
	}
	if p, err := g.Renew(nil); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("nobody had to authenticate then: %+v, %v", p, err)
	}
	if p, err := (*auth.Guard)(nil).Renew(&grant); p != nil || err != nil {
		t.Errorf("nobody has to authenticate now: %+v, %v", p, err)
	}
}
