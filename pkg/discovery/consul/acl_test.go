package consul_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
)

func TestPolicies_SufficeAndGiveNothingElse(t *testing.T) {
	t.Parallel()
	const management = "2f6e1b6a-0d6a-4a35-9a0a-8f1c8f3c0d11"
	config := filepath.Join(t.TempDir(), "acl.hcl")
	if err := os.WriteFile(config, []byte(`acl {
  enabled = true
  default_policy = "deny"
  tokens { initial_management = "`+management+`" agent = "`+management+`" }
}`), 0o600); err != nil {
		t.Fatal(err)
	}
	a := agent(t, "-config-file="+config)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	settings := api.DefaultConfig()
	settings.Address, settings.Token = a.addr(), management
	admin, err := api.NewClient(settings)
	if err != nil {
		t.Fatal(err)
	}
	defer settings.Transport.CloseIdleConnections()
	// token returns a token for a kind of service, once the ACL system is ready.
	token := func(kind, rules string) string {
		t.Helper()
		for {
			policy, _, err := admin.ACL().PolicyCreate(&api.ACLPolicy{Name: "lamina-" + kind, Rules: rules},
				(&api.WriteOptions{}).WithContext(ctx))
			if err == nil {
				made, _, err := admin.ACL().TokenCreate(
					&api.ACLToken{Policies: []*api.ACLLink{{ID: policy.ID}}}, (&api.WriteOptions{}).WithContext(ctx))
				if err != nil {
					t.Fatal(err)
				}
				return made.SecretID
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal(err)
			}
		}
	}
	addr, stop := serve(t)
	defer stop()
	for kind, rules := range consul.Policies() {
		r, err := consul.New(consul.Config{Addr: a.addr(), Token: token(kind, rules)})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		own, err := r.Register(ctx, discovery.Instance{ID: kind + "-1", Service: kind, Addr: addr})
		if err != nil {
			t.Errorf("a %s registers itself: %v", kind, err)
			continue
		}
		watching, end := context.WithCancel(ctx)
		found, err := r.Watch(watching, kind)
		if err != nil {
			t.Fatal(err)
		}
		await(t, found, 1)
		end()
		if _, err := r.Version(ctx); err != nil {
			t.Errorf("a %s asks for the version: %v", kind, err)
		}
		other := "shard"
		if kind == other {
			other = "router"
		}
		reg, err := r.Register(ctx, discovery.Instance{ID: "false-" + kind, Service: other, Addr: addr})
		if err == nil {
			t.Errorf("a %s registers a %s", kind, other)
			_ = reg.Deregister(ctx)
		}
		limited, done := context.WithTimeout(ctx, time.Minute)
		lease, err := r.Lock(limited, "run-"+kind, kind)
		done()
		if (err == nil) != (kind == "trainer" || kind == "router") {
			t.Errorf("a %s takes a lock: %v", kind, err)
		}
		if err == nil {
			if err := lease.Release(ctx); err != nil {
				t.Errorf("a %s releases a lock: %v", kind, err)
			}
		}
		if err := own.Deregister(ctx); err != nil {
			t.Errorf("a %s deregisters itself: %v", kind, err)
		}
	}
	none, err := consul.New(consul.Config{Addr: a.addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()
	if reg, err := none.Register(ctx, discovery.Instance{ID: "x", Service: "shard", Addr: addr}); err == nil {
		t.Error("a service registers without a token")
		_ = reg.Deregister(ctx)
	}
}
