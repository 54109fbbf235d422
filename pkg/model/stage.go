package model

import (
	"fmt"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Stage is a range of a model's layers on one kernel set.
type Stage[F tensor.Float] struct {
	Config Config
	Range  Range

	set      kernel.Set[F]
	rotaries []*kernel.Rotary // of the stage's layers; nil: no rotation

	farRotaries map[*kernel.Rotary]*kernel.Rotary // what stands for them in long sequences of training

	embed    *linear[F] // [V,C]; first stage
	position *linear[F] // [Context,C]; first stage, learned positions
	blocks   []block[F]
	norm     norm[F]    // last stage
	head     *linear[F] // [V,C]; last stage

	params  Params[F]
	written []bool // of params: a backward's products write its gradient whole
	dense   bool
	scratch arena[F]
	micro   []*Trace[F] // spare traces
	block   arena[F]    // of a block in training, with a bfloat16 kernel set
}

// linear is a matrix with an optional bias, and where they stand in Params.
type linear[F tensor.Float] struct {
	kernel.Matrix[F]
	bias     []F
	atW, atB slot
	hasB     bool
}

// slot finds a piece of a parameter: its index in Params and its offset.
type slot struct{ index, from, len int }

// norm is a gain with an optional bias.
type norm[F tensor.Float] struct {
	gain, bias []F
	atG, atB   slot
	fromOne    []F // scratch for 1 + gain, where that multiplies
}

// effective is what a norm multiplies by.
func (n *norm[F]) effective() []F {
	if n.fromOne == nil {
		return n.gain
	}
	for i, g := range n.gain {
		n.fromOne[i] = 1 + g
	}
	return n.fromOne
}

// block is one transformer layer.
type block[F tensor.Float] struct {
	norm1, norm2   norm[F]
	post1, post2   norm[F] // of what attention and feed-forward add, with PostNorms
	qNorm, kNorm   norm[F] // [D] each, with QKNorm
	q, k, v, o     linear[F]
	gate, up, down linear[F]
	sinks          norm[F]     // [H] scores, as a gain
	sinks32        []float32   // what attention takes
	experts        *experts[F] // in place of those, where the layer routes
}

// blockNames names a layer's tensors, without ".weight" and ".bias". qkv stands for
// q, k and v where they are fused, gateUp for gate and up.
type blockNames struct {
	norm1, norm2, q, k, v, qkv, o, gate, up, gateUp, down string
	post1, post2, qNorm, kNorm, router, experts, sinks    string
}

// Last reports whether the stage ends in the head.
func (s *Stage[F]) Last() bool { return s.Range.Hi == s.Config.Layers }

// First reports whether the stage begins with the embedding.
func (s *Stage[F]) First() bool { return s.Range.Lo == 0 }

// CacheConfig shapes a KV cache for the stage.
func (s *Stage[F]) CacheConfig(pages int) kvcache.Config {
	return kvcache.Config{Layers: s.Range.Len(), KVHeads: s.Config.KVHeads, HeadDim: s.Config.HeadDim, Type: s.set.KV().For(s.Config.Width), Pages: pages}
}

// Kernels returns the kernel set the stage runs on.
func (s *Stage[F]) Kernels() kernel.Set[F] { return s.set }

// LoadOptions says how weights are held.
type LoadOptions struct {
	Dense bool // decoded to F, for training; else as they are in the file
}

// Load builds a stage from an open model, touching its own tensors alone. Without
// Dense they stay in the mapped file, so f must outlive the stage. With it, queries
// and keys take Hugging Face's order, and Gemma's gains its origin, whatever the file's:
// the stage's Config says so.
func Load[F tensor.Float](f *Files, r Range, set kernel.Set[F], o LoadOptions) (*Stage[F], error) {
	c, l := f.Config, &loader[F]{files: f, dense: o.Dense}
	if o.Dense && c.Rope.Interleaved {
		if c.Rope.Dims != c.HeadDim {
			return nil, &UnsupportedError{"rotated dimensions", fmt.Sprint(c.Rope.Dims), "for training, whole heads are"}
		}
		c.Rope.Interleaved, l.unpair = false, c.HeadDim
	}
	if o.Dense && c.PostNorms && !c.GainFromOne {
		c.GainFromOne, l.fromOne = true, true
	}
	s, err := build(c, r, set, l)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", f.Path, err)
	}
	return s, nil
}

// Init builds a stage with random weights for training from scratch: normal with
// standard deviation 0.02, residual projections divided by sqrt(2L), gains 1 and
// biases 0. Each weight is keyed by (seed, tensor name, index), so any split of the
// model has the same.
func Init[F tensor.Float](c Config, r Range, set kernel.Set[F], seed uint64) (*Stage[F], error) {
	return build(c, r, set, &random[F]{seed: seed, layers: c.Layers})
}

// filler provides tensors to build.
type filler[F tensor.Float] interface {
	matrix(name string, rows, cols int) (kernel.Matrix[F], error)
	vector(name string, n int) ([]F, error)
	packed() // some of the matrices have their own form now
}

func build[F tensor.Float](c Config, r Range, set kernel.Set[F], fill filler[F]) (*Stage[F], error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if r.Lo < 0 || r.Hi > c.Layers || r.Lo >= r.Hi {
		return nil, fault.Field("layers", "build stage: %v is no range of %d layers", r, c.Layers)
	}
	s := &Stage[F]{Config: c, Range: r, set: set, dense: true}
	s.rotaries = c.rotaries(r)
	b := &builder[F]{stage: s, fill: fill}
	names, embed, position, last := llamaNames, strings.TrimSuffix(embedName, ".weight"), "", "model.norm"
	if c.Architecture == "gpt2" {
		names, embed, position, last = gpt2Names, strings.TrimSuffix(gpt2EmbedName, ".weight"), "transformer.wpe", "transformer.ln_f"
	}
	if s.First() {
		s.embed = b.single(embed, c.Vocab, c.Width)
		if c.Learned {
			s.position = b.single(position, c.Context, c.Width)
		}
	}
	for l := r.Lo; l < r.Hi; l++ {
		s.blocks = append(s.blocks, b.block(names(&c, l), c.routes(l)))
	}
	if s.Last() {
		s.norm = b.norm(last)
		s.head = b.head(embed)
	}
	if b.err != nil {
		return nil, b.err
	}
	s.written = s.writtenWhole()
	s.pack(fill.packed)
	return s, nil
}

// writtenWhole marks the parameters all of whose rows are in a product of every row of a batch.
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

// pack gives raw matrices the kernel set's own form, and says so after each layer. The
// embedding keeps its own: rows of it are looked up.
func (s *Stage[F]) pack(packed func()) {
	pack := func(m *kernel.Matrix[F]) {
		m.Plain = s.Config.Width < kernel.Narrow
		s.set.Pack(m)
	}
	for i := range s.blocks {
		b := &s.blocks[i]
		if b.experts != nil {
			for _, m := range b.experts.packed() {
				pack(m)
			}
		}
		for _, l := range []*linear[F]{&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down} {
			if l.Rows > 0 {
				pack(&l.Matrix)
			}
		}
		packed()
	}
	if s.head != nil {
		pack(&s.head.Matrix)
		packed()
	}
}

// product is one of the products with an input: its result goes to y.
func (l *linear[F]) product(y []F) kernel.Product[F] {
	return kernel.Product[F]{Y: y, W: &l.Matrix, Bias: l.bias}
}

// builder gathers a stage's parameters; the first error stays.
type builder[F tensor.Float] struct {
	stage *Stage[F]
	fill  filler[F]
	err   error
}

func (b *builder[F]) add(p Param[F]) int {
	b.stage.params.Tensors = append(b.stage.params.Tensors, p)
	return len(b.stage.params.Tensors) - 1
}

// matrix adds name.weight [rows,cols] and returns it with its index.
func (b *builder[F]) matrix(name string, rows, cols int) (kernel.Matrix[F], int) {
	if b.err != nil {
		return kernel.Matrix[F]{Rows: rows, Cols: cols}, 0
	}
	m, err := b.fill.matrix(name+".weight", rows, cols)
	if err != nil {
		b.err = err
		return m, 0
	}
	b.stage.dense = b.stage.dense && m.Dense != nil
	return m, b.add(Param[F]{Name: name + ".weight", Shape: []int{rows, cols}, Data: m.Dense})
}

func (b *builder[F]) vector(name string, n int) ([]F, slot) {
	if b.err != nil {
		return nil, slot{}
	}
	data, err := b.fill.vector(name, n)
	if err != nil {
		b.err = err
		return nil, slot{}
	}
	return data, slot{b.add(Param[F]{Name: name, Shape: []int{n}, Data: data}), 0, n}
}

func (b *builder[F]) single(name string, rows, cols int) *linear[F] {
	m, index := b.matrix(name, rows, cols)
	return &linear[F]{Matrix: m, atW: slot{index, 0, rows * cols}}
}

func (b *builder[F]) linear(name string, rows, cols int, bias bool) linear[F] {
	l := *b.single(name, rows, cols)
	if bias {
		l.bias, l.atB = b.vector(name+".bias", rows)
		l.hasB = true
	}
	return l
}

func (b *builder[F]) norm(name string) norm[F] { return b.normOf(name, b.stage.Config.Width) }

func (b *builder[F]) normOf(name string, n int) norm[F] {
	var out norm[F]
	out.gain, out.atG = b.vector(name+".weight", n)
	if b.stage.Config.LayerNorm {
		out.bias, out.atB = b.vector(name+".bias", n)
	}
	if b.stage.Config.GainFromOne {
		out.fromOne = make([]F, n)
	}
	return out
}

// rows cuts rows [lo,hi) out of l; gradients land in the same piece of the whole.
func (l linear[F]) rows(lo, hi int) linear[F] {
	out := l
	out.Rows = hi - lo
	if l.Dense != nil {
		out.Dense = l.Dense[lo*l.Cols : hi*l.Cols]
	} else {
		size := l.DType.RowBytes(l.Cols)
		out.Raw = l.Raw[lo*size : hi*size]
	}
	out.atW = slot{l.atW.index, l.atW.from + lo*l.Cols, (hi - lo) * l.Cols}
	if l.hasB {
		out.bias = l.bias[lo:hi]
		out.atB = slot{l.atB.index, l.atB.from + lo, hi - lo}
	}
	return out
}

func (b *builder[F]) block(n blockNames, routes bool) block[F] {
	c := &b.stage.Config
	var out block[F]
	queries, keys := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	out.norm1 = b.norm(n.norm1)
	if n.qkv != "" {
		whole := b.linear(n.qkv, queries+2*keys, c.Width, c.BiasQKV)
		if b.err != nil {
			return out
		}
		out.q, out.k, out.v = whole.rows(0, queries), whole.rows(queries, queries+keys), whole.rows(queries+keys, queries+2*keys)
	} else {
		out.q = b.linear(n.q, queries, c.Width, c.BiasQKV)
		out.k = b.linear(n.k, keys, c.Width, c.BiasQKV)
		out.v = b.linear(n.v, keys, c.Width, c.BiasQKV)
	}
	if c.QKNorm {
		out.qNorm, out.kNorm = b.normOf(n.qNorm, c.HeadDim), b.normOf(n.kNorm, c.HeadDim)
	}
	out.o = b.linear(n.o, c.Width, queries, c.BiasO)
	if c.Sinks {
		out.sinks.gain, out.sinks.atG = b.vector(n.sinks, c.Heads)
		for _, v := range out.sinks.gain {
			out.sinks32 = append(out.sinks32, float32(v))
		}
	}
	if c.PostNorms {
		out.post1 = b.norm(n.post1)
	}
	out.norm2 = b.norm(n.norm2)
	if routes {
		out.experts = b.experts(n)
		return out
	}
	switch {
	case n.gateUp != "":
		whole := b.linear(n.gateUp, 2*c.FF, c.Width, c.BiasMLP)
		if b.err != nil {
			return out
		}
		out.gate, out.up = whole.rows(0, c.FF), whole.rows(c.FF, 2*c.FF)
	case c.GLU:
		out.gate = b.linear(n.gate, c.FF, c.Width, c.BiasMLP)
		fallthrough
	default:
		out.up = b.linear(n.up, c.FF, c.Width, c.BiasMLP)
	}
	if c.PostNorms {
		out.post2 = b.norm(n.post2)
	}
	out.down = b.linear(n.down, c.Width, c.FF, c.BiasMLP)
	return out
}

// head is a matrix of its own, or the embedding's: shared on a lone stage, a copy on
// the last of several.
func (b *builder[F]) head(embed string) *linear[F] {
	c, s := &b.stage.Config, b.stage
	if !c.TiedHead {
		return b.single("lm_head", c.Vocab, c.Width)
	}
	if b.err != nil {
		return nil
	}
	var m kernel.Matrix[F]
	if s.First() {
		m = s.embed.Matrix
	} else if m, b.err = b.fill.matrix(embed+".weight", c.Vocab, c.Width); b.err != nil {
		return nil
	}
	index := b.add(Param[F]{Name: headName, Shape: []int{c.Vocab, c.Width}, Data: m.Dense, TiedTo: embed + ".weight"})
	return &linear[F]{Matrix: m, atW: slot{index, 0, c.Vocab * c.Width}}
}

// ErrNotDense reports training on weights that are held as they are in the file.
var ErrNotDense error = fault.New(fault.FailedPrecondition, "train stage: its weights were loaded without Dense")
