package trainer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// layout says into how many stages and replicas a run is split.
type layout struct{ stages, replicas int }

const (
	rebuilds     = 5                      // fleets that a run may lose in a row without completing a step
	rebuildPause = 500 * time.Millisecond // pause before the first rebuild; doubled for every further one
	shardsWait   = 30 * time.Second       // how long to wait for the first shard that trains
)

// run is one run of the service.
type run struct {
	service *Service
	name    string
	hash    string // of the manifest
	raw     []byte // the manifest
	dir     string

	// Set by launch, before the goroutine that runs main starts, for that goroutine.
	manifest *Manifest
	plan     *blueprint
	layout   layout
	resume   bool
	stop     <-chan struct{} // closed when the run is to end after its current step

	mu       sync.Mutex
	state    *trainerv1.Run
	changed  chan struct{}     // closed and replaced when the state changes
	active   *activity         // nil if no goroutine runs main
	claim    *checkpoint.Store // of the last activity, once it has taken it; nil before
	recorded time.Time         // when the record was last written

	recording sync.Mutex // held while the record is written

	epoch atomic.Uint64 // of the run's lock
}

// activity is one execution of a run, from a start to a pause or an end.
type activity struct {
	stop     chan struct{}
	stopOnce sync.Once
	pause    atomic.Bool     // what stop means
	lease    discovery.Lease // the run's lock, if it is held already
	done     chan struct{}
}

func newRun(s *Service, m *Manifest, raw []byte, dir string) *run {
	sum := sha256.Sum256(raw)
	return &run{
		service: s, name: m.Name, hash: hex.EncodeToString(sum[:]), raw: raw, dir: dir, changed: make(chan struct{}),
		state: &trainerv1.Run{Name: m.Name, Steps: uint64(m.Steps), StartedMs: time.Now().UnixMilli()},
	}
}

// launch starts the run, which is not active, on a layout. The caller holds the service's mu.
func (r *run) launch(ctx context.Context, b *blueprint, l layout, resume bool, lease discovery.Lease) error {
	a := &activity{stop: make(chan struct{}), done: make(chan struct{}), lease: lease}
	r.manifest, r.plan, r.layout, r.resume, r.stop = b.manifest, b, l, resume, a.stop
	r.mu.Lock()
	r.active = a
	r.mu.Unlock()
	r.update(func(s *trainerv1.Run) {
		s.State, s.Error = trainerv1.RunState_RUN_STATE_STARTING, ""
		s.Stages, s.Replicas = uint32(l.stages), uint32(l.replicas)
		s.ModelPath, s.WeightsDigest, s.Published = "", "", nil
	})
	if err := r.record(); err != nil {
		r.mu.Lock()
		r.active = nil
		r.mu.Unlock()
		return fault.Wrap(fault.CodeOf(err), err, "start run %s", r.name)
	}
	r.service.wg.Go(func() { r.main(ctx, a) })
	return nil
}

// snapshot returns the current state of the run, and a channel that the next change closes.
func (r *run) snapshot() (*trainerv1.Run, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return proto.CloneOf(r.state), r.changed
}

func (r *run) update(change func(*trainerv1.Run)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.state.GetState()
	change(r.state)
	if r.state.GetState() != before {
		r.state.ChangedMs = time.Now().UnixMilli()
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// final reports whether a state is final.
func final(s trainerv1.RunState) bool {
	return s == trainerv1.RunState_RUN_STATE_DONE || s == trainerv1.RunState_RUN_STATE_FAILED ||
		s == trainerv1.RunState_RUN_STATE_STOPPED || s == trainerv1.RunState_RUN_STATE_INTERRUPTED
}

// main runs the run to its end or to a pause, and records how it ended.
func (r *run) main(ctx context.Context, a *activity) {
	defer close(a.done)
	stopped, release, err := r.lead(ctx, a)
	defer release()
	if err == nil && !stopped {
		err = r.publish(ctx)
	}
	r.update(func(s *trainerv1.Run) {
		r.active = nil // whoever sees the new state may start the run again
		switch {
		case err != nil && ctx.Err() != nil:
			s.State = trainerv1.RunState_RUN_STATE_INTERRUPTED
		case errors.As(err, new(*deposedError)):
			s.State, s.Error = trainerv1.RunState_RUN_STATE_INTERRUPTED, err.Error()
		case err != nil:
			s.State, s.Error = trainerv1.RunState_RUN_STATE_FAILED, err.Error()
		case stopped && a.pause.Load():
			s.State = trainerv1.RunState_RUN_STATE_PAUSED
		case stopped:
			s.State = trainerv1.RunState_RUN_STATE_STOPPED
		default:
			s.State = trainerv1.RunState_RUN_STATE_DONE
		}
	})
	if err := r.record(); err != nil {
		r.service.log.Error("record how the run ended", "run", r.name, "error", err)
	}
	now, _ := r.snapshot()
	r.service.log.Info("end run", "run", r.name, "state", now.GetState().String(), "error", err)
}

// train steps until the manifest's last step, rebuilding the fleet when it breaks.
func (r *run) train(ctx context.Context) (stopped bool, err error) {
	data, err := readData(ctx, r.manifest, r.plan.vocab)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, data.close()) }()
	r.update(func(s *trainerv1.Run) { s.Data = data.about })
	spec, err := r.plan.spec(data.vocab.Size(), true)
	if err == nil {
		err = data.within(r.manifest, spec.Context)
	}
	if err != nil {
		return false, err
	}
	if r.plan.vocab == nil { // the ids of config.json belong to another vocabulary
		spec.BOS, spec.EOS = nil, nil
		if data.begin >= 0 {
			spec.BOS, spec.EOS = []int32{data.begin}, []int32{data.end}
		}
	}
	initial, err := r.plan.initial()
	if err != nil {
		return false, err
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return false, err
	}
	if err := weights.WriteFile(filepath.Join(r.dir, "manifest.json"), func(w io.Writer) error {
		_, err := w.Write(r.raw)
		return err
	}); err != nil {
		return false, err
	}
	store, err := checkpoint.New(checkpoint.Dir(r.dir), checkpoint.Name).Take()
	if err != nil {
		return false, err
	}
	t := &training{run: r, data: data, spec: spec, initial: initial, damaged: map[uint64]bool{},
		banned: map[string]bool{}, store: store}
	r.mu.Lock()
	r.claim = store // the record is written by its holder alone
	r.mu.Unlock()
	if err := t.open(); err != nil {
		return false, err
	}
	if t.prompts, err = encodePrompts(data, r.manifest.Samples.Prompts); err != nil {
		return false, err
	}
	if t.simulated, err = r.manifest.simulatedBubble(r.layout); err != nil {
		return false, err
	}
	for broken := 0; ; broken++ {
		before := t.step()
		t.fruitless = broken
		stopped, err = t.attempt(ctx)
		if damaged := (*damagedError)(nil); errors.As(err, &damaged) { // each checkpoint is tried once
			t.skip(damaged.step, damaged.err)
			if err := t.findCheckpoint(damaged.step); err != nil {
				return false, err
			}
			continue
		}
		if back := (*rollbackError)(nil); errors.As(err, &back) { // the manifest bounds how often
			if err := t.goBack(back); err != nil {
				return false, err
			}
			continue
		}
		if err == nil || ctx.Err() != nil || !retryable(err) {
			return stopped, err
		}
		if held := t.store.Held(); held != nil {
			return false, &deposedError{held}
		}
		if t.step() > before {
			broken = 0
		}
		if broken >= rebuilds {
			return false, err
		}
		r.service.log.Warn("rebuild chains", "run", r.manifest.Name, "from_step", t.step(), "error", err)
		t.happened(&trainerv1.RunEvent{Step: t.step(), Kind: eventRestart, Message: err.Error()})
		select {
		case <-time.After(rebuildPause << broken):
		case <-r.stop:
			return true, nil // keep the last checkpoint
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// retryable reports whether the step may succeed on other shards, or later on the same ones.
func retryable(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.Aborted, fault.Exhausted, fault.DeadlineExceeded, fault.Canceled,
		fault.FailedPrecondition:
		return true
	}
	return false
}
