package shard_test

import (
	"math"
	"testing"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// TestTrain_AccumulatedGradientsAreThoseOfOneBatch runs one batch of six sequences as a single slot, and
// divided into slots in several ways: the last slot is smaller, or has no target at all. The targets of each
// sequence are masked to another degree, so a mean of the slots' means would be another loss.
func TestTrain_AccumulatedGradientsAreThoseOfOneBatch(t *testing.T) {
	const length, sequences = 16, 6
	ids, targets := make([][]uint32, sequences), make([][]int32, sequences)
	count := uint64(0)
	for s := range sequences {
		for i := range length {
			target := int32((s*97 + i*53 + 11) % 320)
			if i < 2*s || s == sequences-1 { // the prompt of an instruction, and a sequence of prompt only
				target = -1
			} else {
				count++
			}
			ids[s], targets[s] = append(ids[s], uint32((s*31+i*i*7+3)%320)), append(targets[s], target)
		}
	}
	set := cpu.New(2)
	t.Cleanup(set.Close)
	for _, name := range []string{"llama-linear-bias", "gpt2", "qwen3-moe"} {
		run := func(sizes ...int) (float64, map[string]float64) {
			open := trainOpening(0, 1)
			open.Slots, open.SequenceLen, open.SlotSequences = uint32(len(sizes)), length, sequences
			open.ZLoss = 0.01
			first, last := twoStages(newTrainRigOn(t, gradbus.NewMemory(busLimit), set), tinyModel(t, name), open)
			var slots []*shardv1.Microbatch
			at := 0
			for _, n := range sizes {
				m := &shardv1.Microbatch{Sequences: uint32(n), Length: length}
				for s := at; s < at+n; s++ {
					m.Ids, m.Targets = append(m.Ids, ids[s]...), append(m.Targets, targets[s]...)
				}
				at += n
				slots = append(slots, m)
			}
			sum, squares := stepOf(first, last, 1, count, slots)
			return sum / float64(count), squares
		}
		loss, squares := run(sequences)
		for _, sizes := range [][]int{{1, 1, 1, 1, 1, 1}, {2, 2, 2}, {4, 2}, {3, 2, 1}, {5, 1}} {
			gotLoss, got := run(sizes...)
			if !(math.Abs(gotLoss/loss-1) <= 1e-6) {
				t.Errorf("%s in slots of %v: loss %.9g, as one batch %.9g", name, sizes, gotLoss, loss)
			}
			for param, want := range squares {
				if !(math.Abs(math.Sqrt(got[param]/want)-1) <= 1e-6) {
					t.Errorf(
						"%s in slots of %v: the gradient of %s has norm %.9g, as one batch %.9g",
						name,
						sizes,
						param,
						math.Sqrt(got[param]),
						math.Sqrt(want),
					)
				}
			}
		}
	}
}

// TestTrain_SlotsWithoutTargetsHaveNoGradient masks all targets: neither the loss nor the z-loss has a part
// in any gradient.
func TestTrain_SlotsWithoutTargetsHaveNoGradient(t *testing.T) {
	open := trainOpening(0, 1)
	open.Slots, open.ZLoss = 1, 0.5
	first, last := twoStages(newTrainRig(t, gradbus.NewMemory(busLimit)), tinyModel(t, "llama"), open)
	m := &shardv1.Microbatch{
		Sequences: 1,
		Length:    slotLength,
		Ids:       []uint32{5, 9, 2, 7},
		Targets:   []int32{-1, -1, -1, -1},
	}
	sum, squares := stepOf(first, last, 1, 1, []*shardv1.Microbatch{m})
	if sum != 0 || len(squares) == 0 {
		t.Errorf("loss %v of masked targets, %d norms", sum, len(squares))
	}
	for name, s := range squares {
		if s != 0 {
			t.Errorf("the gradient of %s is not zero: %g", name, s)
		}
	}
	m.Targets[2] = 3
	sum, squares = stepOf(first, last, 1, 1, []*shardv1.Microbatch{m})
	if sum == 0 || squares["model.norm.weight"] == 0 {
		t.Error("one target has no loss or no gradient")
	}
}
