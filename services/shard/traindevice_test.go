package shard_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/testdevice"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/pkg/wire"
	"github.com/lamina-mesh/lamina/services/shard"
)

// deviceSet opens a GPU without a GPU, whose kernels an interpreter runs, or a GPU that package testdevice opens. It
// may allocate so many bytes; 0 means all.
func deviceSet(t *testing.T, memory int64) *cuda.Set {
	t.Helper()
	d, number := testdevice.Open(t, twin.Config{Devices: 1, Machine: twin.Simulated})
	set, err := cuda.Open(d, cuda.Config{Number: number, KV: kernel.KVAuto, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return set
}

// tinyVocab is the number of tokens of the model that devices train.
const tinyVocab = 24

// tinyOpening returns the first frame of a stage of a model that an interpreter can train, or of all of it.
func tinyOpening(lo, hi uint32) *shardv1.TrainOpen {
	open := trainOpening(0, 1)
	open.Slots, open.SequenceLen, open.Spans = 2, slotLength, []*shardv1.Span{{Lo: lo, Hi: hi}}
	open.ConfigJson = fmt.Appendf(nil, `{"model_type":"llama","hidden_size":8,"num_hidden_layers":2,
		"num_attention_heads":2,"intermediate_size":12,"vocab_size":%d,"max_position_embeddings":8,
		"tie_word_embeddings":true}`, tinyVocab)
	if hi-lo < 2 {
		open.Stages, open.Stage = 2, lo
	}
	return open
}

// tinyStep is a step of some slots, and tinyBatch the micro-batch of a slot.
func tinyStep(step uint64, slots ...uint32) *shardv1.TrainRequest {
	return &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: &shardv1.Step{Step: step,
		Targets: 2 * slotLength, Slots: slots}}}
}

func tinyBatch(step uint64, slot uint32) *shardv1.TrainRequest {
	m := microbatch(step, slot)
	for i := range m.GetIds() {
		m.Ids[i] %= tinyVocab
		m.Targets[i] %= tinyVocab
	}
	return &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: m}}
}

// chain is the stages of a model, which the test trains.
type chain []*conversation

// step makes a step, and returns the losses of its slots and the norms of all gradients.
func (c chain) step(step uint64) (losses []float64, norms []*shardv1.Norm) {
	for _, s := range c {
		s.send(tinyStep(step, 0, 1))
		for slot := range uint32(2) {
			s.send(tinyBatch(step, slot))
		}
	}
	for _, s := range c {
		l, n := s.folded()
		losses, norms = append(losses, l...), append(norms, n...)
	}
	for _, s := range c {
		s.apply(step)
	}
	slices.SortFunc(norms, func(a, b *shardv1.Norm) int { return strings.Compare(a.GetName(), b.GetName()) })
	return losses, norms
}

// state reads the weights and moments that a stage writes to a checkpoint.
func (c *conversation) state(step uint64, stage uint32) map[string][]float32 {
	c.t.Helper()
	c.snapshot(step)
	files, _, err := c.savedBy(step, stage)
	if err != nil {
		c.t.Fatal(err)
	}
	out := map[string][]float32{}
	for name, data := range files {
		source, err := weights.ParseSafetensors(name, data)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, tensor := range source.Names() {
			raw, err := source.Data(tensor)
			if err != nil {
				c.t.Fatal(err)
			}
			kind, _, _ := strings.Cut(name, "-")
			out[kind+" "+tensor] = wire.Floats(nil, raw)
		}
	}
	return out
}

// trained trains one stage for two steps on a kernel set.
func trained(t *testing.T, set kernel.Set[float32], change func(*shardv1.TrainOpen)) (
	losses []float64, norms []*shardv1.Norm, state map[string][]float32,
) {
	t.Helper()
	open := tinyOpening(0, 2)
	change(open)
	c := newTrainRigOn(t, gradbus.NewMemory(busLimit), set).train(open)
	for step := uint64(1); step <= 2; step++ {
		losses, norms = chain{c}.step(step)
	}
	state = c.state(2, 0)
	c.end()
	return losses, norms, state
}

// apart returns the greatest difference of two lists of values.
func apart(got, want []float32) (worst float64) {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	for i, v := range want {
		worst = max(worst, math.Abs(float64(got[i]-v)))
	}
	return worst
}

// near reports whether two values agree to a share of their size.
func near(got, want, share float64) bool { return math.Abs(got-want) <= share*math.Abs(want) }

// A stage on a GPU computes the losses, norms, weights and moments of the reference, in every way to train.
func TestTrain_OnADevice(t *testing.T) {
	skipRace(t)
	set := deviceSet(t, 0)
	for name, c := range map[string]struct {
		change func(*shardv1.TrainOpen)
		share  float64 // by which losses and norms may differ, and weights by a share of the largest one
	}{
		"float32":          {func(*shardv1.TrainOpen) {}, 1e-4},
		"layers run again": {func(o *shardv1.TrainOpen) { o.RecomputeLayers = true }, 1e-4},
		"dropout and z-loss": {func(o *shardv1.TrainOpen) {
			o.Dropout, o.ZLoss = &shardv1.Dropout{Residual: 0.2}, 0.01
		}, 1e-4},
		"muon, gradients in bytes": {func(o *shardv1.TrainOpen) {
			o.Optimizer.Name, o.Optimizer.Muon = "muon", &shardv1.Muon{Momentum: 0.9, Nesterov: true, Iterations: 3}
			o.Gradients = &shardv1.Gradients{Wire: "int8", Nodes: 1}
		}, 1e-2},
		"sgd, frozen norms": {func(o *shardv1.TrainOpen) {
			o.Optimizer.Name, o.Optimizer.Sgd = "sgd", &shardv1.SGD{Momentum: 0.9, Nesterov: true}
			o.Optimizer.Rules = []*shardv1.ParameterRule{{Match: "*norm*", Trainable: new(bool)}}
		}, 1e-4},
		"operands in bfloat16": {func(o *shardv1.TrainOpen) {
			o.Precision = shardv1.Precision_PRECISION_BFLOAT16
		}, 2e-2},
		"weights in bfloat16": {func(o *shardv1.TrainOpen) {
			o.Storage = shardv1.Precision_PRECISION_BFLOAT16
		}, 2e-2},
	} {
		t.Run(name, func(t *testing.T) {
			losses, norms, state := trained(t, set, c.change)
			wantLosses, wantNorms, wantState := trained(t, ref.New[float32](), c.change)
			for i, want := range wantLosses {
				if !near(losses[i], want, c.share) {
					t.Errorf("the loss of slot %d is %v, want %v", i, losses[i], want)
				}
			}
			for i, want := range wantNorms {
				got := norms[i]
				if got.GetName() != want.GetName() || !near(got.GetSumSquares(), want.GetSumSquares(), 2*c.share) {
					t.Errorf("the norm is %v, want %v", got, want)
				}
			}
			if len(state) != len(wantState) {
				t.Errorf("%d tensors of state, want %d", len(state), len(wantState))
			}
			for tensor, want := range wantState {
				size := apart(want, make([]float32, len(want)))
				if worst := apart(state[tensor], want); !(worst <= 2*c.share*size) {
					t.Errorf("%s of up to %v is off by %v", tensor, size, worst)
				}
			}
		})
	}
}

// Stages on a GPU and a processor make one model, with a tied weight on both.
func TestTrain_ADeviceBesideAProcessor(t *testing.T) {
	skipRace(t)
	_, _, want := trained(t, ref.New[float32](), func(*shardv1.TrainOpen) {})
	set := deviceSet(t, 0)
	for name, sets := range map[string][2]kernel.Set[float32]{
		"the GPU first": {set, ref.New[float32]()},
		"the GPU last":  {ref.New[float32](), set},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string][]float32{}
			for _, s := range pair(t, sets[0], sets[1], "1f1b") {
				maps.Copy(got, s)
			}
			if len(got) != len(want) {
				t.Errorf("%d tensors of state, want %d", len(got), len(want))
			}
			for tensor, values := range want {
				if worst := apart(got[tensor], values); !(worst <= 1e-5) {
					t.Errorf("%s is off by %v", tensor, worst)
				}
			}
		})
	}
}

// pair trains two stages for two steps, and returns the state of each.
func pair(t *testing.T, first, second kernel.Set[float32], order string) (states [2]map[string][]float32) {
	t.Helper()
	bus, network := gradbus.NewMemory(busLimit), memnet.New()
	var c chain
	for i, set := range []kernel.Set[float32]{second, first} { // the last stage is open first
		r := newRigAt(t, network, fmt.Sprintf("mem:stage-%d", 1-i), shard.Config{Kernels: set, Bus: bus})
		open := tinyOpening(uint32(1-i), uint32(2-i))
		if open.Schedule = order; i == 1 {
			open.Next = "mem:stage-1"
		}
		c = append(chain{r.train(open)}, c...)
	}
	for step := uint64(1); step <= 2; step++ {
		c.step(step)
	}
	for i, s := range c {
		states[i] = s.state(2, uint32(i))
	}
	for _, s := range c {
		if err := s.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range c {
		_ = s.fails() // the one that ends first takes the link away from the other
	}
	return states
}

// The weights have the same bits on one stage of a GPU, on two stages by each schedule, on two replicas, and after a
// resume.
func TestTrain_LayoutsOfADevice(t *testing.T) {
	skipRace(t)
	set := deviceSet(t, 0)
	_, _, want := trained(t, set, func(*shardv1.TrainOpen) {})
	same := func(what string, got map[string][]float32) {
		t.Helper()
		if len(got) != len(want) {
			t.Errorf("%s: %d tensors of state, want %d", what, len(got), len(want))
		}
		for tensor, values := range want {
			if !slices.Equal(got[tensor], values) {
				t.Errorf("%s: %s has other bits", what, tensor)
			}
		}
	}
	for _, order := range []string{"1f1b", "zero-bubble"} {
		got := map[string][]float32{}
		for _, s := range pair(t, set, set, order) {
			maps.Copy(got, s)
		}
		same("two stages, "+order, got)
	}
	r := newTrainRigOn(t, gradbus.NewMemory(busLimit), set)
	var c chain
	for i := range uint32(2) {
		open := tinyOpening(0, 2)
		open.Replica, open.Replicas, open.Chain[0] = i, 2, byte(i+1)
		c = append(c, r.train(open))
	}
	for step := uint64(1); step <= 2; step++ {
		for i, s := range c {
			s.send(tinyStep(step, uint32(i)))
			s.send(tinyBatch(step, uint32(i)))
		}
		for _, s := range c {
			s.folded()
		}
		if a, b := c[0].apply(step), c[1].apply(step); a != b {
			t.Errorf("step %d: the replicas have weights %x and %x", step, a, b)
		}
	}
	halves := c[0].state(2, 0) // each replica writes a part
	c[0].end()
	c[1].end()
	for tensor, values := range halves {
		if !slices.Equal(want[tensor], values) {
			t.Errorf("two replicas: %s has other bits", tensor)
		}
	}
	if len(halves) == 0 {
		t.Error("a replica writes nothing")
	}
}

// What shards do not do on devices yet is refused by name when a run is opened.
func TestTrain_WhatDevicesDoNotDoIsRefused(t *testing.T) {
	skipRace(t)
	r := newTrainRigOn(t, gradbus.NewMemory(busLimit), deviceSet(t, 0))
	for what, change := range map[string]func(*shardv1.TrainOpen){
		"diloco": func(o *shardv1.TrainOpen) {
			o.Diloco = &shardv1.DiLoCo{Workers: 1, Interval: 2, Fragments: 1, LearningRate: 0.7}
		},
		"objective.grpo": func(o *shardv1.TrainOpen) {
			o.IsolateDocuments = true
			o.Objective = &shardv1.Objective{Kind: &shardv1.Objective_Grpo{Grpo: &shardv1.GRPO{ClipLow: 0.2,
				ClipHigh: 0.2}}}
		},
	} {
		open := tinyOpening(0, 2)
		change(open)
		want := "train: shards on cuda:0 do not have " + what + " yet: train on processors"
		if err := r.refused(open); fault.CodeOf(err) != fault.Unimplemented || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// refused opens a stage, and returns why it is refused.
func (r *trainRig) refused(open *shardv1.TrainOpen) error {
	r.t.Helper()
	stream, err := r.client.Train(r.ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	c := &conversation{r, stream}
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Open{Open: open}})
	return c.fails()
}

// A stage whose GPU is lost ends with an error for which its work is done elsewhere, and the shard opens no other one.
func TestTrain_ADeviceIsLost(t *testing.T) {
	skipRace(t)
	faults := &twin.Faults{}
	d := twin.New(twin.Config{Devices: 1, Machine: twin.Simulated, Faults: faults})
	set, err := cuda.Open(d, cuda.Config{KV: kernel.KVAuto})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = set.Close() }) // the device's error
	r := newTrainRigOn(t, gradbus.NewMemory(busLimit), set)
	c := r.train(tinyOpening(0, 2))
	chain{c}.step(1)
	faults.FailNext("CUDA_ERROR_ILLEGAL_ADDRESS")
	c.send(tinyStep(2, 0, 1))
	c.send(tinyBatch(2, 0))
	c.send(tinyBatch(2, 1))
	if err := c.fails(); fault.CodeOf(err) != fault.Unavailable ||
		!strings.Contains(err.Error(), "CUDA_ERROR_ILLEGAL_ADDRESS") {
		t.Errorf("the stage ends with %v", err)
	}
	<-r.service.Failed()
	if err := r.refused(tinyOpening(0, 2)); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("another stage is refused with %v", err)
	}
}

// The preference losses of pairs and the gradients of an adapter on a GPU are those of the reference, also over the
// base without the adapter.
func TestTrain_PairsOnADevice(t *testing.T) {
	skipRace(t)
	const rows = 8 // of two documents with 3, and 2 that fill the sequence
	m := &shardv1.Microbatch{Step: 1, Sequences: 1, Length: rows, Ids: []uint32{5, 9, 2, 5, 9, 7, 0, 0},
		Targets: []int32{-1, 2, 11, -1, 7, 3, -1, -1}, Documents: []uint32{3, 3, 2},
		Pairs: []*shardv1.Pair{{Chosen: 0, Rejected: 1, ReferenceChosen: -11, ReferenceRejected: -12}}}
	run := func(set kernel.Set[float32]) (losses []*shardv1.PairLoss, norms []*shardv1.Norm) {
		open := pairOpening(t, "llama", 0.1, 1)
		open.Adapter.StoredBase, open.SequenceLen = true, rows
		c := newTrainRigOn(t, gradbus.NewMemory(busLimit), set).train(open)
		for _, base := range []bool{true, false} {
			c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: &shardv1.Step{Step: 1, Targets: 1,
				Slots: []uint32{0}, ForwardOnly: base, Base: base}}})
			c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: m}})
			losses = append(losses, c.next().GetLoss().GetPairs()...)
		}
		norms = c.next().GetFolded().GetNorms()
		c.end()
		return losses, norms
	}
	losses, norms := run(deviceSet(t, 0))
	wantLosses, wantNorms := run(ref.New[float32]())
	if len(losses) != 2 || len(norms) != len(wantNorms) || len(norms) == 0 {
		t.Fatalf("%d losses and %d norms, want 2 and %d", len(losses), len(norms), len(wantNorms))
	}
	for i, want := range wantLosses {
		if got := losses[i]; !near(got.GetChosen(), want.GetChosen(), 1e-3) ||
			!near(got.GetRejected(), want.GetRejected(), 1e-3) || !near(got.GetLoss(), want.GetLoss(), 1e-3) {
			t.Errorf("a pair has %v, want %v", got, want)
		}
	}
	for i, want := range wantNorms {
		if got := norms[i]; got.GetName() != want.GetName() || !near(got.GetSumSquares(), want.GetSumSquares(), 1e-2) {
			t.Errorf("the norm is %v, want %v", got, want)
		}
	}
}
