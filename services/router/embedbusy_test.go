package router_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// used returns how many tokens of its budget the caller of a context has used.
func used(ctx context.Context) int64 {
	_, tokens := auth.From(ctx).Meter().State()
	return tokens.Limit - tokens.Remaining
}

// TestEmbed_AtABusyFleet asks for embeddings by a key with a budget. Calls that the only shard refuses cost nothing,
// and those of a batch reach the shard without priority.
func TestEmbed_AtABusyFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, hosts := deployMesh(t, router.Placement{OnlyDeployed: true}, 1, 1, map[string]string{digest: "fake"})
		h := hosts[0]
		h.mu.Lock()
		h.encoder = true
		h.mu.Unlock()
		var err error
		eventually(t, "the deployment", func() bool { // until a router knows the model it is refused
			_, err = m.deploy(t.Context(), &routerv1.DeployRequest{Model: "fake"})
			return err == nil || m.deployment("fake") != nil
		})
		if err != nil {
			t.Fatal(err)
		}
		busy := func(calls int) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.busy, h.lows = calls, nil
		}
		ctx := withKey(t, auth.Key{Tokens: 100})
		r := &routerv1.EmbedRequest{Model: "fake", Inputs: []*routerv1.EmbedInput{
			{Input: &routerv1.EmbedInput_TokenIds{TokenIds: &routerv1.TokenIds{Ids: []uint32{1, 2, 3}}}}}}
		busy(1000)
		if _, err := m.service.Backend().Embed(ctx, r); fault.CodeOf(err) != fault.Unavailable || used(ctx) != 0 {
			t.Errorf("refused: %v, and %d tokens are used", err, used(ctx))
		}
		busy(0)
		for _, ctx := range []context.Context{ctx, router.Lowest(ctx)} {
			if _, err := m.service.Backend().Embed(ctx, r); err != nil {
				t.Error(err)
			}
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if used(ctx) != 6 || !slices.Equal(h.lows, []bool{false, true}) {
			t.Errorf("%d tokens are used, and the calls without priority are %v", used(ctx), h.lows)
		}
	})
}
