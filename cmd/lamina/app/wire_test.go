package app_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// TestMesh_HiddenStatesAsBFloat16 sends hidden states as bfloat16, which the fingerprint shows, and
// checks the metrics of each shard.
func TestMesh_HiddenStatesAsBFloat16(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	m, err := app.Start(ctx, app.MeshConfig{
		Kernels: app.Kernels{Set: ref.New[float32](), Threads: 2},
		Model:   shared(t, "models/stories260K/stories260K-f32.gguf"), Stages: 2, HTTP: "127.0.0.1:0",
		HiddenType: tensorv1.ElementType_ELEMENT_TYPE_BF16,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	conn, err := m.Router()
	if err != nil {
		t.Fatal(err)
	}
	stream, err := routerv1.NewRouterServiceClient(conn).Generate(ctx, &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_Text{Text: "Once upon a time"}, MaxTokens: 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	tokens, fingerprint := 0, ""
	for {
		r, err := stream.Recv()
		if err != nil {
			break
		}
		if r.GetToken() != nil {
			tokens++
		}
		fingerprint += r.GetStarted().GetFingerprint()
	}
	if tokens != 20 || !strings.HasSuffix(fingerprint, "/bf16") {
		t.Errorf("%d tokens of fingerprint %s", tokens, fingerprint)
	}
	resp, err := http.Get("http://" + m.HTTPAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	for _, metric := range []string{"lamina_shard_rows_total", "lamina_shard_batches_total",
		"lamina_shard_compute_seconds_total", "lamina_shard_kv_pages"} {
		for _, name := range []string{"shard-0-0", "shard-0-1"} {
			if !strings.Contains(string(text), metric+`{shard="`+name+`"}`) {
				t.Errorf("/metrics has no %s for %s", metric, name)
			}
		}
	}
}
