package model

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Sequence is where the keys and values of a sequence are stored: a kvcache.Table whose pages the
// router assigned, or a kvcache.Sequence.
type Sequence[F tensor.Float] interface {
	// Len is the number of positions that hold keys and values.
	Len() int
	// Reserve makes sure that there are pages for positions 0..n-1.
	Reserve(n int) error
	// Extend says that positions up to n-1 hold keys and values.
	Extend(n int)
	// View returns a layer's keys and values.
	View(layer int) kernel.KV[F]
}

// Entry is a run of consecutive rows of one sequence in a batch.
type Entry[F tensor.Float] struct {
	Seq    Sequence[F] // in a cache shaped by CacheConfig; a batch has it once
	Pos    int         // position of the first row, at most Seq.Len(); a step may be repeated
	Rows   int
	Logits int // how many of the last rows need logits
	// Adapter is applied to the rows of the entry; nil for none, or for the one of Use. It is of the same stage.
	Adapter *Adapter[F]
}

// Batch is one forward step over many sequences. Rows are in the order of the entries.
type Batch[F tensor.Float] struct {
	Entries []Entry[F]
	IDs     []int32 // [ΣRows], for the first stage
	Hidden  []F     // [ΣRows,C], for the other stages; it is not changed
	// In, if set, writes the hidden state to x[ΣRows,C] in place of Hidden. Out, if set, is given the hidden state of a
	// stage other than the last, which Forward does not return then. Both are called once, in Forward.
	In, Out func(x kernel.Buffer[F])
	// Features asks the last stage for the hidden state after the final norm instead of logits.
	// An encoder returns nothing else.
	Features bool
	// Rank asks a stage that Ranks for the so many best candidates of each row of logits, at most kernel.MaxRank and
	// the vocabulary. Forward then sets Ranked and returns nothing.
	Rank   int
	Ranked *Ranked[F]
	// Observe, if set, is called with the hidden state [ΣRows,C] before the first block (as
	// layer Lo-1), after each block, and after the final norm (as layer L). It is for tests
	// and tools.
	Observe func(layer int, hidden []F)
}

// rows counts the rows, and the rows that need logits.
func (b *Batch[F]) rows() (rows, logits int) {
	for _, e := range b.Entries {
		rows += e.Rows
		logits += e.Logits
	}
	return rows, logits
}

// Forward runs the stage over a batch. It returns the hidden state [ΣRows,C], or on the last
// stage the logits [ΣLogits,V], or with Features the hidden state [ΣLogits,C] after the final norm.
// The result is in host memory and valid until the next call. The bits of a row's result do not
// depend on the rest of the batch or on how the sequence was split into chunks.
//
// The error is Invalid for a malformed batch, FailedPrecondition for a gap before Pos and
// Exhausted for a full cache. Nothing has changed then, except that pages may be reserved.
func (s *Stage[F]) Forward(b *Batch[F]) ([]F, error) {
	rows, logits := b.rows()
	if err := s.check(b, rows); err != nil {
		return nil, err
	}
	for _, e := range b.Entries {
		if err := e.Seq.Reserve(e.Pos + e.Rows); err != nil {
			return nil, err
		}
	}
	s.scratch.reset()
	s.routed.reset()
	s.dropping = Dropout{}
	s.adaptRows(b.Entries, func(e *Entry[F]) int { return e.Rows })
	defer s.endBatch()
	x := s.scratch.take(rows * s.Spec.Width)
	pos := make([]int32, 0, rows)
	for _, e := range b.Entries {
		for r := range e.Rows {
			pos = append(pos, int32(e.Pos+r))
		}
	}
	if s.First() {
		s.embedRows(x, b.IDs, pos)
	} else if b.In != nil {
		b.In(x)
	} else {
		s.set.Upload(x, b.Hidden)
	}
	if b.Observe != nil {
		b.Observe(s.Range.Lo-1, s.set.Host(x))
	}
	out := s.runBlocks(b, x, pos, logits)
	for _, e := range b.Entries {
		e.Seq.Extend(e.Pos + e.Rows)
	}
	if s.rank(b, out, logits) {
		return nil, nil
	}
	if b.Out != nil && !s.Last() {
		b.Out(out)
		return nil, nil
	}
	return s.set.Host(out), nil
}

func (s *Stage[F]) check(b *Batch[F], rows int) error {
	for i, e := range b.Entries {
		if e.Seq == nil || e.Rows < 1 || e.Rows > maxSize || e.Logits < 0 || e.Logits > e.Rows || e.Pos < 0 ||
			e.Pos > maxSize {
			return fault.New(fault.Invalid, "run stage %v: entry %d has %d rows from position %d on, %d logits",
				s.Range, i,
				e.Rows, e.Pos, e.Logits)
		}
		if e.Adapter != nil && e.Adapter.stage != s {
			return fault.New(fault.Invalid, "run stage %v: the adapter of entry %d is of another stage", s.Range, i)
		}
	}
	if rows == 0 {
		return fault.New(fault.Invalid, "run stage %v: the batch is empty", s.Range)
	}
	if s.First() {
		if len(b.IDs) != rows {
			return fault.New(fault.Invalid, "run stage %v: %d ids for %d rows", s.Range, len(b.IDs), rows)
		}
		for i, id := range b.IDs {
			if id < 0 || int(id) >= s.Spec.Vocab {
				return fault.New(fault.Invalid, "run stage %v: id %d of row %d is outside the vocabulary of %d",
					s.Range, id, i,
					s.Spec.Vocab)
			}
		}
	} else if b.In == nil && len(b.Hidden) != rows*s.Spec.Width {
		return fault.New(fault.Invalid, "run stage %v: %d hidden values for %d rows of %d", s.Range, len(b.Hidden),
			rows,
			s.Spec.Width)
	}
	for i, e := range b.Entries {
		if s.Spec.Encoder() && (e.Pos != 0 || e.Seq.Len() != 0) {
			return fault.New(fault.Invalid, "run stage %v: entry %d starts at position %d of a sequence of %d: an encoder "+
				"takes a whole text at once", s.Range, i, e.Pos, e.Seq.Len())
		}
		if e.Pos > e.Seq.Len() {
			return fault.New(fault.FailedPrecondition,
				"run stage %v: entry %d starts at position %d, its sequence holds %d",
				s.Range, i, e.Pos, e.Seq.Len())
		}
		if s.bounded && e.Pos+e.Rows > s.Spec.Context {
			return fault.New(fault.Invalid, "run stage %v: position %d is beyond the context of %d", s.Range,
				e.Pos+e.Rows-1,
				s.Spec.Context)
		}
	}
	return nil
}

// embedRows looks up and scales embeddings, and adds learned positions.
func (s *Stage[F]) embedRows(x kernel.Buffer[F], ids, pos []int32) {
	s.lookUp(x, s.embed, ids)
	s.embedLow(x, ids)
	s.scale(x, s.Spec.Embedding.Scale)
	if s.position != nil {
		p := s.scratch.take(len(x))
		s.lookUp(p, s.position, shifted(pos, s.Spec.Embedding.Offset))
		s.set.Add(x, p)
	}
	if s.types != nil {
		p := s.scratch.take(len(x))
		s.lookUp(p, s.types, make([]int32, len(ids))) // all of type 0
		s.set.Add(x, p)
	}
	if s.embedded.Norm != nil && s.embedded.Kind != NoNorm {
		s.normalize(x, x, &s.embedded, len(ids))
	}
}

// shifted returns the numbers plus an offset.
func shifted(numbers []int32, by int) []int32 {
	if by == 0 {
		return numbers
	}
	out := make([]int32, len(numbers))
	for i, n := range numbers {
		out[i] = n + int32(by)
	}
	return out
}

// scale multiplies x by a factor, unless that is 0.
func (s *Stage[F]) scale(x kernel.Buffer[F], by float64) {
	if by != 0 {
		s.set.Scale(x, by)
	}
}

// bound applies the cap of the logits.
func (s *Stage[F]) bound(logits kernel.Buffer[F]) {
	if limit := s.Spec.Head.Softcap; limit != 0 {
		s.set.Softcap(logits, limit)
	}
}

// workspace is the scratch of a forward pass over t rows.
type workspace[F tensor.Float] struct {
	h, q, k, v, att, gate, up, act kernel.Buffer[F]
	spans, stored                  []kernel.Span[F] // stored only if they are others
}

func (s *Stage[F]) workspace(t int) *workspace[F] {
	a, z, width := &s.scratch, &s.sizes, s.Spec.Width
	return &workspace[F]{
		h: a.take(t * width), q: a.take(t * z.q), k: a.take(t * z.kv), v: a.take(t * z.kv), att: a.take(t * z.q),
		up: a.take(t * z.ff), act: a.take(t * max(z.ff, width)), gate: a.take(t * z.gate),
	}
}

// of returns the parts of the workspace that a layer uses.
func (w *workspace[F]) of(blk *block[F], t int) (q, k, v, att, gate, up, act kernel.Buffer[F]) {
	a, f := &blk.Attention, &blk.FFN
	queries, keys, inner := t*a.Heads*a.HeadDim, t*a.KVHeads*a.HeadDim, t*f.Width
	q, k, v, att = w.q[:queries], w.k[:keys], w.v[:keys], w.att[:queries]
	if blk.experts != nil {
		return q, k, v, att, nil, nil, nil
	}
	if blk.gated {
		gate = w.gate[:inner]
	}
	return q, k, v, att, gate, w.up[:inner], w.act[:inner]
}

// normalize applies a norm to t rows.
func (s *Stage[F]) normalize(y, x kernel.Buffer[F], n *norm[F], t int) {
	if s.replacing {
		s.normalizeRuns(y, x, n, t)
		return
	}
	s.normalizeAll(y, x, n, t)
}

func (s *Stage[F]) normalizeAll(y, x kernel.Buffer[F], n *norm[F], t int) {
	if n.Kind == LayerNorm {
		s.set.LayerNorm(y, x, s.effective(n), n.bias, n.Eps, t, len(n.gain))
		return
	}
	s.set.RMSNorm(y, x, s.effective(n), n.Eps, t, len(n.gain))
}

// normHeads applies a norm to the heads of queries or keys, x[rows,D].
func (s *Stage[F]) normHeads(y, x kernel.Buffer[F], n *norm[F]) {
	s.normalize(y, x, n, len(x)/len(n.gain))
}

// addBranch adds the output h of attention or feed-forward to x. If there is a norm of the
// output, it normalizes h first, in place.
func (s *Stage[F]) addBranch(x, h kernel.Buffer[F], post *norm[F], t int) {
	if post.Kind != NoNorm {
		s.normalize(h, h, post, t)
	}
	s.set.Add(x, h)
}

// normalizeSum applies the norm of the residual after an addition, if there is one.
func (s *Stage[F]) normalizeSum(x kernel.Buffer[F], n *norm[F], t int) {
	if n.Kind != NoNorm {
		s.normalize(x, x, n, t)
	}
}

// input returns the input of attention or feed-forward: x normalized into h, or x itself if it has
// no norm.
func (s *Stage[F]) input(h, x kernel.Buffer[F], n *norm[F], t int) kernel.Buffer[F] {
	if n.Kind == NoNorm {
		return x
	}
	s.normalize(h, x, n, t)
	return h
}

// attend adds the output of block i's attention to x[t,C].
func (s *Stage[F]) attend(i int, b *Batch[F], x kernel.Buffer[F], pos []int32, w *workspace[F]) {
	blk, t := &s.blocks[i], len(pos)
	a := &blk.Attention
	q, k, v, att, _, _, _ := w.of(blk, t)
	h := s.input(w.h, x, &blk.norm1, t)
	s.multiply(h, t, output[F]{&blk.q, q}, output[F]{&blk.k, k}, output[F]{&blk.v, v})
	if a.QNorm.Kind != NoNorm {
		s.normHeads(q, q, &blk.qNorm)
		s.normHeads(k, k, &blk.kNorm)
	}
	if blk.rotary != nil {
		s.set.Rotate(q, blk.rotary, pos, a.Heads, a.HeadDim)
		s.set.Rotate(k, blk.rotary, pos, a.KVHeads, a.HeadDim)
	}
	w.spans = w.spans[:0]
	for _, e := range b.Entries {
		w.spans = append(w.spans, kernel.Span[F]{Rows: e.Rows, Pos: e.Pos, KV: e.Seq.View(i)})
	}
	s.store(w.spans, k, v, a)
	if a.Bidirectional { // every row sees what the last one sees
		stored := w.spans
		w.spans, w.stored = w.stored[:0], stored
		for _, e := range stored {
			for range e.Rows {
				w.spans = append(w.spans, kernel.Span[F]{Rows: 1, Pos: e.Pos + e.Rows - 1, KV: e.KV})
			}
		}
	}
	heads := blk.heads
	heads.Sinks = blk.sinks32
	s.set.Attend(att, q, w.spans, heads)
	s.multiply(att, t, output[F]{&blk.o, w.h})
	s.addBranch(x, w.h, &blk.post1, t)
	s.normalizeSum(x, &blk.add1, t)
}

// store writes the keys and values of a batch to the caches of its entries.
func (s *Stage[F]) store(spans []kernel.Span[F], k, v kernel.Buffer[F], a *Attention) {
	if set, ok := s.set.(kernel.SpanStorer[F]); ok {
		set.StoreSpans(spans, k, v, a.KVHeads, a.HeadDim)
		return
	}
	row, width := 0, a.KVHeads*a.HeadDim
	for _, e := range spans {
		lo, hi := row*width, (row+e.Rows)*width
		s.set.Store(e.KV, e.Pos, k[lo:hi], v[lo:hi], a.KVHeads, a.HeadDim)
		row += e.Rows
	}
}

// feedForward adds the output of a block's feed-forward part to x[t,C].
func (s *Stage[F]) feedForward(blk *block[F], x kernel.Buffer[F], t int, w *workspace[F]) {
	h := s.input(w.h, x, &blk.norm2, t)
	if blk.experts != nil {
		y := w.act[:t*s.Spec.Width]
		s.routed.reset()
		if !s.expertsRouted(blk, y, h, t, s.routed.take) {
			s.expertsForward(blk, y, h, t, s.routed.take)
		}
		s.addBranch(x, y, &blk.post2, t)
		s.normalizeSum(x, &blk.add2, t)
		return
	}
	_, _, _, _, gate, up, act := w.of(blk, t)
	if blk.gated {
		s.multiply(h, t, output[F]{&blk.gate, gate}, output[F]{&blk.up, up})
		s.set.GLU(act, gate, up, blk.FFN.Act)
	} else {
		s.multiply(h, t, output[F]{&blk.up, up})
		s.set.Activate(act, up, blk.FFN.Act)
	}
	s.multiply(act, t, output[F]{&blk.down, w.h})
	s.addBranch(x, w.h, &blk.post2, t)
	s.normalizeSum(x, &blk.add2, t)
}

// logits gathers the rows that need logits and applies the final norm and the head.
func (s *Stage[F]) logits(b *Batch[F], x kernel.Buffer[F], n int) kernel.Buffer[F] {
	c := s.Spec.Width
	rows := s.scratch.take(n * c)
	at, row := 0, 0
	for _, e := range b.Entries {
		row += e.Rows
		s.set.Copy(rows[at:at+e.Logits*c], x[(row-e.Logits)*c:row*c])
		at += e.Logits * c
	}
	s.adaptRows(b.Entries, func(e *Entry[F]) int { return e.Logits })
	if b.Features || s.head == nil {
		if n > 0 && s.norm.Kind != NoNorm {
			s.normalize(rows, rows, &s.norm, n)
		}
		return rows
	}
	h, out := s.scratch.take(n*c), s.scratch.take(n*s.Spec.Vocab)
	if n > 0 {
		s.normalize(h, rows, &s.norm, n)
		s.multiply(h, n, output[F]{s.head, out})
		s.bound(out)
	}
	return out
}

// Trim releases the scratch memory of Forward if there was no Forward since the last
// Trim, and reports whether it did. It must not run beside Forward.
func (s *Stage[F]) Trim() bool {
	released := s.scratch.trim()
	if released {
		s.dropSteps()
	}
	return s.routed.trim() || released
}

// arena hands out scratch memory. reset takes all of it back.
type arena[S ~[]E, E any] struct {
	scope  func() func(n int) S // returns the allocations of a new Scope
	alloc  func(n int) S        // those of the Scope that store is in; nil before the first
	store  S
	used   int
	spill  int  // elements that did not fit store since the last reset
	active bool // used since the last trim
	made   int  // how often the store has been allocated
}

func newArena[S ~[]E, E any](scope func() func(n int) S) arena[S, E] {
	return arena[S, E]{scope: scope}
}

// newScratch returns an arena of a kernel set's buffers.
func newScratch[F tensor.Float](set kernel.Set[F]) scratch[F] {
	return newArena(func() func(n int) kernel.Buffer[F] { return set.Scope().Alloc })
}

// trim releases the memory if it has not been used since the last trim. What was taken must not be
// used after it.
func (a *arena[S, E]) trim() bool {
	released := !a.active && len(a.store) > 0
	if released {
		a.alloc, a.store, a.used, a.spill = nil, nil, 0, 0
	}
	a.active = false
	return released
}

// size returns the number of elements of the store, or of all that is taken if that is more.
func (a *arena[S, E]) size() int { return max(len(a.store), a.used+a.spill) }

// reset takes everything back. After a few passes of one size the store holds all of it.
func (a *arena[S, E]) reset() {
	a.active = true
	if a.spill > 0 {
		a.alloc = a.scope()
		a.store = a.alloc(a.used + a.spill)
		a.made++
	}
	a.used, a.spill = 0, 0
}

// take returns n elements of unspecified value.
func (a *arena[S, E]) take(n int) S {
	if a.used+n > len(a.store) {
		a.spill += n
		if a.alloc == nil {
			a.alloc = a.scope()
		}
		return a.alloc(n)
	}
	out := a.store[a.used : a.used+n : a.used+n]
	a.used += n
	return out
}
