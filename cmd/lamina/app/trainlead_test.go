package app_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// leaky is a registry whose locks can be taken away from their holders, who do not notice it: as if they were
// suspended past their leases.
type leaky struct {
	*discovery.Memory
	mu   sync.Mutex
	held map[string]discovery.Lease // the real lock
}

type leakyLease struct {
	token uint64
	lost  chan struct{}
	end   func(context.Context) error
}

func (l *leakyLease) Lost() <-chan struct{}             { return l.lost }
func (l *leakyLease) Token() uint64                     { return l.token }
func (l *leakyLease) Release(ctx context.Context) error { return l.end(ctx) }

func (r *leaky) Lock(ctx context.Context, key, holder string) (discovery.Lease, error) {
	lease, err := r.Memory.Lock(ctx, key, holder)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[key] = lease
	return &leakyLease{lease.Token(), make(chan struct{}), lease.Release}, nil
}

// steal gives the lock of a key to whoever waits for it.
func (r *leaky) steal(ctx context.Context, key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held[key].Release(ctx)
}

// trainer starts another trainer on the folder of the fleet.
func (f *trainFleet) trainer(name string, c trainer.Config) trainerv1.TrainerServiceClient {
	f.t.Helper()
	c.Dialer, c.AllowPaths = f.dialer, []string{"/"}
	s := trainer.New(c)
	running := make(chan error, 1)
	go func() { running <- s.Run(f.ctx) }()
	f.ended = append(f.ended, running, f.serve(f.ctx, name, s))
	conn, err := f.dialer.Dial("mem:" + name)
	if err != nil {
		f.t.Fatal(err)
	}
	return trainerv1.NewTrainerServiceClient(conn)
}

// T9: the lock of a run goes to a standby trainer, again and again, while the leader before knows nothing of it and
// goes on at full speed. Only one of them ends the run, with the weights of a calm one.
func TestTrain_TwoTrainersNeverBothCommit(t *testing.T) {
	layouts := [][2]uint32{{1, 2}, {2, 1}}
	if os.Getenv("LAMINA_SLOW") == "" {
		layouts = layouts[:1]
	}
	for _, layout := range layouts {
		t.Run(fmt.Sprint(layout), func(t *testing.T) {
			// A trainer that takes the run up finds it running: steps take ten milliseconds at least.
			f := (&trainFleet{bus: gradbus.NewMemory(64 << 20),
				kernels: &deviceSet{ref.New[float32](), 5 * time.Millisecond}}).start(t, 4, trainer.Config{})
			raw := manifest(t, "led", map[string]any{"steps": 120, "checkpoint_every": 3, "keep_last": 4})
			calmOut := t.TempDir()
			calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
			registry := &leaky{Memory: f.registry, held: map[string]discovery.Lease{}}
			dir := t.TempDir()
			c := trainer.Config{Registry: registry, Dir: dir, Standby: 50 * time.Millisecond}
			clients := []trainerv1.TrainerServiceClient{f.trainer("a", c), f.trainer("b", c)}
			if _, err := clients[0].StartRun(f.ctx, &trainerv1.StartRunRequest{ManifestJson: raw, Stages: layout[0],
				Replicas: layout[1]}); err != nil {
				t.Fatal(err)
			}
			// The epochs at which trainers have led, and the states in which they have left.
			states := map[uint64]trainerv1.RunState{}
			stolen := map[uint64]bool{}
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			done := 0
			for done == 0 {
				select {
				case <-tick.C:
				case <-f.ctx.Done():
					t.Fatalf("the run does not end: %v", states)
				}
				for _, client := range clients {
					list, err := client.ListRuns(f.ctx, &trainerv1.ListRunsRequest{})
					if err != nil {
						t.Fatal(rpc.FromStatus(err))
					}
					for _, r := range list.GetRuns() {
						if r.GetEpoch() == 0 {
							continue
						}
						states[r.GetEpoch()] = r.GetState()
						if r.GetState() == trainerv1.RunState_RUN_STATE_DONE {
							done++
						}
						// Take the lock away twice, after some progress each time.
						if n := len(stolen); n < 2 && !stolen[r.GetEpoch()] && r.GetStep() >= uint64(6+9*n) &&
							r.GetState() == trainerv1.RunState_RUN_STATE_RUNNING {
							stolen[r.GetEpoch()] = true
							if err := registry.steal(f.ctx, "trainer/runs/led"); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
			}
			last := f.settled(clients)
			if len(stolen) != 2 || done != 1 || len(states) < 3 {
				t.Errorf("the lock was taken away %d times, %d trainers ended the run; states by epoch: %v", len(stolen), done,
					states)
			}
			same(t, "led by several trainers", dir+"/led", calmOut, last, calm)
		})
	}
}

// settled waits until the trainers that have not ended a run know that another one has, and returns the state at the
// one that has.
func (f *trainFleet) settled(clients []trainerv1.TrainerServiceClient) (done *trainerv1.Run) {
	f.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var going []string
		for _, client := range clients {
			list, err := client.ListRuns(f.ctx, &trainerv1.ListRunsRequest{})
			if err != nil {
				f.t.Fatal(rpc.FromStatus(err))
			}
			for _, r := range list.GetRuns() {
				if r.GetState() == trainerv1.RunState_RUN_STATE_DONE {
					done = r
				} else if !strings.Contains(r.GetError(), "another trainer") {
					going = append(going, fmt.Sprintf("%v: %s", r.GetState(), r.GetError()))
				}
			}
		}
		if len(going) == 0 {
			return done
		}
		select {
		case <-tick.C:
		case <-f.ctx.Done():
			f.t.Fatalf("the other trainer does not leave the run: %v", going)
		}
	}
}

// T3: the trainer ends at random moments, in the middle of steps and while checkpoints are being written, and another
// one resumes the run on another layout.
func TestTrain_RandomStopsCostNoBit(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	f := newTrainFleet(t, 4)
	for _, name := range []string{"f32", "int8"} {
		change := map[string]any{"steps": 40, "checkpoint_every": 1, "keep_last": 3}
		for k, v := range wires()[name] {
			change[k] = v
		}
		raw := manifest(t, "random-"+name, change)
		calmOut, out := t.TempDir(), filepath.Join(t.TempDir(), "run")
		calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
		var last *trainerv1.Run
		stops := 0
		for i := 0; last.GetState() != trainerv1.RunState_RUN_STATE_DONE; i++ {
			ctx, stop := context.WithCancel(f.ctx)
			s := trainer.New(trainer.Config{Dialer: f.dialer, Registry: f.registry, AllowPaths: []string{"/"},
				AllowWrite: []string{"/"}, Dir: t.TempDir()})
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			f.ended = append(f.ended, f.serve(f.ctx, fmt.Sprintf("%s-%d", name, i), s))
			conn, err := f.dialer.Dial(fmt.Sprintf("mem:%s-%d", name, i))
			if err != nil {
				t.Fatal(err)
			}
			client := trainerv1.NewTrainerServiceClient(conn)
			layout := [][2]uint32{{1, 1}, {2, 2}, {1, 4}, {4, 1}, {2, 1}}[i%5]
			if _, err := client.StartRun(f.ctx, &trainerv1.StartRunRequest{ManifestJson: raw, Stages: layout[0],
				Replicas: layout[1], Resume: i > 0, Out: out}); err != nil {
				t.Fatal(err)
			}
			watch, err := client.WatchRun(f.ctx, &trainerv1.WatchRunRequest{Run: "random-" + name})
			if err != nil {
				t.Fatal(err)
			}
			until := uint64(0)
			for {
				e, err := watch.Recv()
				if err != nil {
					break
				}
				last = e.GetRun()
				if until == 0 && last.GetStep() > 0 {
					until = last.GetStep() + r.Uint64N(8)
				}
				if until > 0 && last.GetStep() >= until && i < 12 && ctx.Err() == nil {
					stops++
					stop() // the run ends where it is, and not after its step
				}
			}
			stop()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			// The crash comes just before the manifest of the newest checkpoint is written, sometimes.
			whole, err := filepath.Glob(filepath.Join(out, "checkpoints", "step-*", "checkpoint.json"))
			if err != nil {
				t.Fatal(err)
			}
			if i%3 == 1 && len(whole) > 1 && last.GetState() != trainerv1.RunState_RUN_STATE_DONE {
				if err := os.Remove(whole[len(whole)-1]); err != nil {
					t.Fatal(err)
				}
			}
		}
		same(t, name, out, calmOut, last, calm)
		t.Logf("%s: %d stops", name, stops)
		if stops < 3 {
			t.Errorf("the run was stopped %d times", stops)
		}
	}
}
