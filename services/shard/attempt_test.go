package shard_test

import (
	"fmt"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// attempt sends a step as one of several attempts, with the first few of its slots [lo,hi).
func (c *conversation) attempt(step uint64, n, lo, hi, slots uint32, members ...*shardv1.Member) {
	c.t.Helper()
	s := &shardv1.Step{Step: step, Attempt: n, Targets: slotCount * slotLength, Members: members}
	for slot := lo; slot < hi; slot++ {
		s.Slots = append(s.Slots, slot)
	}
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: s}})
	for slot := lo; slot < lo+slots; slot++ {
		c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: microbatch(step, slot)}})
	}
}

// applyAs applies the gradient of an attempt.
func (c *conversation) applyAs(a *shardv1.Apply) uint64 {
	c.t.Helper()
	a.LearningRate, a.GradientScale = 0.01, 1
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Apply{Apply: a}})
	f := c.next()
	if f.GetApplied().GetStep() != a.GetStep() {
		c.t.Fatalf("reply to apply %d is %v", a.GetStep(), f)
	}
	return f.GetApplied().GetDigest()
}

func withWire(o *shardv1.TrainOpen, name string) *shardv1.TrainOpen {
	o.Gradients = &shardv1.Gradients{Wire: name}
	if name != "f32" {
		o.Gradients.Nodes = 2
	}
	if name == "topk" {
		o.Gradients.Density = 0.1
	}
	return o
}

// calmDigests returns the digests of an undisturbed run of two replicas.
func calmDigests(t *testing.T, wireType string, steps uint64) (out []uint64) {
	t.Helper()
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	a, b := r.train(withWire(trainOpening(0, 2), wireType)), r.train(withWire(trainOpening(1, 2), wireType))
	for step := uint64(1); step <= steps; step++ {
		a.step(step, 0, 2, false)
		b.step(step, 2, 4, false)
		a.folded()
		b.folded()
		a.apply(step)
		out = append(out, b.apply(step))
	}
	a.end()
	b.end()
	return out
}

// The other replica is lost at different moments, once in the first step and once in the second one. Whatever an
// attempt has done, the next one begins as if it had never been.
func TestTrain_AbortedAttemptLeavesNoTrace(t *testing.T) {
	for _, wireType := range []string{"f32", "bf16", "int8", "topk"} {
		want := calmDigests(t, wireType, 3)
		for name, mine := range map[string]uint32{"before its first slot": 0, "between two slots": 1,
			"while it waits for the others": 2} {
			t.Run(wireType+" "+name, func(t *testing.T) {
				r := newTrainRig(t, gradbus.NewMemory(busLimit))
				a, b := r.train(withWire(trainOpening(0, 2), wireType)), r.train(withWire(trainOpening(1, 2), wireType))
				for step := uint64(1); step <= 3; step++ {
					for n := range uint32(2) { // twice in a row
						a.attempt(step, n, 0, 2, mine)
						a.abort(step, n)
						b.abort(step, n) // which it has not begun
					}
					a.attempt(step, 2, 0, 2, 2)
					b.attempt(step, 2, 2, 4, 2)
					a.folded()
					b.folded()
					if step == 3 { // all is ready to be applied
						a.abort(step, 2)
						b.abort(step, 2)
						a.attempt(step, 3, 0, 2, 2)
						b.attempt(step, 3, 2, 4, 2)
						a.folded()
						b.folded()
					}
					n := uint32(step/3 + 2)
					if got := a.applyAs(&shardv1.Apply{Step: step, Attempt: n}); got != want[step-1] {
						t.Errorf("step %d: weights %x, undisturbed %x", step, got, want[step-1])
					}
					b.applyAs(&shardv1.Apply{Step: step, Attempt: n})
				}
				a.end()
				b.end()
			})
		}
	}
}

func member(replica, lo, hi uint32) *shardv1.Member {
	return &shardv1.Member{Replica: replica, Lo: lo, Hi: hi}
}

// Replicas leave and join, and slots move between them, also with what they have published for an attempt that
// was aborted.
func TestTrain_MembersChangeBetweenAttempts(t *testing.T) {
	norms, digests := alone(t, 4)
	for _, wireType := range []string{"f32", "bf16"} {
		want := digests
		if wireType != "f32" {
			want = calmDigests(t, wireType, 4)
		}
		r := newTrainRig(t, gradbus.NewMemory(busLimit))
		a, b := r.train(withWire(trainOpening(0, 2), wireType)), r.train(withWire(trainOpening(1, 2), wireType))
		check := func(c *conversation, step uint64, n uint32) {
			t.Helper()
			if _, got := c.folded(); wireType == "f32" && !sameNorms(got, norms[step-1]) {
				t.Errorf("step %d: norms differ from those of a single replica", step)
			}
			if got := c.applyAs(&shardv1.Apply{Step: step, Attempt: n}); got != want[step-1] {
				t.Errorf("%s step %d: weights %x, want %x", wireType, step, got, want[step-1])
			}
		}
		// Both publish, b is lost, a makes the step alone.
		a.attempt(1, 0, 0, 2, 2, member(0, 0, 2), member(1, 2, 4))
		b.attempt(1, 0, 2, 4, 2, member(0, 0, 2), member(1, 2, 4))
		a.folded()
		b.folded()
		a.abort(1, 0)
		a.attempt(1, 1, 0, 4, 4, member(0, 0, 4))
		check(a, 1, 1)
		b.abort(1, 0)
		b.attempt(1, 1, 0, 4, 4, member(1, 0, 4)) // so that it is up to date
		check(b, 1, 1)
		// The order of replicas is that of their slots. The lossy wire type has two nodes, which are not divided.
		lo := uint32(2)
		if wireType == "f32" {
			lo = 1
		}
		a.attempt(2, 0, lo, 4, 4-lo, member(1, 0, lo), member(0, lo, 4))
		b.attempt(2, 0, 0, lo, lo, member(1, 0, lo), member(0, lo, 4))
		check(a, 2, 0)
		check(b, 2, 0)
		// An aborted attempt with other shares, whose events are still there.
		a.attempt(3, 0, 0, 2, 2, member(0, 0, 2), member(1, 2, 4))
		b.attempt(3, 0, 2, 4, 1, member(0, 0, 2), member(1, 2, 4))
		a.abort(3, 0)
		b.abort(3, 0)
		a.attempt(3, 1, lo, 4, 4-lo, member(1, 0, lo), member(0, lo, 4))
		b.attempt(3, 1, 0, lo, lo, member(1, 0, lo), member(0, lo, 4))
		check(a, 3, 1)
		check(b, 3, 1)
		a.end()
		b.end()
	}
}

func TestTrain_ChainOfStagesForgetsAnAttempt(t *testing.T) {
	open := func(stage uint32) *shardv1.TrainOpen {
		o := trainOpening(0, 1)
		o.Stages, o.Stage, o.Spans = 2, stage, []*shardv1.Span{{Lo: stage, Hi: stage + 1}}
		if stage == 0 {
			o.Next = "mem:shard"
		}
		return o
	}
	run := func(disturb func(step uint64, first, last *conversation) uint32) (out []uint64) {
		r := newTrainRig(t, gradbus.NewMemory(busLimit))
		last := r.train(open(1))
		first := r.train(open(0))
		for step := uint64(1); step <= 4; step++ {
			n := disturb(step, first, last)
			first.attempt(step, n, 0, 4, 4)
			last.attempt(step, n, 0, 4, 4)
			first.folded()
			last.folded()
			out = append(out, first.applyAs(&shardv1.Apply{Step: step, Attempt: n}),
				last.applyAs(&shardv1.Apply{Step: step, Attempt: n}))
		}
		return out
	}
	calm := run(func(uint64, *conversation, *conversation) uint32 { return 0 })
	got := run(func(step uint64, first, last *conversation) uint32 {
		if step == 1 {
			return 0
		}
		for n := range uint32(3) { // activations and gradients are on their way
			first.attempt(step, n, 0, 4, uint32(step)+n-1)
			if n != 1 {
				last.attempt(step, n, 0, 4, uint32(step)-1)
			}
			first.abort(step, n)
			last.abort(step, n)
		}
		return 3
	})
	if fmt.Sprint(got) != fmt.Sprint(calm) {
		t.Errorf("weights %x, undisturbed %x", got, calm)
	}
}

func TestTrain_SkippedStepsChangeNothing(t *testing.T) {
	for _, wireType := range []string{"f32", "int8"} {
		want := calmDigests(t, wireType, 1)
		r := newTrainRig(t, gradbus.NewMemory(busLimit))
		a, b := r.train(withWire(trainOpening(0, 2), wireType)), r.train(withWire(trainOpening(1, 2), wireType))
		for step := uint64(1); step <= 2; step++ {
			a.attempt(step, 0, 0, 2, 2)
			b.attempt(step, 0, 2, 4, 2)
			a.folded()
			b.folded()
			for _, c := range []*conversation{a, b} {
				if got := c.applyAs(&shardv1.Apply{Step: step, Skip: step == 2}); got != want[0] {
					t.Errorf("%s step %d: weights %x, want those of step 1, %x", wireType, step, got, want[0])
				}
			}
		}
		a.end()
		b.end()
	}
}

func TestTrain_FramesOfOtherAttemptsAreRefused(t *testing.T) {
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	for name, c := range map[string]struct {
		do   func(*conversation)
		want fault.Code
	}{
		"apply of an aborted attempt": {func(c *conversation) {
			c.attempt(1, 0, 0, 4, 4)
			c.folded()
			c.abort(1, 0)
			c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Apply{Apply: &shardv1.Apply{Step: 1}}})
		}, fault.FailedPrecondition},
		"a step of an aborted attempt": {func(c *conversation) {
			c.attempt(1, 0, 0, 4, 4)
			c.folded()
			c.abort(1, 0)
			c.step(1, 0, 4, true)
		}, fault.FailedPrecondition},
		"apply of another attempt": {func(c *conversation) {
			c.attempt(1, 1, 0, 4, 4)
			c.folded()
			c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Apply{Apply: &shardv1.Apply{Step: 1}}})
		}, fault.FailedPrecondition},
		"abort of a step that is applied": {func(c *conversation) {
			c.attempt(1, 0, 0, 4, 4)
			c.folded()
			c.applyAs(&shardv1.Apply{Step: 1})
			c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Abort{Abort: &shardv1.Abort{Step: 1}}})
		}, fault.FailedPrecondition},
		"members without this replica": {func(c *conversation) {
			c.attempt(1, 0, 0, 4, 4, member(3, 0, 4))
		}, fault.Invalid},
		"members with a gap":      {func(c *conversation) { c.attempt(1, 0, 0, 4, 4, member(0, 1, 4)) }, fault.Invalid},
		"members of some slots":   {func(c *conversation) { c.attempt(1, 0, 0, 3, 3, member(0, 0, 3)) }, fault.Invalid},
		"a member twice":          {func(c *conversation) { c.attempt(1, 0, 0, 1, 1, member(0, 0, 1), member(0, 1, 4)) }, fault.Invalid},
		"a member without a slot": {func(c *conversation) { c.attempt(1, 0, 0, 4, 4, member(1, 0, 0), member(0, 0, 4)) }, fault.Invalid},
	} {
		conv := r.train(trainOpening(0, 1))
		c.do(conv)
		if err := conv.fails(); fault.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want code %v", name, err, c.want)
		}
	}
	conv := r.train(withWire(trainOpening(0, 2), "int8"))
	conv.attempt(1, 0, 0, 4, 4, member(0, 0, 4))
	if err := conv.fails(); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("members without the replica that has the residuals: %v", err)
	}
}

func TestTrain_ADeposedTrainerIsRefused(t *testing.T) {
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	open := func(chain byte, epoch uint64) *shardv1.TrainOpen {
		o := trainOpening(0, 1)
		o.Chain[1], o.Lease, o.Epoch = chain, "runs/x", epoch
		return o
	}
	old := r.train(open(1, 7))
	old.attempt(1, 0, 0, 4, 4)
	old.folded()
	next := r.train(open(2, 8))
	old.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Apply{Apply: &shardv1.Apply{Step: 1, Epoch: 7}}})
	if err := old.fails(); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("apply of a deposed trainer: %v", err)
	}
	again := &conversation{r, nil}
	stream, err := r.client.Train(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	again.stream = stream
	again.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Open{Open: open(3, 7)}})
	if err := again.fails(); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("a stage of a deposed trainer: %v", err)
	}
	next.attempt(1, 0, 0, 4, 4)
	next.folded()
	next.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Apply{Apply: &shardv1.Apply{Step: 1, Epoch: 7}}})
	if err := next.fails(); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("apply with an older epoch: %v", err)
	}
}
