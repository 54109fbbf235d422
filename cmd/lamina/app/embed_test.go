package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/plan"
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

// tinyEncoder returns a folder with a tiny encoder and a tokenizer of 30 pieces for it: letters, and control tokens.
func tinyEncoder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"config.json", "model.safetensors"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "..", "pkg", "model", "testdata", "encoders", "bert", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pieces := map[string]int{"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
	var added []any
	for text, id := range pieces {
		added = append(added, map[string]any{"id": id, "content": text, "special": true})
	}
	for i := range 26 {
		pieces[string(rune('a'+i))] = 4 + i
	}
	ends := func(parts ...string) (out []any) {
		for _, p := range parts {
			kind := "SpecialToken"
			if p == "A" {
				kind = "Sequence"
			}
			out = append(out, map[string]any{kind: map[string]any{"id": p, "type_id": 0}})
		}
		return out
	}
	text, err := json.Marshal(map[string]any{
		"added_tokens": added, "normalizer": map[string]any{"type": "BertNormalizer", "lowercase": true,
			"clean_text": true, "handle_chinese_chars": true, "strip_accents": nil},
		"pre_tokenizer": map[string]any{"type": "BertPreTokenizer"},
		"model": map[string]any{"type": "WordPiece", "vocab": pieces, "unk_token": "[UNK]",
			"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
		"decoder": map[string]any{"type": "WordPiece", "prefix": "##", "cleanup": true},
		"post_processor": map[string]any{
			"type": "TemplateProcessing", "single": ends("[CLS]", "A", "[SEP]"), "pair": ends("[CLS]", "A", "[SEP]"),
			"special_tokens": map[string]any{
				"[CLS]": map[string]any{"id": "[CLS]", "ids": []int{2}, "tokens": []string{"[CLS]"}},
				"[SEP]": map[string]any{"id": "[SEP]", "ids": []int{3}, "tokens": []string{"[SEP]"}},
			},
		},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "tokenizer.json"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMesh_ServesAnEncoderAlone starts meshes that serve nothing but an encoder.
func TestMesh_ServesAnEncoderAlone(t *testing.T) {
	set := cpu.New(1)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	folder := tinyEncoder(t)
	var want []float32
	for _, stages := range []int{1, 2} {
		mesh, router := startMesh(t, ctx, app.MeshConfig{
			Model:   folder,
			Name:    "tiny",
			Stages:  stages,
			Kernels: app.Kernels{Set: set, Threads: 1},
			HTTP:    "127.0.0.1:0",
		})
		text := &routerv1.EmbedInput{Input: &routerv1.EmbedInput_Text{Text: "a b c"}}
		long := &routerv1.EmbedInput{Input: &routerv1.EmbedInput_Text{Text: strings.Repeat("z ", 40)}}
		ids := &routerv1.EmbedInput{Input: &routerv1.EmbedInput_TokenIds{TokenIds: &routerv1.TokenIds{
			Ids: []uint32{2, 4, 5, 6, 3}}}}
		resp, err := router.Embed(ctx, &routerv1.EmbedRequest{Inputs: []*routerv1.EmbedInput{text, long, ids},
			Truncate: true})
		if err != nil {
			t.Fatal(err)
		}
		got := resp.GetEmbeddings()
		if want == nil {
			want = got[0].GetValues()
		}
		if !slices.Equal(got[0].GetValues(), want) || !slices.Equal(got[2].GetValues(), want) ||
			got[0].GetTokens() != 5 || got[1].GetTokens() != 12 {
			t.Errorf("%d stages: got %v, want %v", stages, got, want)
		}
		_, err = router.Embed(ctx, &routerv1.EmbedRequest{Inputs: []*routerv1.EmbedInput{long}})
		if fault.CodeOf(rpc.FromStatus(err)) != fault.OutOfRange {
			t.Errorf("a long text: got %v", err)
		}
		models, err := router.ListModels(ctx, &routerv1.ListModelsRequest{})
		if m := models.GetModels(); err != nil || len(m) != 1 || !m[0].GetEncoder() || m[0].GetEmbedTokens() != 12 {
			t.Errorf("the models are %v (%v)", m, err)
		}
		stream, err := router.Generate(ctx, &routerv1.GenerateRequest{
			Prompt: &routerv1.GenerateRequest_Text{Text: "a"}, WaitForCapacity: new(uint32)})
		if err == nil {
			_, err = stream.Recv()
		}
		if err == nil {
			t.Error("an encoder generates text")
		}
		resp2, err := http.Get("http://" + mesh.HTTPAddr() + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		resp2.Body.Close()
		if resp2.StatusCode != http.StatusOK {
			t.Errorf("/readyz answers %d", resp2.StatusCode)
		}
	}
}

// TestMesh_PlacesAnEncoder lets a placer divide an encoder between two hosts that can hold a part of it each. Its
// embeddings are those of a mesh whose layers were given by flag. Nobody uses it, so it is unloaded, and the next text
// loads it again.
func TestMesh_PlacesAnEncoder(t *testing.T) {
	set := cpu.New(1)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	folder, kernels := tinyEncoder(t), app.Kernels{Set: set, Threads: 1}
	request := &routerv1.EmbedRequest{Inputs: []*routerv1.EmbedInput{
		{Input: &routerv1.EmbedInput_Text{Text: "a b c"}}, {Input: &routerv1.EmbedInput_Text{Text: "z"}}}}
	_, plain := startMesh(t, ctx, app.MeshConfig{Model: folder, Name: "tiny", Stages: 2, Kernels: kernels})
	want, err := plain.Embed(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	const positions = 256 // of a batch of texts
	_, router := startMesh(t, ctx, app.MeshConfig{
		Model: folder, Name: "tiny", Kernels: kernels, Auto: autoFleet(t, folder, positions, 1, 1),
		Placing: app.Placing{Settle: 100 * time.Millisecond, KVLeast: positions, KVMost: positions,
			Keeper: plan.KeeperConfig{Steady: 100 * time.Millisecond},
			Deploy: deploy.Config{Quiet: 300 * time.Millisecond}},
	})
	run := func(r *routerv1.DeployRequest) error {
		stream, err := router.Deploy(ctx, r)
		for err == nil {
			_, err = stream.Recv()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return rpc.FromStatus(err)
	}
	spans := func(m *routerv1.Mesh) (n int) {
		for _, member := range m.GetMembers() {
			n += len(member.GetHeld())
		}
		return n
	}
	request.Model = "tiny"
	embed := func() {
		t.Helper()
		got, err := router.Embed(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range got.GetEmbeddings() {
			if !slices.Equal(e.GetValues(), want.GetEmbeddings()[i].GetValues()) {
				t.Errorf("text %d: got %v, want %v", i, e.GetValues(), want.GetEmbeddings()[i].GetValues())
			}
		}
		if got.GetModel() != "tiny" || got.GetFingerprint() != want.GetFingerprint() {
			t.Errorf("answered by %s %s, want %s", got.GetModel(), got.GetFingerprint(), want.GetFingerprint())
		}
	}
	embed()
	placementOf(t, ctx, router, "that two hosts hold a part each", func(m *routerv1.Mesh) bool { return spans(m) == 2 })
	idle := uint64(1000)
	if err := run(&routerv1.DeployRequest{Model: "tiny", IdleMs: &idle}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		placementOf(t, ctx, router, "that it is unloaded", func(m *routerv1.Mesh) bool { return spans(m) == 0 })
		models, err := router.ListModels(ctx, &routerv1.ListModelsRequest{})
		if m := models.GetModels(); err != nil || len(m) != 1 || m[0].GetName() != "tiny" || !m[0].GetEncoder() {
			t.Errorf("while it is not loaded, the models are %v (%v)", m, err)
		}
		embed()
	}
}
