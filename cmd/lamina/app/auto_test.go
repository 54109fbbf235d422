package app_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/logtest"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// autoFleet describes hosts that have room for some layers each.
func autoFleet(t *testing.T, path string, kv int, layers ...int) []app.AutoShard {
	t.Helper()
	files, err := model.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	set := cpu.New(1)
	defer set.Close()
	z := files.Sizes()
	layer := z.Layers[0] + files.Spec.KVBytes(set.KV())*int64(kv)
	var out []app.AutoShard
	for _, n := range layers {
		memory := float64(z.Embedding+z.Head+int64(n)*layer) + float64(layer)/4
		out = append(out, app.AutoShard{Memory: int64(memory / 0.8), Zone: "west"})
	}
	return out
}

// tokensOf runs a request to its end.
func tokensOf(ctx context.Context, router routerv1.RouterServiceClient, prompt []uint32, n uint32) ([]uint32, error) {
	zero, wait := float32(0), uint32(60)
	stream, err := router.Generate(ctx, &routerv1.GenerateRequest{
		Prompt:    &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: prompt}},
		MaxTokens: n, Sampling: &routerv1.Sampling{Temperature: &zero}, IgnoreEnd: true, WaitForCapacity: &wait,
	})
	if err != nil {
		return nil, err
	}
	var ids []uint32
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return ids, nil
		}
		if err != nil {
			return nil, err
		}
		if token := e.GetToken(); token != nil {
			ids = append(ids, token.GetId())
		}
	}
}

// placementOf polls the topology until ok accepts it.
func placementOf(
	t *testing.T, ctx context.Context, router routerv1.RouterServiceClient, what string, ok func(*routerv1.Mesh) bool,
) *routerv1.Mesh {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last *routerv1.Mesh
	for {
		resp, err := router.Topology(ctx, &routerv1.TopologyRequest{})
		if err == nil {
			if last = resp.GetMesh(); ok(last) {
				return last
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s did not happen; error %v, topology %v", what, err, last)
		}
	}
}

// complete reports whether a topology has the pipeline of a plan, with predictions, and everything that the plan has
// loaded. What a plan moves is all that is loaded only for the first one; a machine that is slow to start may have
// made another one already.
func complete(m *routerv1.Mesh) bool {
	if hostsOf(m) == nil {
		return false
	}
	for _, s := range m.GetPipelines()[0].GetTimes() {
		if s.GetPredictedMs() <= 0 {
			return false
		}
	}
	bytes, _ := loaded(m)
	p := m.GetPlacement()
	return p.GetVersion() > 1 || p.GetVersion() == 1 && bytes == p.GetMoveBytes()
}

// hostsOf returns the hosts of the stages of the only pipeline, or nil.
func hostsOf(m *routerv1.Mesh) []string {
	if len(m.GetPipelines()) != 1 {
		return nil
	}
	var out []string
	for _, s := range m.GetPipelines()[0].GetTimes() {
		out = append(out, s.GetHost())
	}
	return out
}

func loaded(m *routerv1.Mesh) (bytes uint64, spans int) {
	for _, member := range m.GetMembers() {
		for _, h := range member.GetHeld() {
			if h.GetAssigned() {
				bytes, spans = bytes+h.GetWeightBytes(), spans+1
			}
		}
	}
	return bytes, spans
}

// Four hosts with room for 1, 2, 2 and 4 of the 5 layers serve a model of which nobody told them layers. One of those
// that serve is lost and comes back under load.
func TestMesh_AutoShards_ServeWithoutLayerFlags(t *testing.T) {
	path := shared(t, "models/stories260K/stories260K-f32.gguf")
	const kv = 512
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	kernels := app.Kernels{Set: set, Threads: 2}
	prompt := []uint32{1, 403, 407, 261, 378}
	whole, router := startMesh(t, ctx, app.MeshConfig{Model: path, Kernels: kernels})
	want, err := tokensOf(ctx, router, prompt, 100)
	if err != nil || len(want) != 100 {
		t.Fatalf("a lone shard gives %d tokens, %v", len(want), err)
	}
	if err := whole.Close(); err != nil {
		t.Error(err)
	}
	var log logtest.Buffer
	m, router := startMesh(t, ctx, app.MeshConfig{
		Model: path, Kernels: kernels, Auto: autoFleet(t, path, kv, 1, 2, 2, 4), AdapterBytes: 7 << 20,
		Log: slog.New(slog.NewTextHandler(&log, nil)),
		Placing: app.Placing{KVLeast: kv, KVMost: kv, Settle: 300 * time.Millisecond, Keeper: plan.KeeperConfig{
			Steady: time.Second, Every: time.Second}},
	})
	defer func() {
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	first := placementOf(t, ctx, router, "a pipeline with what its plan loads", complete)
	hosts, p := hostsOf(first), first.GetPlacement()
	t.Logf("stages %v; plan %d: %s; %d layers of %d bytes are moved", first.GetPipelines()[0].GetStages(), p.GetVersion(),
		p.GetReason(), p.GetMoveLayers(), p.GetMoveBytes())
	if len(hosts) < 2 {
		t.Fatalf("the stages are on %v, want several hosts", hosts)
	}
	for _, member := range first.GetMembers() {
		for _, h := range member.GetHeld() {
			if h.GetAdapterLimit() != 7<<20 {
				t.Errorf("%s has room for %d bytes of adapters", member.GetAddress(), h.GetAdapterLimit())
			}
		}
	}

	var group sync.WaitGroup
	var done atomic.Int64
	stop := make(chan struct{})
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := tokensOf(ctx, router, prompt, 100)
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("under load: %d tokens as before: %v, %v", len(got), slices.Equal(got, want), err)
					return
				}
				done.Add(1)
			}
		})
	}
	lost := hosts[len(hosts)-1]
	m.Cut(lost)
	second := placementOf(t, ctx, router, "a pipeline without "+lost, func(m *routerv1.Mesh) bool {
		hosts := hostsOf(m)
		return hosts != nil && !slices.Contains(hosts, lost) && m.GetPlacement().GetVersion() > p.GetVersion()
	})
	p = second.GetPlacement()
	t.Logf("stages %v; plan %d: %s; %d layers of %d bytes are moved", second.GetPipelines()[0].GetStages(),
		p.GetVersion(), p.GetReason(), p.GetMoveLayers(), p.GetMoveBytes())
	m.Mend(lost)
	before := done.Load()
	placementOf(t, ctx, router, "further answers", func(m *routerv1.Mesh) bool {
		return done.Load() >= before+4 && len(m.GetPipelines()) > 0
	})
	close(stop)
	group.Wait()
	t.Logf("%d answers under load", done.Load())
	if done.Load() == 0 {
		t.Error("there was no load")
	}
}
