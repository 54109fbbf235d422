package router_test

import (
	"testing"
	"testing/synctest"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// The only host that holds an encoder is lost. A call that comes at once waits until another one holds it.
func TestEmbed_WaitsForLayersOfALostHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, hosts := deployMesh(t, router.Placement{}, 2, 1, map[string]string{digest: "fake"})
		for _, h := range hosts {
			h.mu.Lock()
			h.encoder = true
			h.mu.Unlock()
		}
		embed := func() error {
			_, err := m.client.Embed(t.Context(), &routerv1.EmbedRequest{Inputs: []*routerv1.EmbedInput{
				{Input: &routerv1.EmbedInput_TokenIds{TokenIds: &routerv1.TokenIds{Ids: []uint32{1}}}}}})
			return err
		}
		eventually(t, "the encoder is served", func() bool { return embed() == nil })
		for _, h := range hosts {
			if h.holds(digest) {
				m.stops[h.id]()
			}
		}
		if err := embed(); err != nil {
			t.Errorf("after the loss: %v", err)
		}
	})
}
