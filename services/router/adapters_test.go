package router_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/services/router"
)

// withAdapter is a greedy request that names an adapter.
func withAdapter(name, prompt string, n int) *routerv1.GenerateRequest {
	r := greedy(prompt, n)
	r.Adapter = name
	return r
}

// mustAnswer runs a request and compares its text with the one that its adapter gives.
func (m *mesh) mustAnswer(r *routerv1.GenerateRequest, n int, digest []byte, each func(n int)) answer {
	m.t.Helper()
	a, err := m.generate(m.t.Context(), r, each)
	if err != nil {
		m.t.Fatal(err)
	}
	if want := expectWith(r.GetText(), n, digest); a.text != want {
		m.t.Errorf("the text is %q, want %q", a.text, want)
	}
	return a
}

// TestService_AdapterIsChosenPerRequest names adapters in every way that there is, beside requests without one.
func TestService_AdapterIsChosenPerRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dirs, digests := [2]string{}, [2][]byte{}
		for i := range dirs {
			dirs[i], digests[i] = adapterFolder(t, i)
		}
		m := newMesh(t, 2, 1, router.Config{Adapters: []router.AdapterSource{
			{Name: "a", Dir: dirs[0]}, {Model: "fake", Name: "b", Dir: dirs[1]},
		}})
		if err := m.service.AwaitAdapters(patient(t)); err != nil {
			t.Fatal(err)
		}
		hex := func(d []byte) string { return fmt.Sprintf("sha256:%x", d) }
		var wg sync.WaitGroup
		for i, tc := range []struct {
			model, adapter, name string
			digest               []byte
		}{
			{"", "", "fake", nil}, {"fake", "", "fake", nil}, {digest, "", "fake", nil},
			{"fake:a", "", "fake:a", digests[0]}, {digest + ":b", "", "fake:b", digests[1]},
			{":b", "", "fake:b", digests[1]},
			{"", "a", "fake:a", digests[0]}, {"fake", "b", "fake:b", digests[1]}, {"b", "", "fake:b", digests[1]},
			{"fake:a", "a", "fake:a", digests[0]}, {"fake", hex(digests[0]), "fake:" + hex(digests[0]), digests[0]},
		} {
			wg.Go(func() {
				r := greedy(fmt.Sprint("prompt ", i%3), 40)
				r.Model, r.Adapter = tc.model, tc.adapter
				a, err := m.generate(t.Context(), r, nil)
				if err != nil {
					t.Errorf("%q, %q: %v", tc.model, tc.adapter, err)
					return
				}
				want := ""
				if tc.digest != nil {
					want = hex(tc.digest)
				}
				if a.text != expectWith(r.GetText(), 40, tc.digest) || a.started.GetModel() != tc.name ||
					a.started.GetAdapter() != want || a.started.GetDigest() != digest ||
					!strings.HasSuffix(a.started.GetFingerprint(), want) {
					t.Errorf("%q, %q: text %q of %v", tc.model, tc.adapter, a.text, a.started)
				}
			})
		}
		wg.Wait()
		for _, tc := range []struct {
			model, adapter, want string
			code                 codes.Code
		}{
			{"fake:c", "", `find adapter "c" of model "fake": it has a, b`, codes.NotFound},
			{"", "c", `find adapter "c" of model "fake": it has a, b`, codes.NotFound},
			{"fake:a", "b", `"b" is not the adapter "a"`, codes.InvalidArgument},
			{"none:a", "", `find model "none:a"`, codes.NotFound},
			{"fake", "sha256:" + strings.Repeat("0", 64), "it has a, b", codes.NotFound},
		} {
			r := greedy("x", 4)
			r.Model, r.Adapter = tc.model, tc.adapter
			_, err := m.generate(t.Context(), r, nil)
			if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%q, %q: %v", tc.model, tc.adapter, err)
			}
		}
		resp, err := m.client.ListModels(t.Context(), &routerv1.ListModelsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		listed := resp.GetModels()[0].GetAdapters()
		if len(listed) != 2 || listed[0].GetName() != "a" || listed[1].GetDigest() != hex(digests[1]) ||
			listed[0].GetPipelines() != 1 || listed[0].GetRank() != 1 || listed[0].GetModules() != 1 ||
			listed[0].GetBytes() != 12 || listed[0].GetRequests() != 0 || listed[0].GetError() != "" {
			t.Errorf("the adapters are %v", listed)
		}
	})
}

// TestService_PrefixCacheIsKeptByAdapter sends the same prompt under two adapters and none: each finds only what
// it has cached itself.
func TestService_PrefixCacheIsKeptByAdapter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{AdapterDir: t.TempDir()})
		prompt := strings.Repeat("a long common prefix ", 8)
		digests := [][]byte{nil}
		names := []string{""}
		for i := range 2 {
			dir, d := adapterFolder(t, i)
			names, digests = append(names, string(rune('a'+i))), append(digests, d)
			if _, err := upload(t, m.client, names[i+1], dir, nil); err != nil {
				t.Fatal(err)
			}
		}
		for round := range 2 {
			for i, name := range names {
				a := m.mustAnswer(withAdapter(name, prompt, 20), 20, digests[i], nil)
				cached := a.finished.GetUsage().GetCachedTokens()
				if (cached > 0) != (round > 0) {
					t.Errorf("round %d, adapter %q: %d tokens were cached", round, name, cached)
				}
			}
		}
		// Under another name the same adapter has the same pages; under the same name another one has none.
		dir, d := adapterFolder(t, 0)
		if _, err := upload(t, m.client, "other", dir, nil); err != nil {
			t.Fatal(err)
		}
		a := m.mustAnswer(withAdapter("other", prompt, 20), 20, d, nil)
		if a.finished.GetUsage().GetCachedTokens() == 0 {
			t.Error("an adapter under another name has found nothing")
		}
		dir, d = adapterFolder(t, 7)
		if _, err := upload(t, m.client, "a", dir, nil); err != nil {
			t.Fatal(err)
		}
		if a := m.mustAnswer(withAdapter("a", prompt, 20), 20, d, nil); a.finished.GetUsage().GetCachedTokens() != 0 {
			t.Error("another adapter under the same name has found pages")
		}
	})
}

// TestLoadAdapter_MovesANameWithoutAFailedStream points a name to other adapters while requests run. They keep the
// one that they have begun with; new ones get the new one. A former one comes back by one call. Shards hold what is
// in use and no more.
func TestLoadAdapter_MovesANameWithoutAFailedStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 2, router.Config{AdapterDir: t.TempDir()})
		var dirs []string
		var digests [][]byte
		for i := range 3 {
			dir, d := adapterFolder(t, i)
			dirs, digests = append(dirs, dir), append(digests, d)
		}
		hex := func(i int) string { return fmt.Sprintf("sha256:%x", digests[i]) }
		if resp, err := upload(t, m.client, "x", dirs[0], nil); err != nil || resp.GetReplaced() != "" ||
			resp.GetAdapter().GetDigest() != hex(0) || resp.GetAdapter().GetPipelines() != 2 {
			t.Fatal(resp, err)
		}
		held := func(n int) {
			t.Helper()
			eventually(t, fmt.Sprint("every shard holds ", n, " adapters"), func() bool {
				return !slices.ContainsFunc([]string{"shard-0-0", "shard-0-1", "shard-1-0", "shard-1-1"},
					func(name string) bool { return m.shards[name].loaded() != n })
			})
		}
		held(1)
		var wg sync.WaitGroup
		began := make(chan struct{})
		m.slow(20 * time.Millisecond)
		begin := sync.OnceFunc(func() { close(began) })
		wg.Go(func() { // it runs while the name moves
			defer begin() // if it fails
			m.mustAnswer(withAdapter("x", "old request", 900), 900, digests[0], func(n int) {
				if n == 5 {
					begin()
				}
			})
		})
		<-began
		if resp, err := upload(t, m.client, "x", dirs[1], nil); err != nil || resp.GetReplaced() != hex(0) ||
			!slices.Equal(resp.GetAdapter().GetEarlier(), []string{hex(0)}) {
			t.Fatal(resp, err)
		}
		m.mustAnswer(withAdapter("x", "new request", 30), 30, digests[1], nil)
		held(2)
		m.slow(0)
		wg.Wait()
		held(1)
		point := func(want string, i int) {
			t.Helper()
			resp, err := load(t, m.client, &routerv1.LoadAdapterOpen{Name: "x", Digest: want}, nil)
			if err != nil || resp.GetAdapter().GetDigest() != hex(i) {
				t.Fatal(resp, err)
			}
			m.mustAnswer(withAdapter("x", "new request", 30), 30, digests[i], nil)
		}
		point("previous", 0)
		point("previous", 1)
		if _, err := upload(t, m.client, "y", dirs[2], nil); err != nil {
			t.Fatal(err)
		}
		point(hex(2)[:17], 2)
		point(hex(0), 0)
		held(2)
		for _, tc := range []struct {
			open *routerv1.LoadAdapterOpen
			code codes.Code
		}{
			{&routerv1.LoadAdapterOpen{Name: "x", Digest: "sha256:ab"}, codes.InvalidArgument},
			{&routerv1.LoadAdapterOpen{Name: "x", Digest: strings.Repeat("f", 64)}, codes.NotFound},
			{&routerv1.LoadAdapterOpen{Name: "z", Digest: "previous"}, codes.NotFound},
			{&routerv1.LoadAdapterOpen{Name: "x", Model: "none", Digest: "previous"}, codes.NotFound},
		} {
			if _, err := load(t, m.client, tc.open, nil); status.Code(err) != tc.code {
				t.Errorf("%v: %v", tc.open, err)
			}
		}
		resp, err := m.client.UnloadAdapter(t.Context(), &routerv1.UnloadAdapterRequest{Name: "x"})
		if err != nil || resp.GetRequests() != 0 {
			t.Fatal(resp, err)
		}
		held(1)
		if _, err := m.generate(t.Context(), withAdapter("x", "gone", 4), nil); status.Code(err) != codes.NotFound {
			t.Errorf("after the unload: %v", err)
		}
		if _, err := m.client.UnloadAdapter(t.Context(), &routerv1.UnloadAdapterRequest{Name: "x"}); status.Code(err) !=
			codes.NotFound {
			t.Errorf("a second unload: %v", err)
		}
	})
}

// TestLoadAdapter_RefusesHostileOnes sends what is no adapter, or none that can be served. Nothing changes.
func TestLoadAdapter_RefusesHostileOnes(t *testing.T) {
	store := t.TempDir()
	m := newMesh(t, 1, 1, router.Config{AdapterDir: store})
	dir, _ := adapterFolder(t, 1)
	prefix := "base_model.model.model.layers.0.self_attn.q_proj."
	file := func(a []float32, aShape []int, b []float32, bShape []int) func(*routerv1.LoadAdapterOpen, *[]byte) {
		return func(o *routerv1.LoadAdapterOpen, data *[]byte) {
			tensors := map[string][]float32{prefix + "lora_A.weight": a}
			if b != nil {
				tensors[prefix+"lora_B.weight"] = b
			}
			shapes := map[string][]int{prefix + "lora_A.weight": aShape, prefix + "lora_B.weight": bShape}
			*data = tensorsOf(t, tensors, shapes)
			o.Size = uint64(len(*data))
		}
	}
	config := func(old, new string) func(*routerv1.LoadAdapterOpen, *[]byte) {
		return func(o *routerv1.LoadAdapterOpen, _ *[]byte) {
			if !strings.Contains(string(o.GetConfig()), old) {
				t.Fatalf("no %q in %s", old, o.GetConfig())
			}
			o.Config = []byte(strings.Replace(string(o.GetConfig()), old, new, 1))
		}
	}
	nan := float32(math.NaN())
	for _, tc := range []struct {
		want   string
		code   codes.Code
		change func(*routerv1.LoadAdapterOpen, *[]byte)
	}{
		{"name: want 1 to 64 letters", codes.InvalidArgument, func(o *routerv1.LoadAdapterOpen, _ *[]byte) { o.Name = "a:b" }},
		{"name: want 1 to 64 letters", codes.InvalidArgument,
			func(o *routerv1.LoadAdapterOpen, _ *[]byte) { o.Name = "../../etc" }},
		{"q_proj.lora_A.weight: element 1 is NaN", codes.DataLoss, file([]float32{1, nan}, []int{1, 2}, []float32{1}, []int{1, 1})},
		{"q_proj.lora_B.weight: is missing", codes.DataLoss, file([]float32{1, 1}, []int{1, 2}, nil, nil)},
		{"q_proj.lora_A.weight: want rank 1 of adapter_config.json, got 2", codes.DataLoss,
			file([]float32{1, 1}, []int{2, 1}, []float32{1, 1}, []int{1, 2})},
		{"q_proj.lora_B.weight: want a shape [N,1], got [1 2]", codes.DataLoss,
			file([]float32{1, 1}, []int{1, 2}, []float32{1, 1}, []int{1, 2})},
		{"r: want 1..4096, got 1000000", codes.DataLoss, config(`"r": 1`, `"r": 1000000`)},
		{"peft_type \"IA3\" is not supported", codes.Unimplemented, config(`"LORA"`, `"IA3"`)},
		{"read adapter_config.json", codes.DataLoss, config(`{`, ``)},
		{"safetensors", codes.DataLoss, func(o *routerv1.LoadAdapterOpen, data *[]byte) {
			*data = []byte(strings.Repeat("x", 400))
			o.Size = 400
		}},
		{"is longer than", codes.InvalidArgument, func(o *routerv1.LoadAdapterOpen, _ *[]byte) { o.Size -= 8 }},
		{"ended before the adapter was complete", codes.InvalidArgument,
			func(o *routerv1.LoadAdapterOpen, _ *[]byte) { o.Size += 8 }},
		{"open.size: want 1..", codes.InvalidArgument, func(o *routerv1.LoadAdapterOpen, _ *[]byte) { o.Size = 0 }},
		{"open.size: want 1..", codes.InvalidArgument, func(o *routerv1.LoadAdapterOpen, _ *[]byte) { o.Size = 1 << 50 }},
	} {
		_, err := upload(t, m.client, "x", dir, tc.change)
		if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) ||
			strings.Contains(err.Error(), store) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
	shard := m.shards["shard-0-0"]
	shard.mu.Lock()
	shard.refuseLoad = fault.New(fault.Exhausted, "it takes 12 bytes, and adapters have 9 of 10 already")
	shard.mu.Unlock()
	_, err := upload(t, m.client, "x", dir, nil)
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "9 of 10 already") {
		t.Errorf("a shard without room: %v", err)
	}
	list, err := m.client.ListAdapters(t.Context(), &routerv1.ListAdaptersRequest{})
	if err != nil || len(list.GetAdapters()) != 0 || shard.loaded() != 0 {
		t.Errorf("something is loaded: %v, %v", list, err)
	}
	left, err := filepath.Glob(filepath.Join(store, ".receive-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
	shard.mu.Lock()
	shard.refuseLoad = nil
	shard.mu.Unlock()
	if _, err := upload(t, m.client, "x", dir, nil); err != nil {
		t.Errorf("with room: %v", err)
	}
	without := newMesh(t, 1, 1, router.Config{})
	if _, err := upload(t, without.client, "x", dir, nil); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without a folder: %v", err)
	}
}

// TestService_AdapterFollowsItsRequest kills stages under requests with adapters. They go on with the same text on
// another pipeline, or over a shard that takes the place of the lost one and has loaded the adapters before.
func TestService_AdapterFollowsItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, d := adapterFolder(t, 3)
		other, od := adapterFolder(t, 4)
		sources := []router.AdapterSource{{Name: "a", Dir: dir}, {Name: "b", Dir: other}}
		for _, spare := range []bool{false, true} {
			replicas := 2
			if spare {
				replicas = 1
			}
			metrics := prometheus.NewRegistry()
			m := newMesh(t, 2, replicas, router.Config{Metrics: metrics, Adapters: sources})
			if err := m.service.AwaitAdapters(patient(t)); err != nil {
				t.Fatal(err)
			}
			if spare {
				m.spare("spare", "shard-0-1")
				eventually(t, "the spare has the adapters", func() bool { return m.shards["spare"].loaded() == 2 })
			}
			m.shards["shard-0-1"].strike(60, func() { m.network.Cut("shard-0-1", true) })
			var wg sync.WaitGroup
			for i := range 9 {
				wg.Go(func() {
					name, digest := []string{"", "a", "b"}[i%3], [][]byte{nil, d, od}[i%3]
					m.mustAnswer(withAdapter(name, fmt.Sprint("request ", i), 150), 150, digest, nil)
				})
			}
			wg.Wait()
			m.struck("shard-0-1")
			for _, name := range []string{"shard-0-0", "spare"} {
				if s := m.shards[name]; s != nil && s.unknownNamed != 0 {
					t.Errorf("%s has refused %d entries", name, s.unknownNamed)
				}
			}
		}
	})
}

// TestService_AdapterThatAShardHasLost is loaded again: another router has unloaded it, or the process is new. The
// request waits and goes on.
func TestService_AdapterThatAShardHasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, d := adapterFolder(t, 3)
		m := newMesh(t, 2, 1, router.Config{Adapters: []router.AdapterSource{{Name: "a", Dir: dir}}})
		if err := m.service.AwaitAdapters(patient(t)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"shard-0-1", "shard-0-0"} {
			m.shards[name].forgetAdapters()
			m.mustAnswer(withAdapter("a", "after "+name, 30), 30, d, nil)
			if s := m.shards[name]; s.unknownNamed == 0 || s.loads != 2 {
				t.Errorf("%s has refused %d entries and loaded %d adapters", name, s.unknownNamed, s.loads)
			}
			m.mustAnswer(greedy("without", 10), 10, nil, nil)
		}
	})
}

// TestService_PipelineWithoutTheAdapterIsNotUsed lets one of two pipelines take long to load an adapter.
func TestService_PipelineWithoutTheAdapterIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, d := adapterFolder(t, 3)
		m := newMesh(t, 1, 2, router.Config{AdapterDir: t.TempDir()})
		slow := m.shards["shard-1-0"]
		paused := make(chan struct{})
		slow.mu.Lock()
		slow.pauseLoad = paused
		slow.mu.Unlock()
		loaded := make(chan error, 1)
		go func() {
			_, err := upload(t, m.client, "a", dir, nil)
			loaded <- err
		}()
		eventually(t, "the first load", func() bool { return m.shards["shard-0-0"].loaded() == 1 })
		if _, err := m.generate(t.Context(), withAdapter("a", "early", 4), nil); status.Code(err) != codes.NotFound {
			t.Errorf("before the name points to it: %v", err)
		}
		// By its digest it can be named as soon as a pipeline has it.
		for range 8 {
			m.mustAnswer(withAdapter(fmt.Sprintf("sha256:%x", d), "by digest", 10), 10, d, nil)
		}
		if slow.unknownNamed != 0 {
			t.Errorf("the slow pipeline got %d entries", slow.unknownNamed)
		}
		close(paused)
		if err := <-loaded; err != nil {
			t.Fatal(err)
		}
		m.mustAnswer(withAdapter("a", "late", 10), 10, d, nil)
	})
}

// TestService_NamesSurviveARestart starts another router over the same folder, with and without adapters of its
// own, and one whose index is damaged.
func TestService_NamesSurviveARestart(t *testing.T) {
	store := t.TempDir()
	m := newMesh(t, 1, 1, router.Config{AdapterDir: store})
	var dirs []string
	var digests [][]byte
	for i := range 3 {
		dir, d := adapterFolder(t, i)
		dirs, digests = append(dirs, dir), append(digests, d)
	}
	for i, name := range []string{"x", "x", "y"} {
		if _, err := upload(t, m.client, name, dirs[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(store, ".receive-left"), 0o755); err != nil {
		t.Fatal(err)
	}
	again := func(name string, sources ...router.AdapterSource) *mesh {
		p := m.peer(name, router.Config{AdapterDir: store, Adapters: sources})
		return &mesh{t: t, client: p.client, service: p.service}
	}
	second := again("second")
	second.mustAnswer(withAdapter("x", "after a restart", 20), 20, digests[1], nil)
	second.mustAnswer(withAdapter("y", "after a restart", 20), 20, digests[2], nil)
	if _, err := load(t, second.client, &routerv1.LoadAdapterOpen{Name: "x", Digest: "previous"}, nil); err != nil {
		t.Fatal(err)
	}
	second.mustAnswer(withAdapter("x", "rolled back", 20), 20, digests[0], nil)
	if _, err := os.Stat(filepath.Join(store, ".receive-left")); !os.IsNotExist(err) {
		t.Errorf("what was not received whole is left: %v", err)
	}
	third := again("third", router.AdapterSource{Name: "x", Dir: dirs[2]})
	if err := third.service.AwaitAdapters(patient(t)); err != nil {
		t.Fatal(err)
	}
	third.mustAnswer(withAdapter("x", "of the flag", 20), 20, digests[2], nil)
	if err := os.WriteFile(filepath.Join(store, "adapters.json"), []byte("[{"), 0o644); err != nil {
		t.Fatal(err)
	}
	fourth := again("fourth")
	fourth.mustAnswer(greedy("without", 10), 10, nil, nil)
	if _, err := upload(t, fourth.client, "x", dirs[0], nil); status.Code(err) != codes.DataLoss ||
		!strings.Contains(err.Error(), "read adapters.json") {
		t.Errorf("over a damaged index: %v", err)
	}
	if _, err := fourth.generate(t.Context(), withAdapter("x", "x", 4), nil); status.Code(err) != codes.NotFound {
		t.Errorf("after a load that has failed: %v", err)
	}
	fifth := again("fifth", router.AdapterSource{Name: "flag", Dir: dirs[0]})
	if err := fifth.service.AwaitAdapters(patient(t)); err != nil {
		t.Fatal(err)
	}
	unload := &routerv1.UnloadAdapterRequest{Name: "flag"}
	if _, err := fifth.client.UnloadAdapter(t.Context(), unload); status.Code(err) != codes.DataLoss {
		t.Errorf("an unload over a damaged index: %v", err)
	}
	fifth.mustAnswer(withAdapter("flag", "after an unload that has failed", 10), 10, digests[0], nil)
}

// TestLoadAdapter_NamesAreBounded fills the index of a router with names.
func TestLoadAdapter_NamesAreBounded(t *testing.T) {
	store := t.TempDir()
	dir, d := adapterFolder(t, 1)
	type version struct {
		Digest string `json:"digest"`
		Dir    string `json:"dir"`
	}
	type entry struct {
		Model    string    `json:"model"`
		Name     string    `json:"name"`
		Versions []version `json:"versions"`
	}
	var index []entry
	for i := range 1024 {
		index = append(index, entry{digest, fmt.Sprint("n", i), []version{{fmt.Sprintf("sha256:%x", d), dir}}})
	}
	text, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(store, "adapters.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	m := newMesh(t, 1, 1, router.Config{AdapterDir: store})
	eventually(t, "the names are there", func() bool {
		list, err := m.client.ListAdapters(t.Context(), &routerv1.ListAdaptersRequest{})
		return err == nil && len(list.GetAdapters()) == 1024
	})
	open := func(name string) *routerv1.LoadAdapterOpen {
		return &routerv1.LoadAdapterOpen{Name: name, Digest: fmt.Sprintf("%x", d)}
	}
	_, err = load(t, m.client, open("more"), nil)
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "1024 names") {
		t.Errorf("a name too many: %v", err)
	}
	if _, err := load(t, m.client, open("n7"), nil); err != nil {
		t.Errorf("a name that is there: %v", err)
	}
	if _, err := m.client.UnloadAdapter(t.Context(), &routerv1.UnloadAdapterRequest{Name: "n7"}); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t, m.client, open("more"), nil); err != nil {
		t.Errorf("after an unload: %v", err)
	}
}

// TestResume_KeepsTheAdapter continues a request with an adapter on another router, which offers it under another
// name, and not on one that does not have it.
func TestResume_KeepsTheAdapter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, d := adapterFolder(t, 3)
		j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
		m := newMesh(t, 1, 1, router.Config{})
		a := m.peer("router-a", router.Config{Journal: j, Adapters: []router.AdapterSource{{Name: "a", Dir: dir}}})
		b := m.peer("router-b", router.Config{Journal: j, Adapters: []router.AdapterSource{{Name: "b", Dir: dir}}})
		c := m.peer("router-c", router.Config{Journal: j})
		for _, p := range []*peer{a, b} {
			if err := p.service.AwaitAdapters(patient(t)); err != nil {
				t.Fatal(err)
			}
		}
		m.slow(2 * time.Millisecond) // so that the request cannot end while its router is stopped
		m.shards["shard-0-0"].strike(300, a.cancel)
		r := resumable("with an adapter", 400)
		r.Adapter = "a"
		var p part
		if err := p.generate(patient(t), a.client, r, nil); err == nil || len(p.tokens) < 100 {
			t.Fatalf("%d tokens, %v", len(p.tokens), err)
		}
		a.wait()
		before := len(p.tokens)
		if err := p.resume(patient(t), c.client, nil); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("at a router without it: %v", err)
		}
		if err := p.resume(patient(t), b.client, nil); err != nil {
			t.Fatal(err)
		}
		if want := expectWith("with an adapter", 400, d); p.text() != want || before >= 400 {
			t.Errorf("after %d tokens the text is %q, want %q", before, p.text(), want)
		}
		if p.started.GetAdapter() != fmt.Sprintf("sha256:%x", d) || p.started.GetModel() != "fake:a" {
			t.Errorf("started is %v", p.started)
		}
	})
}
