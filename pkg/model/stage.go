package model

import (
	"unsafe"

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
	memory      kernel.Memory[F]                  // what the stage has for as long as it lives
	owners      []kernel.Memory[F]                // of matrices that are shared with other stages
	own         int64                             // bytes that memory has handed out
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
	routed  scratch[F]       // of the experts of one block, without training
	unused  kernel.Buffer[F] // gradients of frozen vectors

	rounded *rounded[F] // matrices in bfloat16; nil if they are used as they are; see rounded.go

	recompute bool      // keep only the inputs of blocks; see recompute.go
	again     *Trace[F] // of the block that is run again

	adapter, trained *Adapter[F]     // the one that passes use; the one that is trained; see lora.go
	whole            map[string]bool // parameters that are trained beside an adapter; see LoadOptions.Saved
	low              scratch[F]      // of one product's adapter
	adapted          []adapted[F]    // rows of the batch that runs, while batching; see batchadapters.go
	lows             []kernel.LowRank[F]
	batching         bool
	replacing        bool            // an adapter of the batch replaces modules; see batchreplaced.go
	rows             int             // of the batch
	served           *servedCache[F] // of passes as served
	steps            stepper[F]      // see step.go
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

// product describes a product of the matrix with an input; y receives the result.
func (l *linear[F]) product(y kernel.Buffer[F]) kernel.Product[F] {
	return kernel.Product[F]{Y: y, W: &l.Matrix, Bias: l.bias}
}

// fromHost is the set's FromHost that keeps nil, which stands for weights that are not decoded.
func (s *Stage[F]) fromHost(x []F) kernel.Buffer[F] {
	if x == nil {
		return nil
	}
	s.own += int64(len(x)) * int64(unsafe.Sizeof(F(0)))
	return s.memory.FromHost(x)
}

// alloc returns zeros that live as long as the stage.
func (s *Stage[F]) alloc(n int) kernel.Buffer[F] {
	s.own += int64(n) * int64(unsafe.Sizeof(F(0)))
	return s.memory.Alloc(n)
}

// ErrNotDense reports training on weights that were loaded without Dense.
var ErrNotDense error = fault.New(fault.FailedPrecondition, "train stage: its weights were loaded without Dense")
