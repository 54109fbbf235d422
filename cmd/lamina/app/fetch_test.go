package app_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/logtest"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// One of three hosts has the model's files, and cannot hold all of its layers. The others fetch what they are assigned,
// each into a store of its own, and the tokens are those of a lone shard.
func TestMesh_ShardsWithoutFilesFetchTheirLayers(t *testing.T) {
	path := shared(t, "models/stories260K/stories260K-f32.gguf")
	const kv = 512
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	kernels := app.Kernels{Set: set, Threads: 2}
	prompt := []uint32{1, 403, 407, 261, 378}
	whole, router := startMesh(t, ctx, app.MeshConfig{Model: path, Kernels: kernels})
	want, err := tokensOf(ctx, router, prompt, 50)
	if err != nil || len(want) != 50 {
		t.Fatalf("a lone shard gives %d tokens, %v", len(want), err)
	}
	if err := whole.Close(); err != nil {
		t.Error(err)
	}
	fleet := autoFleet(t, path, kv, 2, 2, 2)
	for i := range fleet[1:] {
		fleet[i+1].Store, fleet[i+1].Fetch = t.TempDir(), true
	}
	var log logtest.Buffer
	_, router = startMesh(t, ctx, app.MeshConfig{
		Model: path, Kernels: kernels, Auto: fleet, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Placing: app.Placing{KVLeast: kv, KVMost: kv, Settle: 300 * time.Millisecond, Keeper: plan.KeeperConfig{
			Steady: time.Second, Every: time.Second}},
	})
	defer func() {
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	m := placementOf(t, ctx, router, "a pipeline", func(m *routerv1.Mesh) bool { return len(hostsOf(m)) == 3 })
	t.Logf("stages %v on %v", m.GetPipelines()[0].GetStages(), hostsOf(m))
	got, err := tokensOf(ctx, router, prompt, 50)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d tokens, %v: want those of a lone shard", len(got), err)
	}
	for _, host := range fleet[1:] {
		s, err := store.Open(host.Store, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		used, err := s.Usage()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err != nil || used == 0 {
			t.Errorf("the store of a host that serves has %d bytes: %v", used, err)
		}
	}
}

// Models that come into the folder or the store of a shard while it runs are offered by it, and by its peers.
func TestMesh_NewFilesAreOfferedWithoutARestart(t *testing.T) {
	first := shared(t, "models/stories260K/stories260K-f32.gguf")
	second, third := shared(t, "models/tiny/llama"), shared(t, "models/tiny/qwen2")
	set := cpu.New(1)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	dir, folder := t.TempDir(), t.TempDir()
	text, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.gguf"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	var log logtest.Buffer
	m, _ := startMesh(t, ctx, app.MeshConfig{
		Model: first, Kernels: app.Kernels{Set: set, Threads: 1}, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Auto: []app.AutoShard{{ModelDir: dir, Memory: 1 << 30}, {Store: folder, Fetch: true, Memory: 1 << 30}},
	})
	defer func() {
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	offers := func(name string) []string {
		conn, err := m.Dial("mem:" + name)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := shardv1.NewShardServiceClient(conn).Describe(ctx, &shardv1.DescribeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, o := range resp.GetInventory().GetOffers() {
			out = append(out, o.GetModel())
		}
		slices.Sort(out)
		return out
	}
	await := func(name string, want ...string) {
		t.Helper()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			got := offers(name)
			if slices.Equal(got, want) {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("%s offers %v, want %v", name, got, want)
			}
		}
	}
	await("shard-auto-0", "a")
	await("shard-auto-1", "a") // that of the first shard
	if err := os.CopyFS(filepath.Join(dir, "b"), os.DirFS(second)); err != nil {
		t.Fatal(err)
	}
	await("shard-auto-0", "a", "b")
	await("shard-auto-1", "a", "b")
	s, err := store.Open(folder, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := pull.Pull(ctx, s, &pull.Path{Path: third}, pull.Options{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	await("shard-auto-1", "a", "b", "c")
}
