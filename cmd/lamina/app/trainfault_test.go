package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/services/shard"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// trainFleet is a trainer with shards that a test can kill one by one.
type trainFleet struct {
	t        *testing.T
	ctx      context.Context
	network  *memnet.Network
	registry *discovery.Memory
	dialer   *rpc.Dialer
	bus      gradbus.Bus
	outbox   gradbus.OutboxConfig
	kernels  kernel.Set[float32]            // nil for the reference
	host     func(shard string) string      // the machine of a shard; nil if it is not known
	peers    func(*rpc.Dialer) shard.Dialer // what shards dial with; nil for the dialer itself
	client   trainerv1.TrainerServiceClient
	service  trainerv1.TrainerServiceServer // of the client
	lockstep *lockstep                      // of runs whose states a test sees
	kill     map[string]func()
	leave    map[string]func() // stops a shard gracefully
	ended    []<-chan error
}

func newTrainFleet(t *testing.T, shards int) *trainFleet {
	t.Helper()
	return newTrainFleetOn(t, shards, gradbus.NewMemory(64<<20), 0)
}

// newTrainFleetOn returns a fleet on a bus, with events that are published again after a time.
func newTrainFleetOn(t *testing.T, shards int, bus gradbus.Bus, resend time.Duration) *trainFleet {
	t.Helper()
	return newTrainFleetWith(t, shards, bus, resend, trainer.Config{})
}

// newTrainFleetWith returns a fleet whose trainer has further settings.
func newTrainFleetWith(t *testing.T, shards int, bus gradbus.Bus, resend time.Duration, c trainer.Config) *trainFleet {
	t.Helper()
	return (&trainFleet{bus: bus, outbox: gradbus.OutboxConfig{Resend: resend}}).start(t, shards, c)
}

// start starts a trainer with settings and a number of shards.
func (f *trainFleet) start(t *testing.T, shards int, c trainer.Config) *trainFleet {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	f.t, f.ctx, f.network, f.registry, f.kill = t, ctx, memnet.New(), discovery.NewMemory(), map[string]func(){}
	f.leave, f.lockstep = map[string]func(){}, newLockstep()
	f.dialer = rpc.NewDialer(rpc.DialOptions{Net: f.network})
	for i := range shards {
		f.shard(fmt.Sprintf("shard-%d", i))
	}
	c.Dialer, c.Registry, c.AllowPaths, c.AllowWrite = f.dialer, f.registry, []string{"/"}, []string{"/"}
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	s := trainer.New(c)
	f.service = s
	running := make(chan error, 1)
	go func() { running <- s.Run(ctx) }()
	f.ended = append(f.ended, running, f.serve(ctx, "trainer", s))
	conn, err := f.dialer.Dial("mem:trainer")
	if err != nil {
		t.Fatal(err)
	}
	f.client = trainerv1.NewTrainerServiceClient(conn)
	t.Cleanup(func() {
		cancel()
		for _, done := range f.ended {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if err := errors.Join(f.dialer.Close(), f.bus.Close()); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *trainFleet) serve(ctx context.Context, name string, s interface {
	Register(r grpc.ServiceRegistrar)
}) <-chan error {
	f.t.Helper()
	server := rpc.NewServer(rpc.ServerOptions{Log: slog.New(slog.DiscardHandler)})
	s.Register(server)
	l, err := rpc.Listen("mem:"+name, rpc.ListenOptions{Net: f.network})
	if err != nil {
		f.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, server, l, func() {}, rpc.DrainLimit(time.Second)) }()
	return done
}

// shard starts a shard for training. Killing it breaks its connections and removes it from the
// registry.
func (f *trainFleet) shard(name string) {
	ctx, cancel := context.WithCancel(f.ctx)
	var kernels kernel.Set[float32] = ref.New[float32]()
	if f.kernels != nil {
		kernels = f.kernels
	}
	c := shard.Config{Dialer: f.dialer, Kernels: &lockstepSet{kernels, f.ctx, f.lockstep}, Bus: f.bus, Outbox: f.outbox}
	if f.host != nil {
		c.Host = f.host(name)
	}
	if f.peers != nil {
		c.Dialer = f.peers(f.dialer)
	}
	s := shard.New(c)
	done := f.serve(ctx, name, s)
	reg, err := f.registry.Register(f.ctx,
		discovery.Instance{ID: name, Service: "shard", Addr: "mem:" + name,
			Meta: map[string]string{trainer.TrainsMeta: "true"}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.ended = append(f.ended, done)
	f.leave[name] = func() {
		if err := reg.Deregister(f.ctx); err != nil {
			f.t.Error(err)
		}
		s.Drain(f.ctx)
		cancel()
	}
	f.kill[name] = func() {
		f.network.Cut(name, true)
		if err := reg.Deregister(f.ctx); err != nil {
			f.t.Error(err)
		}
		cancel()
	}
}

// watch starts a run, calls seen with each state and returns the last state. The run takes no step before seen has seen
// the last one.
func (f *trainFleet) watch(r *trainerv1.StartRunRequest, seen func(*trainerv1.Run)) *trainerv1.Run {
	f.t.Helper()
	resp, err := f.client.StartRun(f.ctx, r)
	if err != nil {
		f.t.Fatal(err)
	}
	watch, err := f.client.WatchRun(f.ctx, &trainerv1.WatchRunRequest{Run: resp.GetRun()})
	if err != nil {
		f.t.Fatal(err)
	}
	if seen != nil {
		f.lockstep.begin(func() uint64 { return stepOf(f.ctx, f.service, resp.GetRun()) })
		defer f.lockstep.end()
	}
	var last *trainerv1.Run
	for {
		e, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			f.t.Fatal(err)
		}
		last = e.GetRun()
		if seen != nil {
			seen(last)
			f.lockstep.saw(last.GetStep())
		}
	}
}

// curve returns the losses of a run by step from metrics.jsonl. Each step must occur once.
func curve(t *testing.T, out string) []float64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(out, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var losses []float64
	for l := range strings.Lines(string(text)) {
		var m struct {
			Step int     `json:"step"`
			Loss float64 `json:"loss"`
		}
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatal(err)
		}
		if m.Step != len(losses)+1 {
			t.Fatalf("line %d of metrics.jsonl has step %d", len(losses)+1, m.Step)
		}
		losses = append(losses, m.Loss)
	}
	return losses
}

func same(t *testing.T, what, out, calmOut string, got, calm *trainerv1.Run) {
	t.Helper()
	if got.GetState() != trainerv1.RunState_RUN_STATE_DONE || got.GetWeightsDigest() == "" ||
		got.GetWeightsDigest() != calm.GetWeightsDigest() {
		t.Errorf("%s: ended %v (%s) with weights %q, the undisturbed run has %q", what, got.GetState(), got.GetError(),
			got.GetWeightsDigest(), calm.GetWeightsDigest())
		return
	}
	if a, b := fmt.Sprint(curve(t, out)), fmt.Sprint(curve(t, calmOut)); a != b {
		t.Errorf("%s: losses are\n%s\nthose of the undisturbed run are\n%s", what, a, b)
	}
}

// schedules lists the schedules as parts of manifests. Spans of 3 divide the 12 layers of two stages.
func schedules() map[string]map[string]any {
	out := map[string]map[string]any{"three spans": {"schedule": schedule.NameInterleaved, "spans": 3}}
	for _, name := range schedule.Names() {
		out[name] = map[string]any{"schedule": name}
	}
	return out
}

// scheduled returns the manifest of a small run under a schedule.
func scheduled(t *testing.T, name string, with map[string]any, change map[string]any) []byte {
	t.Helper()
	all := map[string]any{"model": map[string]any{"architecture": "llama", "layers": 12, "width": 8, "heads": 2,
		"ff": 12, "tied": true}}
	maps.Copy(all, with)
	maps.Copy(all, change)
	return manifest(t, name, all)
}

// TestTrain_AnyScheduleGivesTheSameWeights runs each schedule over layouts with as many slots as the
// stages divide, and with fewer and more.
func TestTrain_AnyScheduleGivesTheSameWeights(t *testing.T) {
	for _, c := range []struct {
		slots  int
		model  string
		layout [2]uint32
	}{{8, "llama", [2]uint32{2, 1}}, {5, "gpt2", [2]uint32{4, 1}}, {6, "llama", [2]uint32{2, 2}},
		{3, "untied", [2]uint32{4, 2}}} {
		change := map[string]any{"steps": 3, "slots": c.slots, "model": map[string]any{
			"architecture": strings.Replace(c.model, "untied", "llama", 1), "layers": 12, "width": 8, "heads": 2,
			"ff": 12, "tied": c.model != "untied"}}
		f := newTrainFleet(t, int(c.layout[0]*c.layout[1]))
		calmOut := t.TempDir()
		calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: manifest(t, "calm", change), Out: calmOut}, nil)
		for name, with := range schedules() {
			out := t.TempDir()
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: scheduled(t, "scheduled", with, change), Out: out,
				Stages: c.layout[0], Replicas: c.layout[1]}, nil)
			same(t, fmt.Sprintf("%s, %d slots over %v", name, c.slots, c.layout), out, calmOut, got, calm)
			measuresBubbles(t, out)
		}
	}
}

// measuresBubbles checks that a run over several stages has written its bubble beside the simulated one.
func measuresBubbles(t *testing.T, out string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(out, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		var m struct {
			Bubble    float64 `json:"bubble"`
			Simulated float64 `json:"simulated_bubble"`
		}
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatal(err)
		}
		if !(m.Bubble > 0 && m.Bubble < 1 && m.Simulated > 0 && m.Simulated < 1) {
			t.Errorf("bubble is %v, %v as simulated", m.Bubble, m.Simulated)
		}
	}
}

func TestTrain_LostShardsCostNoBit(t *testing.T) {
	defer leak.Check(t)
	for name, with := range schedules() {
		if os.Getenv("LAMINA_SLOW") == "" && name != schedule.NameOneFOneB && name != "three spans" {
			continue // each takes ten seconds
		}
		t.Run(name, func(t *testing.T) {
			raw := scheduled(t, "lost", with, map[string]any{"steps": 60, "checkpoint_every": 5})
			calmOut, out := t.TempDir(), t.TempDir()
			f := newTrainFleet(t, 6)
			calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
			victims := []string{"shard-1", "shard-3", "shard-0"}
			var deaths []uint64
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: 2, Replicas: 2, Out: out},
				func(r *trainerv1.Run) {
					running := r.GetState() == trainerv1.RunState_RUN_STATE_RUNNING
					if n := len(deaths); n < len(victims) && running && r.GetStep() >= uint64(7+16*n) {
						deaths = append(deaths, r.GetStep())
						f.kill[victims[n]]()
					}
				})
			if len(deaths) != len(victims) {
				t.Errorf("shards were killed at steps %v, want %d of them", deaths, len(victims))
			}
			same(t, "three shards lost", out, calmOut, got, calm)
		})
	}
}

func TestTrain_StopAndResumeOverLayoutsIsExact(t *testing.T) {
	defer leak.Check(t)
	t.Run("run", func(t *testing.T) {
		raw := manifest(t, "stopped", map[string]any{"steps": 40, "checkpoint_every": 7})
		calmOut, out := t.TempDir(), t.TempDir()
		f := newTrainFleet(t, 4)
		calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
		stops := 0
		for i, l := range [][2]uint32{{1, 1}, {2, 2}, {1, 4}, {4, 1}} {
			stopped := make(chan error, 1)
			asked := false
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: l[0], Replicas: l[1], Resume: i > 0,
				Out: out}, func(r *trainerv1.Run) {
				if i < 3 && !asked && r.GetState() == trainerv1.RunState_RUN_STATE_RUNNING &&
					r.GetStep() >= uint64(5+9*i) {
					asked = true
					go func() {
						_, err := f.client.StopRun(f.ctx, &trainerv1.StopRunRequest{Run: "stopped"})
						stopped <- err
					}()
				}
			})
			if asked {
				if err := <-stopped; err != nil {
					t.Fatal(err)
				}
			}
			if got.GetState() == trainerv1.RunState_RUN_STATE_STOPPED {
				stops++
				continue
			}
			same(t, fmt.Sprintf("resumed %d times", i), out, calmOut, got, calm)
			break
		}
		if stops == 0 {
			t.Error("no run was stopped before its end")
		}
	})
}
