package model

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// A decode step has one row of each sequence. Step for step it runs the same operations over the same scratch memory,
// so a kernel set may keep them and launch them together; see kernel.Stepper. The set is told which adapters the rows
// have, since steps of one kind may differ in them. Those whose adapters replace modules are of a kind of their own, as
// their products have other matrices; and those with DoRA, whose magnitudes the host applies, are not kept.

// stepKind says what the operations of a step depend on beside its spans and positions.
type stepKind struct {
	rows, logits int
	features     bool
	// Which of the stage's scratch memories, and of those of experts; one may lie where another has lain.
	scratch, routed int
	adapted         bool   // rows have adapters
	replaced        string // those adapters, if they replace modules
}

// stepper keeps the steps of a stage.
type stepper[F tensor.Float] struct {
	steps  kernel.Steps[F] // nil if the set keeps none
	before stepKind        // of the pass before; zero if that was no step
	kind   stepKind        // of all results
	result map[stepKind]kernel.Buffer[F]
}

// newStepper returns the stepper of a new stage.
func newStepper[F tensor.Float](set kernel.Set[F]) stepper[F] {
	out := stepper[F]{result: map[stepKind]kernel.Buffer[F]{}}
	if set, ok := set.(kernel.Stepper[F]); ok {
		out.steps = set.Steps()
	}
	return out
}

// stepOf returns the kind of a batch that is a step, and whether it is one that may be kept. Passes whose scratch
// memory is still growing are none.
func (s *Stage[F]) stepOf(b *Batch[F], rows, logits int) (stepKind, bool) {
	if s.steps.steps == nil || b.Observe != nil || len(b.Entries) != rows ||
		logits != 0 && logits != rows || len(s.scratch.store) == 0 || s.scratch.spill > 0 ||
		slices.ContainsFunc(s.adapted, func(r adapted[F]) bool { return r.adapter.dora }) {
		return stepKind{}, false
	}
	kind := stepKind{rows: rows, logits: logits, features: b.Features, scratch: s.scratch.made,
		routed: s.routed.made, adapted: len(s.adapted) > 0}
	if s.replacing {
		kind.replaced = s.adapters()
	}
	return kind, true
}

// runBlocks runs all blocks, and on the last stage the head, over x[ΣRows,C]. It returns the hidden state, or what
// Forward returns of the last stage.
func (s *Stage[F]) runBlocks(b *Batch[F], x kernel.Buffer[F], pos []int32, logits int) kernel.Buffer[F] {
	kind, ok := s.stepOf(b, len(pos), logits)
	// The first step of a kind is often the only one, and its scratch memory may not suffice. That of experts does if
	// the pass before was of this kind: it took the same, and no more was made since.
	again := ok && kind == s.steps.before
	s.steps.before = kind
	if !again {
		return s.blocksForward(b, x, pos, logits)
	}
	spans := make([]kernel.Span[F], 0, len(b.Entries))
	for _, e := range b.Entries {
		spans = append(spans, kernel.Span[F]{Rows: e.Rows, Pos: e.Pos, KV: e.Seq.View(0)})
	}
	var out kernel.Buffer[F]
	var pass Stage[F]
	step := kernel.Step[F]{Kind: kind, Spans: spans, Pos: pos, Adapters: s.adapters()}
	played := s.steps.steps.Run(step, func(set kernel.Set[F]) {
		pass = *s // a copy, since others read the set of the stage meanwhile
		pass.set = set
		out = pass.blocksForward(b, x, pos, logits)
	})
	if played {
		return s.steps.result[kind]
	}
	s.scratch, s.routed = pass.scratch, pass.routed
	if s.scratch.spill > 0 { // the result goes with this pass
		s.steps.before = stepKind{}
		return out
	}
	if kind.scratch != s.steps.kind.scratch { // the others are in memory that is gone
		clear(s.steps.result)
	}
	s.steps.kind = kind
	s.steps.result[kind] = out
	return out
}

// blocksForward is runBlocks operation by operation.
func (s *Stage[F]) blocksForward(b *Batch[F], x kernel.Buffer[F], pos []int32, logits int) kernel.Buffer[F] {
	rows := len(pos)
	w := s.workspace(rows)
	for i := range s.blocks {
		s.attend(i, b, x, pos, w)
		s.feedForward(&s.blocks[i], x, rows, w)
		if b.Observe != nil {
			b.Observe(s.Range.Lo+i, s.set.Host(x))
		}
	}
	if !s.Last() {
		return x
	}
	if b.Observe != nil && s.norm.Kind != NoNorm {
		s.normalize(w.h, x, &s.norm, rows)
		b.Observe(len(s.Spec.Layers), s.set.Host(w.h))
	}
	return s.logits(b, x, logits)
}

// dropSteps forgets the steps of a pass, whose scratch memory is given back.
func (s *Stage[F]) dropSteps() {
	s.steps.before = stepKind{}
	clear(s.steps.result)
}
