package app_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// onGPU opens a device without a GPU, whose kernels an interpreter runs. It may allocate so many bytes; 0 means all.
func onGPU(t *testing.T, memory int64, faults *twin.Faults) *cuda.Set {
	t.Helper()
	return onGPUIn(t, "", memory, faults)
}

// onGPUIn is onGPU for a process in a container, whose devices read no memory of those in other containers.
func onGPUIn(t *testing.T, container string, memory int64, faults *twin.Faults) *cuda.Set {
	t.Helper()
	d := twin.New(twin.Config{Devices: 1, Machine: twin.Simulated, Container: container, Faults: faults,
		Usage: func() driver.Usage { return driver.Usage{Utilisation: 0.5, Celsius: 61, Watts: -1} }})
	set, err := cuda.Open(d, cuda.Config{KV: kernel.KVAuto, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil && faults == nil {
			t.Error(err)
		}
	})
	return set
}

// patient returns settings of a router for stages that an interpreter computes: no step and no probe is late.
func patient() app.Scheduling {
	const forever = 10 * time.Minute
	return app.Scheduling{ProbeLimit: forever, StepFloor: forever, Hedge: -1}
}

// outcome is what a request got.
type outcome struct {
	ids         []uint32
	fingerprint string
	err         error
}

// greedy asks for tokens of the greatest probability, for one of several prompts. began is called with the fingerprint
// when the first one has come; it may be nil.
func greedy(
	ctx context.Context, router routerv1.RouterServiceClient, prompt, tokens uint32, began func(fingerprint string),
) (out outcome) {
	return generate(ctx, router, prompt, tokens, &routerv1.Sampling{Temperature: new(float32)}, began)
}

// generate asks for tokens as greedy does, with settings of the sampler.
func generate(
	ctx context.Context, router routerv1.RouterServiceClient, prompt, tokens uint32, sampling *routerv1.Sampling,
	began func(fingerprint string),
) (out outcome) {
	ids := []uint32{3 + 50*prompt, 7, 40 + prompt, 11, 90}
	stream, err := router.Generate(ctx, &routerv1.GenerateRequest{
		Prompt:    &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: ids}},
		MaxTokens: tokens, IgnoreEnd: true, Sampling: sampling,
	})
	if err != nil {
		return outcome{err: err}
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			out.err = err
			return out
		}
		out.fingerprint += r.GetStarted().GetFingerprint()
		if token := r.GetToken(); token != nil {
			if out.ids = append(out.ids, token.GetId()); len(out.ids) == 1 && began != nil {
				began(out.fingerprint)
			}
		}
	}
}

// A pipeline of a GPU and a processor, and one of two GPUs, give the tokens of the reference. The fingerprint says
// which layers were computed where, and the shard says what its device has.
func TestMesh_StagesOnGPUs(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	const tokens = 6
	path := shared(t, "models/tiny/llama")
	run := func(t *testing.T, fingerprint string, stages ...kernel.Set[float32]) (*app.Mesh, []uint32) {
		t.Helper()
		c := app.MeshConfig{Model: path, Stages: len(stages), KVPositions: 256, HTTP: "127.0.0.1:0",
			Kernels: app.Kernels{Set: stages[0]}, Scheduling: patient()}
		c.Scheduling.MixClasses = true
		for _, set := range stages {
			c.StageKernels = append(c.StageKernels, app.Kernels{Set: set})
		}
		m, router := startMesh(t, ctx, c)
		got := greedy(ctx, router, 0, tokens, nil)
		if got.err != nil || len(got.ids) != tokens || !strings.HasSuffix(got.fingerprint, "/"+fingerprint) {
			t.Fatalf("%d tokens of fingerprint %s, want %s: %v", len(got.ids), got.fingerprint, fingerprint, got.err)
		}
		// These need whole rows, of so small a vocabulary.
		hot, most, seed := float32(20), float32(0.999), uint64(3)
		sampled := generate(ctx, router, 1, 3, &routerv1.Sampling{Temperature: &hot, TopP: &most, Seed: &seed}, nil)
		if sampled.err != nil || len(sampled.ids) != 3 {
			t.Fatalf("%d tokens are sampled: %v", len(sampled.ids), sampled.err)
		}
		return m, append(got.ids, sampled.ids...)
	}
	set := cpu.New(1)
	t.Cleanup(set.Close)
	_, want := run(t, ref.New[float32]().Class(), ref.New[float32]())
	t.Run("and a processor", func(t *testing.T) {
		m, got := run(t, "cuda/2/sm_80:0-2+"+set.Class()+":2-4", onGPU(t, 0, nil), set)
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		checkDevice(t, ctx, m)
	})
	for _, c := range []struct{ name, container, path, other, why string }{
		{"two of a host", "", "device", "", ""},
		{"two in containers", "other", "wire", "device", "CUDA_ERROR_INVALID_VALUE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, got := run(t, "cuda/2/sm_80", onGPU(t, 0, nil), onGPUIn(t, c.container, 0, nil))
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			series := func(path string) string {
				return `lamina_shard_hidden_frames_total{path="` + path + `",shard="shard-0-0"}`
			}
			if now := scraped(t, ctx, m.HTTPAddr()); now[series(c.path)] == 0 || now[series(c.other)] > 0 {
				t.Errorf("%v hidden states took the path %s, %v the path %s", now[series(c.path)], c.path,
					now[series(c.other)], c.other)
			}
			if d := describe(t, ctx, m, "mem:shard-0-0")[0]; (d.GetOnWire() == "") != (c.why == "") ||
				!strings.Contains(d.GetOnWire(), c.why) {
				t.Errorf("hidden states go over the wire because of %q, want %q", d.GetOnWire(), c.why)
			}
		})
	}
}

// describe returns what a shard says of its devices.
func describe(t *testing.T, ctx context.Context, m *app.Mesh, addr string) []*shardv1.Device {
	t.Helper()
	conn, err := m.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	d, err := shardv1.NewShardServiceClient(conn).Describe(ctx, &shardv1.DescribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return d.GetInventory().GetAccelerators()
}

// checkDevice checks what the first stage of a mesh says of its device, and that the second one says nothing of its
// processor.
func checkDevice(t *testing.T, ctx context.Context, m *app.Mesh) {
	t.Helper()
	if on := describe(t, ctx, m, "mem:shard-0-1"); len(on) != 0 {
		t.Errorf("a processor is %v", on)
	}
	on := describe(t, ctx, m, "mem:shard-0-0")
	if len(on) != 1 {
		t.Fatalf("%d devices", len(on))
	}
	d := on[0]
	used := d.GetWeightsBytes() + d.GetKvBytes() + d.GetWorkspaceBytes()
	if d.GetName() != "cuda:0" || d.GetModel() != "twin" || d.GetArchitecture() != "sm_80" || d.GetLost() != "" ||
		d.GetTotalBytes() != 1<<30 || d.GetFreeBytes() == 0 || d.GetFreeBytes() > d.GetTotalBytes()-used ||
		d.GetLimitBytes() > d.GetTotalBytes() || d.GetWeightsBytes() == 0 || d.GetKvBytes() == 0 ||
		d.GetWorkspaceBytes() == 0 || d.GetReservedBytes() < d.GetWeightsBytes()+d.GetKvBytes() {
		t.Errorf("the device is %v", d)
	}
	if d.GetUtilisation() != 0.5 || d.GetCelsius() != 61 || d.Watts != nil ||
		d.GetOnWire() != "the next stage is on another host or on no device" {
		t.Errorf("the device reports %v", d)
	}
	got := scraped(t, ctx, m.HTTPAddr())
	for series, want := range map[string]float64{
		`lamina_device_memory_bytes{device="cuda:0",kind="total",shard="shard-0-0"}`:              1 << 30,
		`lamina_device_memory_bytes{device="cuda:0",kind="weights",shard="shard-0-0"}`:            float64(d.GetWeightsBytes()),
		`lamina_device_utilisation_ratio{device="cuda:0",shard="shard-0-0"}`:                      0.5,
		`lamina_device_temperature_celsius{device="cuda:0",shard="shard-0-0"}`:                    61,
		`lamina_device_alive{device="cuda:0",shard="shard-0-0"}`:                                  1,
		`lamina_device_info{architecture="sm_80",device="cuda:0",model="twin",shard="shard-0-0"}`: 1,
	} {
		if v, ok := got[series]; !ok || v != want {
			t.Errorf("%s is %v, want %v", series, v, want)
		}
	}
	for series := range got {
		if strings.HasPrefix(series, "lamina_device_") && (strings.Contains(series, "shard-0-1") ||
			strings.Contains(series, "power")) {
			t.Errorf("there is a series %s", series)
		}
	}
}

// A stage that does not fit a device is refused with what is wanted and free, before anything is copied there.
func TestMesh_AModelThatDoesNotFitAGPU(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	set := onGPU(t, 200_000, nil)
	before, limit := set.Use()
	_, err := app.Start(t.Context(), app.MeshConfig{Model: shared(t, "models/tiny/llama"), KVPositions: 256,
		Kernels: app.Kernels{Set: set}})
	short := (*driver.OutOfMemoryError)(nil)
	if !errors.As(err, &short) || short.Wanted <= limit || short.Free != limit || short.Total != 200_000 {
		t.Fatalf("the mesh starts with %v", err)
	}
	for _, part := range []string{"load layers 0-4 of llama", "bytes for weights", "for the KV cache",
		"cuda:0: out of"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error is %q, without %q", err, part)
		}
	}
	if after, _ := set.Use(); after != before {
		t.Errorf("%d bytes are allocated, %d before", after, before)
	}
}

// When a GPU fails under a request, its shard leaves the mesh, and the request goes on at another one.
func TestMesh_AGPUThatIsLostLeavesTheMesh(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	const tokens = 12
	path := shared(t, "models/tiny/llama")
	_, alone := startMesh(t, ctx, app.MeshConfig{Model: path, KVPositions: 256,
		Kernels: app.Kernels{Set: ref.New[float32]()}})
	const requests = 4 // on two pipelines
	var want [requests]outcome
	for i := range want {
		if want[i] = greedy(ctx, alone, uint32(i), tokens, nil); want[i].err != nil {
			t.Fatal(want[i].err)
		}
	}
	faults := &twin.Faults{}
	m, router := startMesh(t, ctx, app.MeshConfig{
		Model: path, Replicas: 2, KVPositions: 256, HTTP: "127.0.0.1:0", Kernels: app.Kernels{Set: ref.New[float32]()},
		StageKernels: []app.Kernels{{Set: onGPU(t, 0, faults)}}, Scheduling: patient(),
	})
	ready := func() (status int, text string) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.HTTPAddr()+"/readyz", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	var failed atomic.Bool
	status, text := ready()
	// Until a request has begun on the device, and the device has failed under it or under a later one.
	for status == http.StatusOK && !t.Failed() {
		var group sync.WaitGroup
		for i := range want {
			group.Go(func() {
				got := greedy(ctx, router, uint32(i), tokens, func(fingerprint string) {
					if strings.Contains(fingerprint, "/cuda/") && !failed.Swap(true) {
						faults.FailNext("CUDA_ERROR_ILLEGAL_ADDRESS")
					}
				})
				if got.err != nil || !slices.Equal(got.ids, want[i].ids) {
					t.Errorf("%s: got %v, want %v: %v", got.fingerprint, got.ids, want[i].ids, got.err)
				}
			})
		}
		group.Wait()
		status, text = ready()
	}
	if t.Failed() {
		return
	}
	conn, err := m.Dial("mem:shard-1-0")
	if err != nil {
		t.Fatal(err)
	}
	d, err := shardv1.NewShardServiceClient(conn).Describe(ctx, &shardv1.DescribeRequest{})
	if err != nil || len(d.GetHeld()) != 1 {
		t.Errorf("the other shard holds %v, %v", d.GetHeld(), err)
	}
	if status != http.StatusServiceUnavailable || !strings.Contains(text, "shard-0-0") ||
		!strings.Contains(text, "CUDA_ERROR_ILLEGAL_ADDRESS") {
		t.Errorf("/readyz answers %d: %s", status, text)
	}
	listed, err := m.Registry().Watch(ctx, "shard")
	if err != nil {
		t.Fatal(err)
	}
	left := false
	for now := range listed { // the shard leaves the registry at about the same time
		if left = len(now) == 1 && now[0].ID == "shard-1-0"; left {
			break
		}
	}
	if !left {
		t.Error("the mesh lists the shard whose device is lost")
	}
	if got := scraped(t, ctx, m.HTTPAddr())[`lamina_device_alive{device="cuda:0",shard="shard-0-0"}`]; got != 0 {
		t.Errorf("the device is alive: %v", got)
	}
}

// When the GPU of either of two stages that pass hidden states from device to device is lost, the other one computes
// on, and the requests go on at another pipeline with the same tokens.
func TestMesh_AGPUIsLostBesideItsNeighbour(t *testing.T) {
	leak.Check(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	const tokens, requests = 8, 4
	path := shared(t, "models/tiny/llama")
	_, alone := startMesh(t, ctx, app.MeshConfig{Model: path, KVPositions: 256,
		Kernels: app.Kernels{Set: ref.New[float32]()}})
	var want [requests]outcome
	for i := range want {
		if want[i] = greedy(ctx, alone, uint32(i), tokens, nil); want[i].err != nil {
			t.Fatal(want[i].err)
		}
	}
	for lost, stage := range []string{"the sender", "the receiver"} {
		t.Run(stage, func(t *testing.T) {
			faults := []*twin.Faults{{}, {}}
			sets := []*cuda.Set{onGPU(t, 0, faults[0]), onGPU(t, 0, faults[1])}
			m, router := startMesh(t, ctx, app.MeshConfig{
				Model: path, Replicas: 2, Stages: 2, KVPositions: 256, HTTP: "127.0.0.1:0",
				Kernels:      app.Kernels{Set: ref.New[float32]()},
				StageKernels: []app.Kernels{{Set: sets[0]}, {Set: sets[1]}}, Scheduling: patient(),
			})
			var failed atomic.Bool
			for !failed.Load() && !t.Failed() { // until a request has begun on the devices
				var group sync.WaitGroup
				for i := range want {
					group.Go(func() {
						got := greedy(ctx, router, uint32(i), tokens, func(fingerprint string) {
							if strings.Contains(fingerprint, "/cuda/") && !failed.Swap(true) {
								faults[lost].FailNext("CUDA_ERROR_ILLEGAL_ADDRESS")
							}
						})
						if got.err != nil || !slices.Equal(got.ids, want[i].ids) {
							t.Errorf("%s: got %v, want %v: %v", got.fingerprint, got.ids, want[i].ids, got.err)
						}
					})
				}
				group.Wait()
			}
			if t.Failed() {
				return
			}
			now := scraped(t, ctx, m.HTTPAddr())
			if n := now[`lamina_shard_hidden_frames_total{path="device",shard="shard-0-0"}`]; n == 0 {
				t.Error("no hidden state went from device to device")
			}
			<-sets[lost].Lost()
			if err := sets[1-lost].LostErr(); err != nil {
				t.Errorf("the other device is lost too: %v", err)
			}
		})
	}
}
