package model

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Stage is a range of a model's layers on one kernel set.
type Stage[F tensor.Float] struct {
	Spec  Spec
	Range Range

	set         kernel.Set[F]
	farRotaries map[*kernel.Rotary]*kernel.Rotary // for long sequences in training; see rotary

	embed    *linear[F] // [V,C]; first stage
	position *linear[F] // [Context+Offset,C]; first stage, learned positions
	types    *linear[F] // [TypeCount,C]; first stage
	embedded norm[F]    // first stage
	blocks   []block[F]
	norm     norm[F]    // last stage
	head     *linear[F] // [V,C]; last stage, unless the model is an encoder
	sizes    sizes

	params  Params[F]
	written []bool // for each parameter: the backward pass overwrites its whole gradient
	dense   bool
	bounded bool // see Spec.Bounded
	scratch scratch[F]
	micro   []*Trace[F]      // spare traces
	block   scratch[F]       // scratch of a block in training, with a bfloat16 kernel set
	unused  kernel.Buffer[F] // gradients of frozen vectors

	rounded *rounded[F] // matrices in bfloat16; nil if they are used as they are; see rounded.go

	recompute bool      // keep only the inputs of blocks; see recompute.go
	again     *Trace[F] // of the block that is run again

	adapter, trained *Adapter[F]  // the one that passes use; the one that is trained; see lora.go
	low              scratch[F]   // of one product's adapter
	adapted          []adapted[F] // rows of the batch that runs, while batching; see batchadapters.go
	lows             []kernel.LowRank[F]
	batching         bool
	served           *servedCache[F] // of passes as served
	dropping         Dropout         // of the pass that runs, for adapters
}

// scratch is memory that one pass uses.
type scratch[F tensor.Float] = arena[kernel.Buffer[F], F]

// sizes holds the largest widths of the stage's layers, which share scratch memory.
type sizes struct{ q, kv, ff, gate int }

// linear is a matrix with an optional bias, and their places in Params.
type linear[F tensor.Float] struct {
	kernel.Matrix[F]
	bias     kernel.Buffer[F]
	atW, atB slot
	hasB     bool
	site     int // place in Adapter.sites
}

// slot is the place of a piece of a parameter: its index in Params, offset and length.
type slot struct{ index, from, len int }

// norm is a gain with an optional bias.
type norm[F tensor.Float] struct {
	*Norm
	gain, bias kernel.Buffer[F]
	atG, atB   slot
	fromOne    kernel.Buffer[F] // scratch for 1 + gain, with OnePlus
}

// effective returns the factors of the norm.
func (s *Stage[F]) effective(n *norm[F]) kernel.Buffer[F] {
	if n.fromOne == nil {
		return n.gain
	}
	s.set.Shift(n.fromOne, n.gain, 1)
	return n.fromOne
}

// block is one transformer layer: its description and its tensors.
type block[F tensor.Float] struct {
	*Layer
	index          int // of the layer in the model
	heads          kernel.Heads
	rotary         *kernel.Rotary // nil: no rotation
	gated          bool
	norm1, norm2   norm[F]
	post1, post2   norm[F]
	add1, add2     norm[F]
	qNorm, kNorm   norm[F]
	q, k, v, o     linear[F]
	gate, up, down linear[F]
	sinks          norm[F]     // [H], stored as a gain
	sinks32        []float32   // the same, as kernels take them
	experts        *experts[F] // in place of gate, up and down
}

// Last reports whether the stage ends in the head.
func (s *Stage[F]) Last() bool { return s.Range.Hi == len(s.Spec.Layers) }

// First reports whether the stage begins with the embedding.
func (s *Stage[F]) First() bool { return s.Range.Lo == 0 }

// CacheConfig returns the shape of a KV cache for the stage.
func (s *Stage[F]) CacheConfig(pages int) kvcache.Config {
	a := &s.Spec.Layers[0].Attention // all have the same
	kv := s.set.KV()
	if s.Spec.Encoder() && kv == kernel.KVAuto { // a text is computed at once: rounding would save nothing
		kv = kernel.KVFull
	}
	return kvcache.Config{Layers: s.Range.Len(), KVHeads: a.KVHeads, HeadDim: a.HeadDim, Type: kv.For(s.Spec.Width),
		Pages: pages}
}

// Kernels returns the kernel set that the stage runs on.
func (s *Stage[F]) Kernels() kernel.Set[F] { return s.set }

// LoadOptions says in which form weights are kept in memory.
type LoadOptions struct {
	Dense bool // decode the weights to F, for training; else keep them as they are in the file
	// Encoder says that the caller can use a stage that computes embeddings of texts. Without it
	// Load refuses encoders, which continue no text.
	Encoder bool
	// Adapter is used by all passes of the stage, and its saved modules replace those of the files.
	Adapter *adapter.Adapter
}

// Load builds a stage from an open model. It reads the stage's own tensors only. Without
// Dense they stay in the mapped file, so f must stay open as long as the stage is used.
// With Dense, queries and keys are in Hugging Face's order and Gemma's norms have OnePlus
// even if the file is GGUF; Stage.Spec says so.
func Load[F tensor.Float](f *Files, r Range, set kernel.Set[F], o LoadOptions) (*Stage[F], error) {
	return load(f, r, set, o, nil)
}

// load builds a stage that shares packed matrices with the held ones.
func load[F tensor.Float](
	f *Files, r Range, set kernel.Set[F], o LoadOptions, held []*Stage[F],
) (*Stage[F], error) {
	if f.Spec.Encoder() && (!o.Encoder || o.Dense) {
		return nil, fmt.Errorf("load %s: %w", f.Path, &UnsupportedError{"use of the encoder", f.Spec.Architecture,
			"embeddings of texts; it continues no text and cannot be trained"})
	}
	spec, l := f.Spec, &loader[F]{files: f, dense: o.Dense}
	if o.Dense {
		var err error
		if spec, err = f.Dense(); err != nil {
			return nil, fmt.Errorf("load %s: %w", f.Path, err)
		}
		l.minusOne = spec.Norm.OnePlus && !f.Spec.Norm.OnePlus
		if from := f.Spec.Rope(); from != nil && from.Interleaved {
			l.unpair = spec.Layers[0].Attention.HeadDim
		}
	}
	var fill filler[F] = l
	if o.Adapter != nil {
		fill, spec = l.replacing(o.Adapter, spec)
	}
	s, err := buildBeside(spec, r, set, fill, held)
	if err == nil && o.Adapter != nil {
		if s.adapter, err = s.NewAdapter(o.Adapter); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", f.Path, err)
	}
	return s, nil
}

// Dense returns the spec of the stages that Load builds with Dense.
func (f *Files) Dense() (Spec, error) {
	spec := f.Spec
	if f.gguf != nil {
		if a, _ := architectureOf(spec.Architecture); a.addedGGUF {
			spec = spec.onePlus(true)
		}
	}
	if rope := spec.Rope(); rope != nil && rope.Interleaved {
		if rope.Dims != spec.Layers[0].Attention.HeadDim {
			return spec, &UnsupportedError{"rotated dimensions", fmt.Sprint(rope.Dims), "for training, whole heads"}
		}
		spec = spec.clone(func(_ *Layer, r *Rope) {
			if r != nil {
				r.Interleaved = false
			}
		})
	}
	return spec, nil
}

// Init builds a stage with random weights for training from scratch, as Spec.Init says. A weight
// depends on the seed, the tensor's name and the index only, so it is the same however the model is
// split into stages.
func Init[F tensor.Float](s Spec, r Range, set kernel.Set[F], seed uint64) (*Stage[F], error) {
	if s.Encoder() {
		return nil, &UnsupportedError{"training of", s.Architecture, "decoders"}
	}
	return build(s, r, set, &random[F]{seed: seed, layers: len(s.Layers), init: s.Init, onePlus: s.Norm.OnePlus})
}

func build[F tensor.Float](spec Spec, r Range, set kernel.Set[F], fill filler[F]) (*Stage[F], error) {
	return buildBeside(spec, r, set, fill, nil)
}

// buildBeside builds a stage that shares packed matrices with the held ones.
func buildBeside[F tensor.Float](
	spec Spec, r Range, set kernel.Set[F], fill filler[F], held []*Stage[F],
) (*Stage[F], error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if r.Lo < 0 || r.Hi > len(spec.Layers) || r.Lo >= r.Hi {
		return nil, fault.Field("layers", "build stage: range %v is not within the %d layers", r, len(spec.Layers))
	}
	s := &Stage[F]{Spec: spec, Range: r, set: set, dense: true, bounded: spec.Bounded(), scratch: newArena(set.Alloc),
		block: newArena(set.Alloc), low: newArena(set.Alloc)}
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
	s.pack(fill.packed, held)
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

// pack has the kernel set pack the raw matrices, and calls packed after each layer. The
// embedding is not packed, because its rows are looked up. What held stages have packed is shared.
func (s *Stage[F]) pack(packed func(), held []*Stage[F]) {
	pack := func(m *kernel.Matrix[F]) {
		m.Plain = s.Spec.Width < kernel.Narrow
		s.set.Pack(m)
	}
	for i := range s.blocks {
		if s.share(s.Range.Lo+i, held) {
			continue
		}
		for _, m := range s.blocks[i].packable() {
			pack(m)
		}
		packed()
	}
	if s.head != nil && !s.share(len(s.Spec.Layers), held) {
		pack(&s.head.Matrix)
		packed()
	}
}

// product describes a product of the matrix with an input; y receives the result.
func (l *linear[F]) product(y kernel.Buffer[F]) kernel.Product[F] {
	return kernel.Product[F]{Y: y, W: &l.Matrix, Bias: l.bias}
}

// fromHost is the set's FromHost that keeps nil, which stands for weights that are not decoded.
func (s *Stage[F]) fromHost(x []F) kernel.Buffer[F] {
	if x == nil {
		return nil
	}
	return s.set.FromHost(x)
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
		out.fromOne = b.stage.set.Alloc(n)
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

// ErrNotDense reports training on weights that were loaded without Dense.
var ErrNotDense error = fault.New(fault.FailedPrecondition, "train stage: its weights were loaded without Dense")
