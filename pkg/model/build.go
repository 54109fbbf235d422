package model

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

func build[F tensor.Float](spec Spec, r Range, set kernel.Set[F], fill filler[F]) (*Stage[F], error) {
	return buildBeside(spec, r, set, fill, beside[F]{})
}

// buildBeside builds a stage that shares matrices with the held ones.
func buildBeside[F tensor.Float](
	spec Spec, r Range, set kernel.Set[F], fill filler[F], held beside[F],
) (*Stage[F], error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if r.Lo < 0 || r.Hi > len(spec.Layers) || r.Lo >= r.Hi {
		return nil, fault.Field("layers", "build stage: range %v is not within the %d layers", r, len(spec.Layers))
	}
	s := &Stage[F]{Spec: spec, Range: r, set: set, dense: true, bounded: spec.Bounded(),
		memory: set.Scope(), scratch: newScratch(set), block: newScratch(set), routed: newScratch(set),
		low: newScratch(set), steps: newStepper(set)}
	b := &builder[F]{stage: s, fill: fill, rotaries: map[*Rope]*kernel.Rotary{}}
	if s.First() {
		s.embed = b.single(spec.Embedding.Tokens, spec.Vocab)
		if spec.Embedding.Positions.Param != "" {
			s.position = b.single(spec.Embedding.Positions, spec.Context+spec.Embedding.Offset)
		}
		if spec.Embedding.Types.Param != "" {
			s.types = b.single(spec.Embedding.Types, spec.Embedding.TypeCount)
		}
		s.embedded = b.norm(&s.Spec.Embedding.Norm, spec.Width)
	}
	for l := r.Lo; l < r.Hi; l++ {
		s.blocks = append(s.blocks, b.block(&spec.Layers[l]))
		s.blocks[len(s.blocks)-1].index = l
	}
	if s.Last() {
		s.norm = b.norm(&s.Spec.Norm, spec.Width)
		if !spec.Encoder() {
			s.head = b.head()
		}
	}
	if b.err != nil {
		return nil, b.err
	}
	for i, l := range s.linears() {
		l.site = i
	}
	s.written = s.writtenWhole()
	if err := s.pack(fill, held); err != nil {
		return nil, err
	}
	return s, nil
}

// writtenWhole marks the matrices that every row of a batch is multiplied by. Their gradients
// are products that overwrite; the others (embeddings, experts) are sums that start at zero.
func (s *Stage[F]) writtenWhole() []bool {
	out := make([]bool, len(s.params.Tensors))
	mark := func(linears ...*linear[F]) {
		for _, l := range linears {
			if l.Rows > 0 {
				out[l.atW.index] = true
			}
		}
	}
	for i := range s.blocks {
		b := &s.blocks[i]
		mark(&b.q, &b.k, &b.v, &b.o)
		if b.experts == nil {
			mark(&b.gate, &b.up, &b.down)
		}
	}
	if s.head != nil {
		mark(s.head)
	}
	return out
}

// pack has the kernel set pack the raw matrices that are not shared with held stages, and tells fill of it. The
// embedding is not packed, because its rows are looked up.
func (s *Stage[F]) pack(fill filler[F], held beside[F]) error {
	pack := func(matrices ...*kernel.Matrix[F]) error {
		read := false
		for _, m := range matrices {
			m.Plain = s.Spec.Width < kernel.Narrow
			shared := m.Packed != nil
			s.set.Pack(m)
			if shared {
				continue
			}
			read = true
			if err := fill.moved(int64(len(m.Raw))); err != nil {
				return err
			}
		}
		if read {
			fill.packed()
		}
		return nil
	}
	for i := range s.blocks {
		s.share(s.Range.Lo+i, held)
		if err := pack(s.blocks[i].packable()...); err != nil {
			return err
		}
	}
	if s.head != nil {
		s.share(len(s.Spec.Layers), held)
		return pack(&s.head.Matrix)
	}
	return nil
}

// builder gathers a stage's parameters; the first error stays.
type builder[F tensor.Float] struct {
	stage    *Stage[F]
	fill     filler[F]
	rotaries map[*Rope]*kernel.Rotary // layers share them, since kernels cache tables by pointer
	err      error
}

func (b *builder[F]) add(p Param[F]) int {
	b.stage.params.Tensors = append(b.stage.params.Tensors, p)
	return len(b.stage.params.Tensors) - 1
}

// matrix adds a parameter [rows,cols] and returns its matrix.
func (b *builder[F]) matrix(w wanted) linear[F] {
	out := linear[F]{Matrix: kernel.Matrix[F]{Rows: w.rows, Cols: w.cols}}
	if b.err != nil {
		return out
	}
	w.end = ".weight"
	if out.Matrix, b.err = b.fill.matrix(w); b.err != nil {
		return out
	}
	b.stage.dense = b.stage.dense && out.Dense != nil
	out.Dense = b.stage.fromHost(out.Dense)
	index := b.add(Param[F]{Name: w.Param + w.end, Shape: []int{w.rows, w.cols}, Data: out.Dense})
	out.atW = slot{index, 0, w.rows * w.cols}
	return out
}

func (b *builder[F]) vector(w wanted) (kernel.Buffer[F], slot) {
	if b.err != nil {
		return nil, slot{}
	}
	values, err := b.fill.vector(w)
	if err != nil {
		b.err = err
		return nil, slot{}
	}
	data := b.stage.fromHost(values)
	return data, slot{b.add(Param[F]{Name: w.Param + w.end, Shape: []int{w.rows}, Data: data}), 0, w.rows}
}

// single adds a matrix [rows,C] without a bias.
func (b *builder[F]) single(n Name, rows int) *linear[F] {
	return new(b.matrix(wanted{Name: n, rows: rows, cols: b.stage.Spec.Width}))
}

// linear adds a matrix [rows,cols] and its bias, if it has one.
func (b *builder[F]) linear(m *Linear, rows, cols int, r role) linear[F] {
	l := b.matrix(wanted{Name: m.Name, rows: rows, cols: cols, role: r, conv1D: m.Conv1D})
	if m.Bias {
		l.bias, l.atB = b.vector(wanted{Name: m.Name, end: ".bias", rows: rows, role: r})
		l.hasB = true
	}
	return l
}

// norm adds a norm of n components, unless its kind is NoNorm.
func (b *builder[F]) norm(m *Norm, n int) norm[F] {
	out := norm[F]{Norm: m}
	if m.Kind == NoNorm {
		return out
	}
	out.gain, out.atG = b.vector(wanted{Name: m.Name, end: ".weight", rows: n, role: gainTensor})
	if m.Kind == LayerNorm {
		out.bias, out.atB = b.vector(wanted{Name: m.Name, end: ".bias", rows: n})
	}
	if m.OnePlus && b.err == nil { // allocate nothing for a width that no tensor has
		out.fromOne = b.stage.alloc(n)
	}
	return out
}

// rows returns rows [lo,hi) of l. Their gradients go to the same piece of the parameter.
func (l linear[F]) rows(lo, hi int) linear[F] {
	out := l
	out.Rows = hi - lo
	switch {
	case l.Dense != nil:
		out.Dense = l.Dense[lo*l.Cols : hi*l.Cols]
	case l.Raw != nil:
		size := l.DType.RowBytes(l.Cols)
		out.Raw = l.Raw[lo*size : hi*size]
	}
	out.atW = slot{l.atW.index, l.atW.from + lo*l.Cols, (hi - lo) * l.Cols}
	if l.bias != nil {
		out.bias = l.bias[lo:hi]
		out.atB = slot{l.atB.index, l.atB.from + lo, hi - lo}
	}
	return out
}

// block adds the parameters of a layer. Their order is that of Params.
func (b *builder[F]) block(l *Layer) block[F] {
	a, f, width, size := &l.Attention, &l.FFN, b.stage.Spec.Width, &b.stage.sizes
	out := block[F]{Layer: l, heads: a.heads(), rotary: b.rotary(a.Rope), gated: f.Gated()}
	queries, keys := a.Heads*a.HeadDim, a.KVHeads*a.HeadDim
	size.q, size.kv = max(size.q, queries), max(size.kv, keys)
	out.norm1 = b.norm(&a.Norm, width)
	if a.QKV.Param != "" {
		whole := b.linear(&a.QKV, queries+2*keys, width, plainTensor)
		out.q, out.k, out.v = whole.rows(0, queries), whole.rows(queries, queries+keys),
			whole.rows(queries+keys, queries+2*keys)
	} else {
		out.q = b.linear(&a.Q, queries, width, rotatedTensor)
		out.k = b.linear(&a.K, keys, width, rotatedTensor)
		out.v = b.linear(&a.V, keys, width, plainTensor)
	}
	out.qNorm, out.kNorm = b.norm(&a.QNorm, a.HeadDim), b.norm(&a.KNorm, a.HeadDim)
	out.o = b.linear(&a.O, width, queries, residualTensor)
	if a.Sinks.Param != "" {
		out.sinks.gain, out.sinks.atG = b.vector(wanted{Name: a.Sinks, rows: a.Heads, role: sinkTensor})
		for _, v := range b.stage.set.Host(out.sinks.gain) {
			out.sinks32 = append(out.sinks32, float32(v))
		}
	}
	out.post1, out.add1 = b.norm(&a.PostNorm, width), b.norm(&a.AddNorm, width)
	out.norm2 = b.norm(&f.Norm, width)
	if f.Experts != nil {
		out.experts = b.experts(f)
		out.post2, out.add2 = b.norm(&f.PostNorm, width), b.norm(&f.AddNorm, width)
		return out
	}
	size.ff = max(size.ff, f.Width)
	if out.gated {
		size.gate = max(size.gate, f.Width)
	}
	switch {
	case f.GateUp.Param != "":
		whole := b.linear(&f.GateUp, 2*f.Width, width, plainTensor)
		out.gate, out.up = whole.rows(0, f.Width), whole.rows(f.Width, 2*f.Width)
	case f.Gate.Param != "":
		out.gate = b.linear(&f.Gate, f.Width, width, plainTensor)
		fallthrough
	default:
		out.up = b.linear(&f.Up, f.Width, width, plainTensor)
	}
	out.post2, out.add2 = b.norm(&f.PostNorm, width), b.norm(&f.AddNorm, width)
	out.down = b.linear(&f.Down, width, f.Width, residualTensor)
	return out
}

func (b *builder[F]) rotary(r *Rope) *kernel.Rotary {
	if r == nil {
		return nil
	}
	if b.rotaries[r] == nil {
		b.rotaries[r] = r.rotary()
	}
	return b.rotaries[r]
}

// head adds the head. A tied head shares the embedding's matrix if the stage has that, and is
// a copy of it otherwise.
func (b *builder[F]) head() *linear[F] {
	s := b.stage
	if !s.Spec.Head.Tied {
		return b.single(s.Spec.Head.Name, s.Spec.Vocab)
	}
	if b.err != nil {
		return nil
	}
	m, tokens := kernel.Matrix[F]{}, s.Spec.Embedding.Tokens
	if s.First() {
		m = s.embed.Matrix
	} else if m, b.err = b.fill.matrix(wanted{Name: tokens, end: ".weight", rows: s.Spec.Vocab,
		cols: s.Spec.Width}); b.err != nil {
		return nil
	} else {
		m.Dense = s.fromHost(m.Dense)
	}
	p := Param[F]{Name: s.Spec.Head.Param + ".weight", Shape: []int{m.Rows, m.Cols}, Data: m.Dense,
		TiedTo: tokens.Param + ".weight"}
	return &linear[F]{Matrix: m, atW: slot{b.add(p), 0, m.Rows * m.Cols}}
}
