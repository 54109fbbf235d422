package router_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// withKey returns a context of requests by the owner of a key.
func withKey(t *testing.T, k auth.Key) context.Context {
	t.Helper()
	now := time.Now() // budgets gain nothing meanwhile
	return withKeyAt(t, k, func() time.Time { return now })
}

// withKeyAt is withKey under a clock.
func withKeyAt(t *testing.T, k auth.Key, now func() time.Time) context.Context {
	t.Helper()
	k.Roles = []auth.Role{auth.User}
	k, secret, err := auth.NewKey(k, now())
	if err != nil {
		t.Fatal(err)
	}
	p, err := auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{Now: now}).Authenticate(secret)
	if err != nil {
		t.Fatal(err)
	}
	return auth.WithPrincipal(patient(t), p)
}

// TestBackend_EncodeUnderTheNamesOfAdapters encodes for a model that is named with its adapters, by keys that may use
// the model, one of its adapters, or another model.
func TestBackend_EncodeUnderTheNamesOfAdapters(t *testing.T) {
	var sources []router.AdapterSource
	for i, name := range []string{"law", "sql"} {
		dir, _ := adapterFolder(t, i)
		sources = append(sources, router.AdapterSource{Name: name, Dir: dir})
	}
	m := newMesh(t, 1, 1, router.Config{Adapters: sources})
	if err := m.service.AwaitAdapters(patient(t)); err != nil {
		t.Fatal(err)
	}
	b := m.service.Backend()
	for _, tc := range []struct {
		allowed, model string
		want           fault.Code // Unspecified for an answer
	}{
		{"", "fake", fault.Unspecified}, {"", "", fault.Unspecified}, {"", "fake:sql", fault.Unspecified},
		{"", ":sql", fault.Unspecified}, {"", "sql", fault.Unspecified}, {"", digest + ":law", fault.Unspecified},
		{"", "fake:none", fault.NotFound}, {"", "none", fault.NotFound},
		{"fake", "fake:sql", fault.Unspecified}, {"fake:sql", "fake:sql", fault.Unspecified},
		{"fake:sql", "fake", fault.PermissionDenied}, {"fake:sql", "fake:law", fault.PermissionDenied},
		{"fake:none", "fake:none", fault.NotFound}, {"other", "fake:sql", fault.PermissionDenied},
	} {
		ctx := patient(t)
		if tc.allowed != "" {
			ctx = withKey(t, auth.Key{Models: []string{tc.allowed}})
		}
		ids, err := b.Encode(ctx, tc.model, "text", false, false)
		if fault.CodeOf(err) != tc.want || err == nil && len(ids) != 4 {
			t.Errorf("a key for %q encodes for %q: %v, %v", tc.allowed, tc.model, ids, err)
		}
	}
}

// TestService_UnknownAdapter_TheErrorListsWhatTheKeyMayUse names adapters that do not exist. Names of those that a key
// may not use are not told.
func TestService_UnknownAdapter_TheErrorListsWhatTheKeyMayUse(t *testing.T) {
	var sources []router.AdapterSource
	for i, name := range []string{"law", "sql"} {
		dir, _ := adapterFolder(t, i)
		sources = append(sources, router.AdapterSource{Name: name, Dir: dir})
	}
	m := newMesh(t, 1, 1, router.Config{Adapters: sources})
	if err := m.service.AwaitAdapters(patient(t)); err != nil {
		t.Fatal(err)
	}
	for allowed, want := range map[string]string{
		"fake": "it has law, sql", "fake:none": "it has none", "fake:none fake:sql": "it has sql",
	} {
		r := greedy("x", 4)
		r.Model = "fake:none"
		err := m.service.Backend().Generate(withKey(t, auth.Key{Models: strings.Fields(allowed)}), r, nil)
		if fault.CodeOf(err) != fault.NotFound || !strings.HasSuffix(fmt.Sprint(err), want) {
			t.Errorf("a key for %s: %v, want %q", allowed, err, want)
		}
	}
}

// TestBackend_EncodeForAnEncoder encodes for a model that has no pipeline, since it generates no text.
func TestBackend_EncodeForAnEncoder(t *testing.T) {
	m := newMesh(t, 1, 1, router.Config{})
	m.spare("encoder", "shard-0-0", func(s *fakeShard) { s.model, s.digest, s.encoder = "like", "sha256:like", true })
	eventually(t, "the encoder is served", func() bool {
		_, err := m.service.Backend().Encode(patient(t), "like", "text", false, false)
		return err == nil
	})
	for model, want := range map[string]fault.Code{"like": fault.PermissionDenied, "fake": fault.Unspecified} {
		ctx := withKey(t, auth.Key{Models: []string{"fake"}})
		if _, err := m.service.Backend().Encode(ctx, model, "text", false, false); fault.CodeOf(err) != want {
			t.Errorf("a key for fake encodes for %q: %v", model, err)
		}
	}
}

// TestEmbed_NamesTheTextThatIsAtFault has a tokenizer refuse a text. The tokenizer does not see inputs that are ids.
func TestEmbed_NamesTheTextThatIsAtFault(t *testing.T) {
	m := newMesh(t, 1, 1, router.Config{})
	m.spare("encoder", "shard-0-0", func(s *fakeShard) { s.model, s.digest, s.encoder = "like", "sha256:like", true })
	r := &routerv1.EmbedRequest{Model: "like", Inputs: []*routerv1.EmbedInput{
		{Input: &routerv1.EmbedInput_Text{Text: "good"}},
		{Input: &routerv1.EmbedInput_TokenIds{TokenIds: &routerv1.TokenIds{Ids: []uint32{1}}}},
		{Input: &routerv1.EmbedInput_Text{Text: "bad"}},
	}}
	var got error
	eventually(t, "the encoder is served", func() bool {
		_, got = m.service.Backend().Embed(patient(t), r)
		return fault.CodeOf(got) == fault.Invalid
	})
	if got.Error() != "inputs[2]: is bad" {
		t.Errorf("got %v", got)
	}
	m.service.Drain(patient(t))
	_, got = m.service.Backend().Embed(patient(t), r)
	if fault.CodeOf(got) != fault.Unavailable || !strings.Contains(got.Error(), "stopping") {
		t.Errorf("at a router that is drained: %v", got)
	}
}

// TestBackend_WatchEndsWithTheKey watches the topology by a key that expires meanwhile.
func TestBackend_WatchEndsWithTheKey(t *testing.T) {
	m := newMesh(t, 1, 1, router.Config{})
	start := time.Now()
	var late atomic.Bool
	ctx := withKeyAt(t, auth.Key{Expires: start.Add(time.Hour)}, func() time.Time {
		if late.Load() {
			return start.Add(2 * time.Hour)
		}
		return start
	})
	sent := 0
	err := m.service.Backend().Watch(ctx, func(*routerv1.Mesh) error {
		sent++
		late.Store(true)
		return nil
	})
	if fault.CodeOf(err) != fault.Unauthenticated || sent != 1 {
		t.Errorf("after %d topologies: %v", sent, err)
	}
}

// discard is a stream of Generate whose events nobody reads.
type discard struct {
	grpc.ServerStream
	ctx context.Context
}

func (d discard) Context() context.Context { return d.ctx }

func (discard) Send(*routerv1.GenerateResponse) error { return nil }

// TestService_Budget_PromptIsPaidOnceByTheHTTPAPIs runs a second choice. The HTTP APIs have paid for the prompt with
// the first one; a client over gRPC cannot say so.
func TestService_Budget_PromptIsPaidOnceByTheHTTPAPIs(t *testing.T) {
	m := newMesh(t, 1, 1, router.Config{})
	for name, tc := range map[string]struct {
		run  func(context.Context, *routerv1.GenerateRequest) error
		used int64
	}{
		"gRPC": {func(ctx context.Context, r *routerv1.GenerateRequest) error {
			return m.service.Generate(r, discard{ctx: ctx})
		}, 34},
		"HTTP": {func(ctx context.Context, r *routerv1.GenerateRequest) error {
			return m.service.Backend().Generate(ctx, r, discard{}.Send)
		}, 4},
	} {
		ctx := withKey(t, auth.Key{Tokens: 100})
		r := greedy(strings.Repeat("x", 30), 4)
		r.Sampling.Choice, r.Sampling.Choices = 1, 2
		if err := tc.run(ctx, r); err != nil {
			t.Fatal(err)
		}
		if _, tokens := auth.From(ctx).Meter().State(); tokens.Limit-tokens.Remaining != tc.used {
			t.Errorf("%s: %d tokens are used, want %d", name, tokens.Limit-tokens.Remaining, tc.used)
		}
	}
}

// TestService_Budget_LostRequestsCostNothingBeforeTheirFirstToken loses the only stage while it computes.
func TestService_Budget_LostRequestsCostNothingBeforeTheirFirstToken(t *testing.T) {
	for _, tc := range []struct {
		step   int // at which the stage is lost
		tokens bool
	}{{1, false}, {20, true}} {
		synctest.Test(t, func(t *testing.T) {
			m := newMesh(t, 1, 1, router.Config{})
			ctx := withKey(t, auth.Key{Tokens: 1000})
			stage := m.shards["shard-0-0"]
			stage.strike(tc.step, func() {
				m.network.Cut("shard-0-0", true)
				stage.mute() // else its stream to the sampler, which is not cut, may still bring a token
			})
			got := int64(0)
			count := func(r *routerv1.GenerateResponse) error {
				if r.GetToken() != nil {
					got++
				}
				return nil
			}
			err := m.service.Backend().Generate(ctx, greedy("cut short", 100), count)
			if fault.CodeOf(err) != fault.Unavailable || (got > 0) != tc.tokens {
				t.Fatalf("%d tokens, then %v", got, err)
			}
			want := int64(0)
			if tc.tokens {
				want = int64(len("cut short")) + got
			}
			if n := used(ctx); n != want {
				t.Errorf("lost after %d tokens: %d are used, want %d", got, n, want)
			}
		})
	}
}
