package kernel

import "github.com/lamina-mesh/lamina/pkg/tensor"

// Passes describes the largest passes of a stage without training, for the memory that a device's set takes for them
// beside their buffers.
type Passes[F tensor.Float] struct {
	Rows     int              // of a batch
	Logits   int              // of them that need logits; 0 without a head
	Vocab    int              // of the head
	Products []PassProduct[F] // all, or one of each kind
	LowRanks int              // the sum of the ranks of adapters that are added to the products of one x
	Heads    Heads            // of attention, the same in all layers; without sinks
	Sinks    int              // layers that have sinks
	Rotated  int              // dimensions of a head that rotate; 0 for none
	KV       KVType           // of the cache; never KVAuto
	Layers   int              // of the cache
	Pages    int              // of the cache
	PageLen  int              // in positions
}

// PassProduct is a product of so many rows with a matrix, of which only shape and type count.
type PassProduct[F tensor.Float] struct {
	W    *Matrix[F]
	Rows int
}
