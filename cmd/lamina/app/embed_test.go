package app_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// TestMesh_EmbeddingsDependOnTheTextAlone compares the embeddings of texts over one and three stages, in one
// batch and alone, and asks for them over HTTP.
func TestMesh_EmbeddingsDependOnTheTextAlone(t *testing.T) {
	set := cpu.New(1)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	texts := []string{"The prince looked at her", "and", strings.Repeat("so on and ", 30)}
	var want [][]float32
	for _, stages := range []int{1, 3} {
		mesh, router := startMesh(t, ctx, app.MeshConfig{
			Model: "../../../models/lamina-tolstoy", Stages: stages, Kernels: app.Kernels{Set: set, Threads: 1},
			HTTP: "127.0.0.1:0",
		})
		embed := func(texts ...string) [][]float32 {
			r := &routerv1.EmbedRequest{}
			for _, text := range texts {
				r.Inputs = append(r.Inputs, &routerv1.EmbedInput{Input: &routerv1.EmbedInput_Text{Text: text}})
			}
			resp, err := router.Embed(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			var out [][]float32
			for _, e := range resp.GetEmbeddings() {
				out = append(out, e.GetValues())
			}
			return out
		}
		got := embed(texts...)
		if want == nil {
			want = got
		}
		for i, text := range texts {
			if alone := embed(text)[0]; !slices.Equal(got[i], want[i]) || !slices.Equal(alone, want[i]) {
				t.Errorf("text %d has other bits over %d stages or alone", i, stages)
			}
		}
		if slices.Equal(got[0], got[1]) {
			t.Error("two texts have the same embedding")
		}
		for _, r := range []*routerv1.EmbedRequest{{}, {Model: "other"},
			{Inputs: []*routerv1.EmbedInput{{}}},
			{Inputs: []*routerv1.EmbedInput{{Input: &routerv1.EmbedInput_TokenIds{
				TokenIds: &routerv1.TokenIds{Ids: []uint32{1 << 30}}}}}},
			{Inputs: []*routerv1.EmbedInput{{Input: &routerv1.EmbedInput_Text{Text: strings.Repeat("x ", 9999)}}}}} {
			_, err := router.Embed(ctx, r)
			if code := fault.CodeOf(rpc.FromStatus(err)); code != fault.Invalid && code != fault.OutOfRange {
				t.Errorf("%v: got %v", r, err)
			}
		}
		for _, path := range []string{"/v1/embeddings", "/api/embed"} {
			resp, err := http.Post(
				"http://"+mesh.HTTPAddr()+path,
				"application/json",
				strings.NewReader(`{"input":"and"}`),
			)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), `"embedding`) {
				t.Errorf("%s: %d %s (%v)", path, resp.StatusCode, text, err)
			}
		}
	}
}
