package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// writeAdapters writes adapters of a model with random values and returns their folders. Ranks and modules differ.
func writeAdapters(t testing.TB, file string, n int) []app.Adapter {
	t.Helper()
	return writeConfigs(t, file, n, func(i int) adapter.Config {
		c := adapter.Config{Rank: []int{8, 16, 4, 32}[i%4], Alpha: 16,
			Targets: adapter.Pattern{Regexp: adapter.AllLinear}}
		if i%2 == 1 {
			c.Targets = adapter.Pattern{Names: []string{"q_proj", "v_proj"}}
		}
		return c
	})
}

// writeRanks writes adapters of all matrices.
func writeRanks(t testing.TB, file string, ranks ...int) []app.Adapter {
	t.Helper()
	return writeConfigs(t, file, len(ranks), func(i int) adapter.Config {
		return adapter.Config{Rank: ranks[i], Alpha: 16, Targets: adapter.Pattern{Regexp: adapter.AllLinear}}
	})
}

func writeConfigs(t testing.TB, file string, n int, config func(i int) adapter.Config) []app.Adapter {
	t.Helper()
	files, err := model.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	var out []app.Adapter
	for i := range n {
		c := config(i)
		c.Base = file
		a, err := files.Spec.NewAdapterFor(c, uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(uint64(i), 5))
		for j := range a.Modules {
			for k := range a.Modules[j].B {
				a.Modules[j].B[k] = float32(r.NormFloat64() / math.Sqrt(float64(c.Rank)) / 4)
			}
		}
		out = append(out, app.Adapter{Name: fmt.Sprint("a", i), Dir: filepath.Join(t.TempDir(), fmt.Sprint("a", i))})
		if err := adapter.Write(out[i].Dir, a); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestMesh_AdaptersHoweverTheyAreComputed sends requests with four adapters and with none, 64 at once, to meshes that
// differ in stages, batches, cache, KV memory, draft tokens and faults. Every answer is the one that its request has
// alone.
func TestMesh_AdaptersHoweverTheyAreComputed(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	off := time.Duration(-1)
	for _, m := range sameModels(t) {
		m.adapters = writeAdapters(t, m.file, 4)
		saveModules(t, m.file, m.adapters[1].Dir, "lm_head", "k_proj", "model.norm")
		saveModules(t, m.file, m.adapters[2].Dir, "embed_tokens", "input_layernorm")
		list := askedFor(max(64, m.requests), m.vocab, min(m.longest, 40), min(m.tokens, 20))
		for i := range list { // a family of four shares the beginning of a prompt, and pairs share the adapter
			if which := i / 2 % 5; which > 0 {
				list[i].adapter = m.adapters[which-1].Name
			}
		}
		var want [][]uint32
		for _, c := range []layout{
			{stages: 1, replicas: 1, atOnce: 1, cache: off},
			{stages: 1, replicas: 1, atOnce: 64, cache: off},
			{stages: 2, replicas: 1, atOnce: 64, inFlight: 3},
			{stages: 2, replicas: 1, atOnce: 16, positions: m.pool, speculate: 3, chunk: 16},
			{stages: 1, replicas: 2, atOnce: 12, lost: "shard-0-0"},
			{stages: 2, replicas: 2, atOnce: 12, lost: "shard-0-1", inFlight: 3},
			{stages: 2, replicas: 2, atOnce: 8, lost: "shard-1-1", replaced: "first", inFlight: 3},
			{stages: 3, replicas: 1, atOnce: 6, broken: "shard-0-2", inFlight: 4},
		} {
			t.Run(fmt.Sprintf("%s/%+v", m.name, c), func(t *testing.T) {
				got := m.answers(t, c, list, set)
				if want == nil {
					want = got
				}
				for i := range got {
					if !slices.Equal(got[i], want[i]) {
						t.Errorf("request %d with adapter %q: %v, want %v", i, list[i].adapter, got[i], want[i])
					}
				}
			})
		}
		bare := slices.Clone(list)
		for i := range bare {
			bare[i].adapter = ""
		}
		base := m.answers(t, layout{stages: 1, replicas: 1, atOnce: 64, cache: off}, bare, set)
		changed := 0
		for i := range list {
			switch same := slices.Equal(base[i], want[i]); {
			case list[i].adapter == "" && !same:
				t.Errorf("request %d without an adapter: %v, want %v", i, want[i], base[i])
			case list[i].adapter != "" && !same:
				changed++
			}
		}
		if changed < len(list)/2 {
			t.Errorf("adapters have changed %d of %d answers", changed, len(list))
		}
	}
}

// TestMesh_AdapterOfPEFT compares the probabilities that a mesh reports for the last position with those of PEFT's
// logits.
func TestMesh_AdapterOfPEFT(t *testing.T) {
	for _, name := range []string{"llama", "qwen2"} {
		dir := shared(t, "models/tiny-lora", name)
		text, err := os.ReadFile(filepath.Join(dir, "expected.json"))
		if err != nil {
			t.Fatal(err)
		}
		var want struct {
			IDs    []uint32  `json:"ids"`
			Logits []float64 `json:"last_logits"`
		}
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		var sum float64
		for _, l := range want.Logits {
			sum += math.Exp(l)
		}
		router := mesh(t, app.MeshConfig{Model: shared(t, "models/tiny", name), Stages: 2,
			Adapters: []app.Adapter{{Name: "peft", Dir: dir}}})
		stream, err := router.Generate(t.Context(), &routerv1.GenerateRequest{
			Model:     name + ":peft",
			Prompt:    &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: want.IDs}},
			MaxTokens: 1, TopLogprobs: 20, IgnoreEnd: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		compared := 0
		for {
			r, err := stream.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range r.GetToken().GetTop() {
				compared++
				if p := want.Logits[c.GetId()] - math.Log(sum); math.Abs(p-float64(c.GetLogprob())) > 1e-3 {
					t.Errorf("%s: id %d has log-probability %.5f, want %.5f", name, c.GetId(), c.GetLogprob(), p)
				}
			}
		}
		if compared != 20 {
			t.Errorf("%s: %d candidates", name, compared)
		}
	}
}

// TestMesh_AdaptersAreLoadedLive loads, replaces, restores and unloads an adapter over gRPC, and uses it over HTTP.
func TestMesh_AdaptersAreLoadedLive(t *testing.T) {
	file := shared(t, "models/stories260K/stories260K-f32.gguf")
	adapters := writeAdapters(t, file, 2)
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m, router := startMesh(t, ctx, app.MeshConfig{
		Model: file, Name: "stories", Stages: 2, HTTP: "127.0.0.1:0", AdapterDir: t.TempDir(),
		Kernels: app.Kernels{Set: set, Threads: 2},
	})
	load := func(open *routerv1.LoadAdapterOpen, dir string) (*routerv1.LoadAdapterResponse, error) {
		return sendFolder(t, ctx, router, open, dir)
	}
	post := func(name string) (int, string) {
		t.Helper()
		body := fmt.Sprintf(`{"model": %q, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}`, name)
		resp, err := http.Post("http://"+m.HTTPAddr()+"/v1/completions", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var out struct {
			Model   string
			Choices []struct{ Text string }
			Error   struct{ Code string }
		}
		if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			return resp.StatusCode, out.Error.Code
		}
		if out.Model != name {
			t.Errorf("the answer is of model %q, want %q", out.Model, name)
		}
		return resp.StatusCode, out.Choices[0].Text
	}
	models := func() (ids []string) {
		resp, err := http.Get("http://" + m.HTTPAddr() + "/v1/models")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var out struct {
			Data []struct{ ID, Parent, Root string }
		}
		if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		for _, m := range out.Data {
			ids = append(ids, m.ID)
			if (m.Parent == "stories") != (m.ID != "stories") || (m.Root == "") != (m.Parent == "") {
				t.Errorf("a model is %+v", m)
			}
		}
		return ids
	}
	if code, name := post("stories:x"); code != http.StatusNotFound || name != "model_not_found" {
		t.Errorf("before it is loaded: %d %s", code, name)
	}
	_, base := post("stories")
	texts := []string{base}
	for _, a := range adapters {
		if _, err := load(&routerv1.LoadAdapterOpen{Name: "x"}, a.Dir); err != nil {
			t.Fatal(err)
		}
		_, text := post("stories:x")
		texts = append(texts, text)
	}
	if texts[1] == base || texts[2] == texts[1] {
		t.Errorf("the texts are %q", texts)
	}
	if got := models(); !slices.Equal(got, []string{"stories", "stories:x"}) {
		t.Errorf("the models are %v", got)
	}
	if _, err := load(&routerv1.LoadAdapterOpen{Name: "x", Digest: "previous"}, ""); err != nil {
		t.Fatal(err)
	}
	if _, text := post("stories:x"); text != texts[1] {
		t.Errorf("after the roll back the text is %q, want %q", text, texts[1])
	}
	if _, text := post("stories"); text != base {
		t.Errorf("the text of the base is %q, want %q", text, base)
	}
	other := writeAdapters(t, shared(t, "models/tiny/llama"), 1)[0]
	_, err := load(&routerv1.LoadAdapterOpen{Name: "x"}, other.Dir)
	if status.Code(err) != codes.DataLoss || !strings.Contains(err.Error(), "model.layers.0.mlp.down_proj: want 172 inputs") {
		t.Errorf("an adapter of another base: %v", err)
	}
	_, err = load(&routerv1.LoadAdapterOpen{Name: "x"}, savesNorm(t, adapters[0].Dir))
	if status.Code(err) != codes.DataLoss || !strings.Contains(err.Error(), otherNorm) {
		t.Errorf("an adapter with a norm of another base: %v", err)
	}
	if _, err := router.UnloadAdapter(ctx, &routerv1.UnloadAdapterRequest{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	if code, _ := post("stories:x"); code != http.StatusNotFound {
		t.Errorf("after the unload: %d", code)
	}
	if got := models(); !slices.Equal(got, []string{"stories"}) {
		t.Errorf("after the unload the models are %v", got)
	}
}

// saveModules gives the adapter in a folder modules with random values.
func saveModules(t *testing.T, file, dir string, names ...string) {
	t.Helper()
	files, err := model.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	a, err := adapter.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	a.Save = names
	params, err := files.Spec.SavedParams(&a.Config)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(uint64(len(names)), 6))
	for _, p := range params {
		n, middle := p.Shape[0], 1.0
		if len(p.Shape) == 2 {
			n, middle = n*p.Shape[1], 0
		}
		v := adapter.Saved{Name: p.Name, Shape: p.Shape}
		for range n {
			v.Data = append(v.Data, float32(middle+0.1*r.NormFloat64()))
		}
		a.Saved = append(a.Saved, v)
	}
	a.Modules = slices.DeleteFunc(a.Modules, func(m adapter.Module) bool {
		_, ok := a.Replaced(m.Name + ".weight")
		return ok
	})
	if err := adapter.Write(dir, a); err != nil {
		t.Fatal(err)
	}
}

// otherNorm is what errors say of the adapter of savesNorm.
const otherNorm = "model.norm.weight: want shape [64], got [2]"

// savesNorm writes an adapter with a norm of another base, and returns its folder.
func savesNorm(t *testing.T, from string) string {
	t.Helper()
	a, err := adapter.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "saved")
	a.Save = []string{"model.norm"}
	a.Saved = []adapter.Saved{{Name: "model.norm.weight", Shape: []int{2}, Data: []float32{1, 2}}}
	if err := adapter.Write(dir, a); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestStart_RefusesAdaptersThatDoNotFit names the adapter and what is wrong before anything is served.
func TestStart_RefusesAdaptersThatDoNotFit(t *testing.T) {
	file := shared(t, "models/stories260K/stories260K-f32.gguf")
	good, other := writeAdapters(t, file, 1)[0], writeAdapters(t, shared(t, "models/tiny/llama"), 1)[0]
	set := cpu.New(1)
	t.Cleanup(set.Close)
	for _, tc := range []struct {
		a    app.Adapter
		max  int64
		code fault.Code
		want string
	}{
		{app.Adapter{Name: "a b", Dir: good.Dir}, 0, fault.Invalid, "name: want 1 to 64 letters"},
		{app.Adapter{Name: "x", Dir: t.TempDir()}, 0, fault.Unspecified, "adapter_config.json"},
		{app.Adapter{Name: "x", Dir: other.Dir}, 0, fault.DataLoss, "model.layers.0.mlp.down_proj: want 172 inputs"},
		{app.Adapter{Name: "x", Dir: savesNorm(t, good.Dir)}, 0, fault.DataLoss, otherNorm},
		{app.Adapter{Name: "x", Dir: good.Dir}, 1000, fault.Exhausted, "bytes, and adapters have 0 of 1000 already"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		m, err := app.Start(ctx, app.MeshConfig{Model: file, Adapters: []app.Adapter{tc.a}, AdapterBytes: tc.max,
			Kernels: app.Kernels{Set: set, Threads: 1}})
		cancel()
		if err == nil {
			t.Errorf("%v was accepted", tc.a)
			_ = m.Close() // it has served nothing
			continue
		}
		if !strings.Contains(err.Error(), tc.want) || tc.code != fault.Unspecified && fault.CodeOf(err) != tc.code {
			t.Errorf("got %v (%v), want %q", err, fault.CodeOf(err), tc.want)
		}
	}
	for _, text := range []string{"", "x", "x=", "=d", "m:=d"} {
		if a, err := app.ParseAdapter(text); err == nil {
			t.Errorf("%q is %v", text, a)
		}
	}
	if a, err := app.ParseAdapter("qwen2.5:0.5b:x=a=b"); err != nil || a != (app.Adapter{Model: "qwen2.5:0.5b", Name: "x", Dir: "a=b"}) {
		t.Errorf("got %v, %v", a, err)
	}
}
