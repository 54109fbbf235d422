package ref

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// from returns the first position that position p attends to.
func from(p int, a kernel.Heads) int {
	if a.Window > 0 {
		return max(0, p-a.Window+1)
	}
	return 0
}

// capped applies the soft cap to a score.
func capped(score, most float64) float64 {
	if most == 0 {
		return score
	}
	return most * math.Tanh(score/most)
}

// attendRow computes softmax attention of one head of one row: out[D] over positions lo..p. key and
// value return the vectors of a position. row numbers the row for dropout. The result is the log-sum-exp of
// the scores.
func attendRow[F tensor.Float](out, q []F, lo, p, row int, a kernel.Heads, key, value func(pos int) []F) float64 {
	scores := make([]float64, p+1-lo)
	best := math.Inf(-1)
	for i := range scores {
		scores[i] = capped(dot(q, key(lo+i))*a.Scale, a.Softcap)
		best = max(best, scores[i])
	}
	var sum float64
	for i, s := range scores {
		scores[i] = math.Exp(s - best)
		sum += scores[i]
	}
	kernel.Drop(scores, a.Dropout, row, lo)
	acc := make([]float64, len(out))
	for i, w := range scores {
		for j, v := range value(lo + i) {
			acc[j] += w / sum * float64(v)
		}
	}
	for j, v := range acc {
		out[j] = F(v)
	}
	return best + math.Log(sum)
}

// Store writes keys and values to a paged cache.
func (*Set[F]) Store(kv kernel.KV[F], pos int, k, v kernel.Buffer[F], heads, d int) {
	kv.Write(pos, k, v, heads, d)
}

// Attend computes causal attention over paged caches.
func (*Set[F]) Attend(y, q kernel.Buffer[F], spans []kernel.Span[F], a kernel.Heads) {
	rows := 0
	for _, s := range spans {
		rows += s.Rows
	}
	must("attend", "q", len(q), rows*a.H*a.D)
	must("attend", "y", len(y), rows*a.H*a.D)
	first := 0
	for _, s := range spans {
		each(s.Rows*a.H, func(i int) {
			r, head := i/a.H, i%a.H
			kv := head / (a.H / a.K)
			vector := make([]F, a.D)
			keys := func(pos int) []F { s.KV.Key(vector, pos, kv); return vector }
			values := func(pos int) []F { s.KV.Value(vector, pos, kv); return vector }
			off := ((first+r)*a.H + head) * a.D
			out := y[off : off+a.D]
			heads := a
			heads.Dropout = kernel.Dropout{}
			lse := attendRow(out, q[off:off+a.D], from(s.Pos+r, a), s.Pos+r, 0, heads, keys, values)
			if a.Sinks != nil {
				share := 1 / (1 + math.Exp(float64(a.Sinks[head])-lse))
				for i, v := range out {
					out[i] = F(float64(v) * share)
				}
			}
		})
		first += s.Rows
	}
}

// AttendCausal computes attention over whole sequences.
func (*Set[F]) AttendCausal(y, lse, q, k, v kernel.Buffer[F], b, t int, a kernel.Heads) {
	must("attend causal", "q", len(q), b*t*a.H*a.D)
	must("attend causal", "y", len(y), b*t*a.H*a.D)
	must("attend causal", "k", len(k), b*t*a.K*a.D)
	must("attend causal", "v", len(v), b*t*a.K*a.D)
	must("attend causal", "lse", len(lse), b*t*a.H)
	each(b*t*a.H, func(i int) {
		r, head := i/a.H, i%a.H
		seq, p, kv := r/t, r%t, head/(a.H/a.K)
		at := func(x []F) func(int) []F {
			return func(pos int) []F { return x[((seq*t+pos)*a.K+kv)*a.D:][:a.D] }
		}
		lse[i] = F(attendRow(y[i*a.D:(i+1)*a.D], q[i*a.D:(i+1)*a.D], from(p, a), p, i, a, at(k), at(v)))
	})
}

// AttendCausalGrad computes dv = Σ w·dy, dq = Σ scale·ds·k and dk = Σ scale·ds·q, where w are the softmax weights and
// ds = w·(dy·v - dy·y) is the gradient of a score. With a soft cap ds has one more factor, the derivative of the cap.
func (*Set[F]) AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v kernel.Buffer[F], b, t int, a kernel.Heads) {
	must("attend causal grad", "dy", len(dy), b*t*a.H*a.D)
	for seq := range b {
		sumK, sumV := make([]float64, t*a.K*a.D), make([]float64, t*a.K*a.D)
		for p := range t {
			for head := range a.H {
				i, kv := (seq*t+p)*a.H+head, head/(a.H/a.K)
				qr, dyr := q[i*a.D:(i+1)*a.D], dy[i*a.D:(i+1)*a.D]
				delta := dot(dyr, y[i*a.D:(i+1)*a.D])
				sumQ := make([]float64, a.D)
				kept := make([]float64, t) // the factors of dropout
				for j := range kept {
					kept[j] = 1
				}
				kernel.Drop(kept, a.Dropout, i, 0)
				for pos := from(p, a); pos <= p; pos++ {
					off := (pos*a.K + kv) * a.D
					kr, vr := k[seq*t*a.K*a.D+off:][:a.D], v[seq*t*a.K*a.D+off:][:a.D]
					score := capped(dot(qr, kr)*a.Scale, a.Softcap)
					w := math.Exp(score - float64(lse[i]))
					ds := w * (kept[pos]*dot(dyr, vr) - delta) * a.Scale
					if a.Softcap != 0 {
						ds *= 1 - score*score/(a.Softcap*a.Softcap)
					}
					for j := range a.D {
						sumV[off+j] += kept[pos] * w * float64(dyr[j])
						sumQ[j] += ds * float64(kr[j])
						sumK[off+j] += ds * float64(qr[j])
					}
				}
				put(dq[i*a.D:(i+1)*a.D], sumQ)
			}
		}
		put(dk[seq*t*a.K*a.D:(seq+1)*t*a.K*a.D], sumK)
		put(dv[seq*t*a.K*a.D:(seq+1)*t*a.K*a.D], sumV)
	}
}

// put rounds sums into dst.
func put[F tensor.Float](dst []F, sums []float64) {
	for i, v := range sums {
		dst[i] = F(v)
	}
}

// AttendDocuments computes attention over documents, one after the other.
func (s *Set[F]) AttendDocuments(y, lse, q, k, v kernel.Buffer[F], lengths []int, a kernel.Heads) {
	must("attend documents", "lse", len(lse), total(lengths)*a.H)
	lo := 0
	for _, t := range lengths {
		part := rows[F](lo, lo+t)
		a.Dropout.From = lo * a.H
		s.AttendCausal(part(y, a.H*a.D), part(lse, a.H), part(q, a.H*a.D), part(k, a.K*a.D), part(v, a.K*a.D), 1, t, a)
		lo += t
	}
}

// AttendDocumentsGrad computes the gradients of AttendDocuments, one document after the other.
func (s *Set[F]) AttendDocumentsGrad(dq, dk, dv, dy, y, lse, q, k, v kernel.Buffer[F], lengths []int, a kernel.Heads) {
	must("attend documents grad", "lse", len(lse), total(lengths)*a.H)
	lo, wide, narrow := 0, a.H*a.D, a.K*a.D
	for _, t := range lengths {
		part := rows[F](lo, lo+t)
		a.Dropout.From = lo * a.H
		s.AttendCausalGrad(part(dq, wide), part(dk, narrow), part(dv, narrow), part(dy, wide), part(y, wide),
			part(lse, a.H), part(q, wide), part(k, narrow), part(v, narrow), 1, t, a)
		lo += t
	}
}

// rows returns a function that cuts rows lo..hi-1 out of a matrix of the given width.
func rows[F tensor.Float](lo, hi int) func(x kernel.Buffer[F], width int) kernel.Buffer[F] {
	return func(x kernel.Buffer[F], width int) kernel.Buffer[F] { return x[lo*width : hi*width] }
}

// total adds lengths.
func total(lengths []int) int {
	n := 0
	for _, t := range lengths {
		n += t
	}
	return n
}
