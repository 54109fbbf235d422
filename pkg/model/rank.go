package model

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Ranked are the best candidates of rows of logits, which stay on the device. It is valid until the next Forward.
type Ranked[F tensor.Float] struct {
	kernel.Ranking[F]
	K int // candidates of a row

	set    kernel.Set[F]
	logits kernel.Buffer[F] // [T,V]
	vocab  int
}

// Row returns all logits of a row, in host memory.
func (r *Ranked[F]) Row(i int) []F { return r.set.Host(r.row(i)) }

// Keep copies a row to a buffer of the device.
func (r *Ranked[F]) Keep(to kernel.Buffer[F], i int) { r.set.Copy(to, r.row(i)) }

func (r *Ranked[F]) row(i int) kernel.Buffer[F] { return r.logits[i*r.vocab : (i+1)*r.vocab] }

// Ranks reports whether Forward ranks logits; see Batch.Rank.
func (s *Stage[F]) Ranks() bool {
	_, ok := s.set.(kernel.Ranker[F])
	return ok && s.Last() && s.head != nil
}

// rank ranks logits[T,V] for a batch that asks for it, and reports whether it does.
func (s *Stage[F]) rank(b *Batch[F], logits kernel.Buffer[F], t int) bool {
	if b.Rank == 0 || b.Features || t == 0 || !s.Ranks() {
		return false
	}
	set, v := s.set.(kernel.Ranker[F]), s.Spec.Vocab
	b.Ranked = &Ranked[F]{Ranking: set.Rank(logits, t, v, b.Rank), K: b.Rank, set: s.set, logits: logits, vocab: v}
	return true
}
