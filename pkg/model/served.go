package model

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// A pass of training that runs as served has the bits of inference. Products, norms and activations are computed by
// the same kernels in both. Attention is not: inference adds up softmax weights chunk by chunk over a paged cache,
// which may round keys and values, and training over whole sequences with a tile of rows at a time. So a pass as
// served stores keys and values in a cache like that of inference and attends to it. The backward pass still starts
// from the log-sum-exps of training's attention, and so takes the rounding of the cache for the identity.

// servedCache is a cache for one layer of one micro-batch.
type servedCache[F tensor.Float] struct {
	lengths   []int // of the sequences, in order
	cache     *kvcache.Cache[F]
	sequences []*kvcache.Sequence[F]
	spans     []kernel.Span[F]
}

// documents returns the lengths of the runs of rows that attend to each other.
func (in *Micro[F]) documents() []int {
	if in.Documents != nil {
		return in.Documents
	}
	return slices.Repeat([]int{in.T}, in.B)
}

// attendServed computes att[B*T,H,D] as Forward does.
func (s *Stage[F]) attendServed(blk *block[F], in *Micro[F], att, q, k, v kernel.Buffer[F]) {
	lengths := in.documents()
	if s.served == nil || !slices.Equal(s.served.lengths, lengths) {
		c := s.CacheConfig(0)
		c.Layers = 1
		made := &servedCache[F]{lengths: slices.Clone(lengths)}
		counter := kvcache.New(c, s.set)
		for _, n := range lengths {
			c.Pages += counter.PagesFor(n)
		}
		made.cache = kvcache.New(c, s.set)
		for _, n := range lengths {
			seq := made.cache.NewSequence()
			if err := seq.Reserve(n); err != nil {
				panic(err) // the cache has as many pages as the sequences need
			}
			made.sequences = append(made.sequences, seq)
		}
		s.served = made
	}
	a, row := &blk.Attention, 0
	width := a.KVHeads * a.HeadDim
	spans := s.served.spans[:0]
	for i, n := range lengths {
		kv, lo, hi := s.served.sequences[i].View(0), row*width, (row+n)*width
		s.set.Store(kv, 0, k[lo:hi], v[lo:hi], a.KVHeads, a.HeadDim)
		spans = append(spans, kernel.Span[F]{Rows: n, KV: kv})
		row += n
	}
	s.served.spans = spans
	heads := blk.heads
	heads.Sinks = blk.sinks32
	s.set.Attend(att, q, spans, heads)
}
