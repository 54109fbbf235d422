package app_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/auth"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// TestTenants_TheCacheTellsNothingOfOthers is promise C11: a tenant probes prompts, half of which another tenant has
// sent before. Whether a prompt is cached shows in the count of cached tokens and in the time to the first token.
func TestTenants_TheCacheTellsNothingOfOthers(t *testing.T) {
	router := mesh(t, app.MeshConfig{Model: shared(t, "models/stories260K/stories260K-f32.gguf")})
	// send returns when the stream has ended, because the pages of a prompt are kept when its request ends.
	send := func(tenant string, ids []uint32) (cached uint32, first time.Duration) {
		t.Helper()
		ctx := metadata.AppendToOutgoingContext(t.Context(), auth.TenantKey, tenant)
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		begun := time.Now()
		stream, err := router.Generate(ctx, &routerv1.GenerateRequest{MaxTokens: 1,
			Prompt: &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: ids}}})
		if err != nil {
			t.Fatal(err)
		}
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return cached, first
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.GetToken() != nil && first == 0 {
				first = time.Since(begun)
			}
			if f := r.GetFinished(); f != nil {
				cached = f.GetUsage().GetCachedTokens()
			}
		}
	}
	random := rand.New(rand.NewPCG(5, 6))
	var primed, fresh []time.Duration
	prompts := 24
	if os.Getenv("LAMINA_SLOW") != "" {
		prompts = 400
	}
	for i := range prompts {
		ids := make([]uint32, 64)
		for j := range ids {
			ids[j] = 3 + random.Uint32N(500)
		}
		if i%2 == 0 {
			send("victim", ids)
		}
		cached, first := send("prober", ids)
		if cached != 0 {
			t.Fatalf("prompt %d: the prober gets %d cached tokens of the victim", i, cached)
		}
		if i%2 == 0 {
			primed = append(primed, first)
			if cached, _ := send("victim", ids); cached == 0 {
				t.Fatalf("prompt %d: the victim's own prompt is not cached, so the test shows nothing", i)
			}
		} else {
			fresh = append(fresh, first)
		}
	}
	faster, pairs := 0.0, 0.0
	for _, a := range primed {
		for _, b := range fresh {
			pairs++
			if a < b {
				faster++
			}
		}
	}
	t.Logf("the probe tells primed from fresh prompts by time with an AUC of %.3f", faster/pairs)
}
