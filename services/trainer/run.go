package trainer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/tensor"
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
	changed  chan struct{} // closed and replaced when the state changes
	active   *activity     // nil if no goroutine runs main
	recorded time.Time     // when the record was last written

	recording sync.Mutex // held while the record is written
}

// activity is one execution of a run, from a start to a pause or an end.
type activity struct {
	stop     chan struct{}
	stopOnce sync.Once
	pause    atomic.Bool // what stop means
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
func (r *run) launch(ctx context.Context, b *blueprint, l layout, resume bool) error {
	a := &activity{stop: make(chan struct{}), done: make(chan struct{})}
	r.manifest, r.plan, r.layout, r.resume, r.stop = b.manifest, b, l, resume, a.stop
	r.mu.Lock()
	r.active = a
	r.mu.Unlock()
	r.update(func(s *trainerv1.Run) {
		s.State, s.Error = trainerv1.RunState_RUN_STATE_STARTING, ""
		s.Stages, s.Replicas = uint32(l.stages), uint32(l.replicas)
		s.ModelPath, s.WeightsDigest = "", ""
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
	stopped, err := r.train(ctx)
	r.update(func(s *trainerv1.Run) {
		r.active = nil // whoever sees the new state may start the run again
		switch {
		case err != nil && ctx.Err() != nil:
			s.State = trainerv1.RunState_RUN_STATE_INTERRUPTED
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
		r.service.log.Error("record how the run ended", "run", r.manifest.Name, "error", err)
	}
	now, _ := r.snapshot()
	r.service.log.Info("end run", "run", r.manifest.Name, "state", now.GetState().String(), "error", err)
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
	t := &training{run: r, data: data, spec: spec, initial: initial, damaged: map[uint64]bool{},
		store: checkpoint.New(checkpoint.Dir(r.dir), checkpoint.Name)}
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
		stopped, err = t.attempt(ctx)
		if damaged := (*damagedError)(nil); errors.As(err, &damaged) { // each checkpoint is tried once
			t.skip(damaged.step, damaged.err)
			if err := t.findCheckpoint(damaged.step); err != nil {
				return false, err
			}
			continue
		}
		if err == nil || ctx.Err() != nil || !retryable(err) {
			return stopped, err
		}
		if t.step() > before {
			broken = 0
		}
		if broken >= rebuilds {
			return false, err
		}
		r.service.log.Warn("rebuild chains", "run", r.manifest.Name, "from_step", t.step(), "error", err)
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

// training is the loop of a run over successive fleets.
type training struct {
	run        *run
	data       *dataset
	spec       model.Spec
	initial    *shardv1.InitialWeights // nil for random ones
	store      *checkpoint.Store
	last       *checkpoint.Checkpoint // the last one that is whole; nil before the first
	saving     *saving                // the one that is being written
	damaged    map[uint64]bool        // steps whose checkpoints are damaged
	metrics    *stepFile
	ledger     *stepFile
	samples    *stepFile
	prompts    [][]int32 // of the sample texts
	loss       float64   // of the last step
	validation float64
	bits       float64 // validation in bits per byte
	began      time.Time
	tokens     int
	simulated  float64 // bubble of the schedule
	sent       traffic // since the start; of bytes alone
}

func (t *training) step() uint64 {
	if t.last == nil {
		return 0
	}
	return t.last.Step
}

// open finds the checkpoint to resume from, or removes those of an earlier run.
func (t *training) open() error {
	if t.run.resume {
		return t.findCheckpoint(math.MaxUint64)
	}
	steps, err := t.store.Steps()
	for _, step := range steps {
		err = errors.Join(err, t.store.Remove(step))
	}
	return err
}

// attempt builds a fleet and steps until the end or an error.
func (t *training) attempt(ctx context.Context) (stopped bool, err error) {
	r, m := t.run, t.run.manifest
	for name, file := range map[string]**stepFile{"metrics.jsonl": &t.metrics, "ledger.jsonl": &t.ledger,
		"samples.jsonl": &t.samples} {
		if *file, err = openSteps(filepath.Join(r.dir, name), t.step()); err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, (*file).Close()) }()
	}
	addrs, err := r.service.shards(ctx)
	if err != nil {
		return false, err
	}
	initial := t.initial
	if t.last != nil {
		initial = nil // the checkpoint has the weights
	}
	shared, unshare, err := newShare(r.service.cfg.Dir, r.dir)
	if err != nil {
		return false, err
	}
	f, err := openFleet(ctx, r.service.cfg.Dialer, m, t.spec, initial, r.layout, addrs, shared)
	if err := errors.Join(err, unshare()); err != nil {
		if f != nil {
			f.close()
		}
		return false, err
	}
	defer func() {
		f.close()
		_ = t.wait() // a checkpoint that has failed with the fleet matters no more
	}()
	if t.last != nil {
		if err := f.load(t.last); err != nil {
			return false, err
		}
	}
	r.update(func(s *trainerv1.Run) {
		s.State, s.Step, s.Parameters = trainerv1.RunState_RUN_STATE_RUNNING, t.step(), f.parameters
		s.CheckpointStep = t.step()
	})
	t.began, t.tokens = time.Now(), 0
	due := false
	for step := t.step() + 1; step <= uint64(m.Steps); step++ {
		if err := t.runStep(f, step); err != nil {
			return false, err
		}
		if err := t.tolerate(t.collect()); err != nil {
			return false, err
		}
		select {
		case <-r.stop:
			return true, t.finish(f, step)
		default:
		}
		// While a checkpoint is being written the next one waits, and the steps do not.
		due = due || step%uint64(m.CheckpointEvery) == 0
		if due && t.saving == nil && step < uint64(m.Steps) {
			due = false
			if err := t.save(f, step); err != nil {
				return false, err
			}
		}
	}
	if t.validation == 0 {
		if err := t.evaluate(f, uint64(m.Steps)); err != nil {
			return false, err
		}
	}
	if err := t.finish(f, uint64(m.Steps)); err != nil {
		return false, err
	}
	return false, t.export()
}

// result is the sum of the stages' reports of a step.
type result struct {
	loss  float64
	norm  float64
	rate  float64
	scale float64
}

// runStep runs one optimizer step.
func (t *training) runStep(f *fleet, step uint64) error {
	m := t.run.manifest
	begin := time.Now()
	var idle bubble
	var sent traffic
	data, err := t.read(step)
	if err != nil {
		return err
	}
	res, err := t.optimize(f, step, data, &idle, &sent)
	if err != nil {
		return err
	}
	if err := t.ledger.write(data.ledger); err != nil {
		return err
	}
	t.tokens += int(data.targets)
	t.loss, t.validation, t.bits = res.loss, 0, 0
	if m.EvaluateEvery > 0 && step%uint64(m.EvaluateEvery) == 0 {
		if err := t.evaluate(f, step); err != nil {
			return err
		}
	}
	if every := m.Samples.Every; every > 0 && step%uint64(every) == 0 {
		if err := t.sample(f, step); err != nil {
			return err
		}
	}
	bits := bitsPerByte(res.loss*float64(data.targets), data.bytes)
	t.sent.sent, t.sent.full = t.sent.sent+sent.sent, t.sent.full+sent.full
	speed, took := float64(t.tokens)/time.Since(t.began).Seconds(), float64(time.Since(begin).Microseconds())/1000
	t.run.update(func(s *trainerv1.Run) {
		s.Step, s.Loss, s.GradientNorm, s.LearningRate, s.TokensPerSecond = step, res.loss, res.norm, res.rate, speed
		s.StepMs, s.Bubble, s.SimulatedBubble = took, idle.share(), t.simulated
		s.BitsPerByte = bits
		if t.validation > 0 {
			s.ValidationLoss, s.ValidationBitsPerByte = t.validation, t.bits
		}
		s.GradientBytes, s.GradientRatio, s.GradientError = t.sent.sent, t.sent.ratio(), sent.error()
	})
	t.run.recordLater()
	return t.metrics.write(line{
		Step:                  step,
		Loss:                  res.loss,
		Norm:                  res.norm,
		Rate:                  res.rate,
		Validation:            t.validation,
		BitsPerByte:           bits,
		ValidationBitsPerByte: t.bits,
		Bubble:                idle.share(),
		SimulatedBubble:       t.simulated,
		GradientBytes:         sent.sent,
		GradientBytesRead:     sent.read,
		GradientRatio:         t.sent.ratio(),
		GradientError:         sent.error(),
		StepMS:                took,
		TokensPerSecond:       speed,
	})
}

// optimize computes the gradients of a step and steps the weights.
func (t *training) optimize(f *fleet, step uint64, data *batch, idle *bubble, sent *traffic) (result, error) {
	m := t.run.manifest
	res := result{rate: m.rate().At(int(step))}
	var losses []float64
	var err error
	if m.DiLoCo != nil {
		losses, res.norm, err = t.workersStep(f, step, data, res.rate, idle, sent)
	} else {
		var norms []*shardv1.Norm
		losses, norms, err = t.gradients(f, step, data, idle, sent)
		var squares float64
		for _, n := range norms { // in name order
			squares += n.GetSumSquares()
		}
		res.norm = math.Sqrt(squares)
	}
	if err != nil {
		return res, err
	}
	targets := float64(data.targets)
	for _, l := range losses { // in slot order
		res.loss += l / targets
	}
	if math.IsNaN(res.loss) || math.IsInf(res.norm, 0) || math.IsNaN(res.norm) {
		return res, fault.New(fault.DataLoss, "step %d: loss %v and gradient norm %v are not finite", step, res.loss,
			res.norm)
	}
	if m.DiLoCo != nil {
		return res, nil
	}
	res.scale = optim.ClipScale(res.norm, m.Clip)
	return res, t.apply(f, step, res)
}

// gradients runs the slots of a step on all chains. It returns the losses in slot order and
// the norms in name order. All replicas must report equal norms.
func (t *training) gradients(
	f *fleet, step uint64, data *batch, idle *bubble, sent *traffic,
) ([]float64, []*shardv1.Norm, error) {
	m := t.run.manifest
	losses := make([]float64, m.Slots)
	folded := make([][]*shardv1.Norm, len(f.chains))
	reports := make([][]*shardv1.Folded, len(f.chains))
	var mu sync.Mutex
	var g errgroup.Group
	for _, c := range f.chains {
		lo, hi := m.share(c.replica, len(f.chains))
		s := &shardv1.Step{Step: step, Targets: data.targets}
		for slot := lo; slot < hi; slot++ {
			s.Slots = append(s.Slots, uint32(slot))
		}
		g.Go(func() error { return f.feed(c, s, data.slots[lo:hi]) })
	}
	err := f.each(func(c *chain, i int, s *stage) error {
		return f.collect(s, step, func(l *shardv1.Loss) error {
			mu.Lock()
			defer mu.Unlock()
			err := data.lost(l, c.replica)
			if err == nil {
				losses[l.GetSlot()] = l.GetSum()
			}
			return err
		}, func(r *shardv1.Folded) {
			mu.Lock()
			defer mu.Unlock()
			folded[c.replica] = append(folded[c.replica], r.GetNorms()...)
			reports[c.replica] = append(reports[c.replica], r)
			sent.add(r)
		})
	})
	if err := firstOf(err, g.Wait()); err != nil {
		return nil, nil, err
	}
	if t.run.layout.stages > 1 {
		for _, r := range reports {
			idle.add(r)
		}
	}
	for _, norms := range folded {
		slices.SortFunc(norms, func(a, b *shardv1.Norm) int { return compare(a.GetName(), b.GetName()) })
		if !slices.EqualFunc(norms, folded[0], func(a, b *shardv1.Norm) bool { return proto.Equal(a, b) }) {
			return nil, nil, fault.New(fault.DataLoss, "step %d: the replicas folded different gradients", step)
		}
	}
	return losses, folded[0], nil
}

// apply has all stages step their optimizers, and compares the weights of the replicas.
func (t *training) apply(f *fleet, step uint64, res result) error {
	digests := make([][]uint64, len(f.chains))
	for i := range digests {
		digests[i] = make([]uint64, t.run.layout.stages)
	}
	var g errgroup.Group
	for _, c := range f.chains {
		a := &shardv1.Apply{Step: step, LearningRate: res.rate, GradientScale: res.scale}
		g.Go(func() error { return f.applyChain(c, a, digests[c.replica], func(*shardv1.Applied) {}) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return sameDigests(step, digests)
}

// sameDigests returns an error if replicas have different weights.
func sameDigests(step uint64, digests [][]uint64) error {
	for r, d := range digests {
		if !slices.Equal(d, digests[0]) {
			return fault.New(fault.DataLoss, "step %d: the weights of replica %d differ from replica 0's", step, r)
		}
	}
	return nil
}

// evaluate measures the mean loss of the validation text on the first chain.
func (t *training) evaluate(f *fleet, step uint64) error {
	sequences := t.run.manifest.SlotSequences
	slots := t.data.evaluations(sequences)
	if slots == 0 {
		return nil
	}
	var sum float64
	var targets, bytes uint64
	losses := make([]float64, slots)
	const most = 256 // slots in a step frame
	for from := 0; from < slots; from += most {
		s := &shardv1.Step{Step: step, Targets: 1, ForwardOnly: true}
		var part []*micro
		for i := range min(most, slots-from) {
			m, err := t.data.evaluation(step, from+i, sequences)
			if err != nil {
				return err
			}
			m.Slot = uint32(i)
			s.Slots = append(s.Slots, uint32(i))
			part = append(part, m)
			bytes += m.bytes
		}
		c := f.chains[0]
		var g errgroup.Group
		g.Go(func() error { return f.feed(c, s, part) })
		err := func() error {
			for range part {
				r, err := f.reply(c.stages[len(c.stages)-1])
				if err != nil {
					return err
				}
				l := r.GetLoss()
				if l == nil || int(l.GetSlot()) >= len(part) {
					return fault.New(fault.Internal, "evaluate step %d: the last stage answered with %T", step,
						r.GetFrame())
				}
				losses[from+int(l.GetSlot())] = l.GetSum()
				targets += l.GetTargets()
			}
			return nil
		}()
		if err := firstOf(err, g.Wait()); err != nil {
			return err
		}
	}
	for _, l := range losses {
		sum += l
	}
	t.validation, t.bits = sum/float64(targets), bitsPerByte(sum, bytes)
	t.run.update(func(s *trainerv1.Run) { s.ValidationLoss, s.ValidationBitsPerByte = t.validation, t.bits })
	return nil
}

// export writes the trained model, its vocabulary and its manifest.
func (t *training) export() error {
	dir := filepath.Join(t.run.dir, "model")
	dtype, err := tensor.Parse(t.run.manifest.DType)
	if err != nil {
		return err
	}
	if err := t.exportWeights(dir, dtype); err != nil {
		return fault.Wrap(fault.Internal, err, "export model")
	}
	if err := t.data.vocab.WriteHF(dir); err != nil {
		return fault.Wrap(fault.Internal, err, "export vocabulary")
	}
	if err := addChatTemplate(filepath.Join(dir, "tokenizer_config.json"), t.run.manifest.ChatTemplate); err != nil {
		return fault.Wrap(fault.Internal, err, "export chat template")
	}
	if err := weights.WriteFile(filepath.Join(dir, "manifest.json"), func(w io.Writer) error {
		_, err := w.Write(t.run.raw)
		return err
	}); err != nil {
		return err
	}
	digest := t.last.Weights
	report, err := json.MarshalIndent(map[string]any{
		"run": t.run.manifest.Name, "steps": t.last.Step, "validation_loss": t.validation,
		"validation_bits_per_byte": t.bits, "weights_sha256": digest,
		"manifest_sha256": t.run.hash,
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := weights.WriteFile(filepath.Join(dir, "training.json"), func(w io.Writer) error {
		_, err := w.Write(append(report, '\n'))
		return err
	}); err != nil {
		return err
	}
	t.run.update(func(s *trainerv1.Run) { s.ModelPath, s.WeightsDigest = dir, digest })
	return nil
}

// exportWeights writes the weights of the last checkpoint in the form of Hugging Face's libraries. It
// verifies them first.
func (t *training) exportWeights(dir string, dtype tensor.DType) error {
	var all []model.Exported
	for _, f := range t.last.Files {
		if f.Kind != checkpoint.Weight {
			continue
		}
		for _, w := range f.Tensors {
			if err := t.last.Read(f.Kind, w.Name, func([]byte) error { return nil }); err != nil {
				return err
			}
			all = append(all, model.Exported{Name: w.Name, Shape: w.Shape, Open: func() (model.Values, error) {
				return t.last.OpenTensor(f.Kind, w.Name)
			}})
		}
	}
	return model.ExportFiles(dir, t.spec, all, model.ExportOptions{DType: dtype})
}

// addChatTemplate adds a chat template to a tokenizer_config.json.
func addChatTemplate(path, template string) error {
	if template == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	config["chat_template"] = template
	return weights.WriteFile(path, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(config)
	})
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
