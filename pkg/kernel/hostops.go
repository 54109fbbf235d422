package kernel

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// HostOps implements Memory and the small operations of Set in plain Go, for sets whose buffers are host
// memory. Such a set embeds it and replaces what it does faster.
type HostOps[F tensor.Float] struct{}

// Scope returns the same memory: buffers live as long as anything refers to them.
func (h HostOps[F]) Scope() Memory[F] { return h }

// Alloc returns a buffer of n zeros.
func (HostOps[F]) Alloc(n int) Buffer[F] { return make(Buffer[F], n) }

// AllocBF16 returns n zeros of bfloat16.
func (HostOps[F]) AllocBF16(n int) []uint16 { return make([]uint16, n) }

// FromHost returns x itself.
func (HostOps[F]) FromHost(x []F) Buffer[F] { return x }

// Upload copies host values to a buffer.
func (HostOps[F]) Upload(dst Buffer[F], src []F) {
	sameLength("upload", len(dst), len(src))
	copy(dst, src)
}

// Download copies a buffer to host memory.
func (HostOps[F]) Download(dst []F, src Buffer[F]) {
	sameLength("download", len(dst), len(src))
	copy(dst, src)
}

// Host returns the buffer itself.
func (HostOps[F]) Host(x Buffer[F]) []F { return x }

// Copy copies a buffer to another.
func (HostOps[F]) Copy(dst, src Buffer[F]) {
	sameLength("copy", len(dst), len(src))
	copy(dst, src)
}

// Clear sets a buffer to zeros.
func (HostOps[F]) Clear(x Buffer[F]) { clear(x) }

// NewKVPages returns n pages in one piece of memory.
func (HostOps[F]) NewKVPages(n int, t KVType, elements, d int) []KVPage[F] {
	pages := make([]KVPage[F], n)
	if t == KVFull {
		store := make(Buffer[F], 2*n*elements)
		for i := range pages {
			pages[i].Keys, pages[i].Values = store[:elements:elements], store[elements:2*elements:2*elements]
			store = store[2*elements:]
		}
		return pages
	}
	size, vectors := elements, elements/d
	if t == KVF16 {
		size, vectors = 2*elements, 0 // no scales
	}
	codes, scales := make([]byte, 2*n*size), make([]float32, 2*n*vectors)
	for i := range pages {
		p := &pages[i]
		p.KeyCodes, p.ValueCodes = codes[:size:size], codes[size:2*size:2*size]
		p.KeyScales, p.ValueScales = scales[:vectors:vectors], scales[vectors:2*vectors:2*vectors]
		codes, scales = codes[2*size:], scales[2*vectors:]
	}
	return pages
}

// Scale computes x *= by.
func (HostOps[F]) Scale(x Buffer[F], by float64) {
	for i := range x {
		x[i] *= F(by)
	}
}

// Shift computes y = x + by.
func (HostOps[F]) Shift(y, x Buffer[F], by float64) {
	sameLength("shift", len(y), len(x))
	for i, v := range x {
		y[i] = F(by) + v
	}
}

// Softcap computes x = limit·tanh(x/limit).
func (HostOps[F]) Softcap(x Buffer[F], limit float64) {
	for i, v := range x {
		x[i] = F(limit * math.Tanh(float64(v)/limit))
	}
}

// SoftcapGrad takes dy in place to the gradient of Softcap's input, from its output y.
func (HostOps[F]) SoftcapGrad(dy, y Buffer[F], limit float64) {
	sameLength("softcap grad", len(dy), len(y))
	for i := range dy {
		v := float64(y[i]) / limit
		dy[i] *= F(1 - v*v)
	}
}

// ClampedGate computes the arguments of SiLU's GLU for the gate of GPT-OSS.
func (HostOps[F]) ClampedGate(g, u, gate, up Buffer[F], alpha, limit float64) {
	sameLength("clamped gate", len(g), len(gate))
	sameLength("clamped gate", len(u), len(up))
	a, l := F(alpha), F(limit)
	for i, v := range gate {
		g[i] = min(v, l) * a
		u[i] = (min(max(up[i], -l), l) + 1) / a
	}
}

// ClampedGateGrad takes the gradients of g and u in place to those of gate and up.
func (HostOps[F]) ClampedGateGrad(dg, du, gate, up Buffer[F], alpha, limit float64) {
	sameLength("clamped gate grad", len(dg), len(gate))
	sameLength("clamped gate grad", len(du), len(up))
	a, l := F(alpha), F(limit)
	for i := range dg {
		dg[i] *= a
		if gate[i] > l {
			dg[i] = 0
		}
		du[i] /= a
		if up[i] > l || up[i] < -l {
			du[i] = 0
		}
	}
}

// Sink scales each head's output att to that of a softmax in which the sink takes part: by
// exp(lse) / (exp(lse) + exp(sink)), where lse is the log-sum-exp of the other scores.
func (HostOps[F]) Sink(att, lse, sinks Buffer[F], h, d int) {
	sameLength("sink", len(att), len(lse)*d)
	sameLength("sink", len(sinks), h)
	for i, l := range lse {
		share := F(1 / (1 + math.Exp(float64(sinks[i%h])-float64(l))))
		for j := range d {
			att[i*d+j] *= share
		}
	}
}

// SinkGrad adds to dsinks and scales datt in place.
//
// The output is out = share·a with share = exp(lse) / (exp(lse) + exp(sink)), so that
// da = share·dout. Attention's backward computes the gradient of a score with probability p
// and value v as p·(da·v - da·a). The share adds p·share·(1-share)·dout·a, because it depends
// on lse. The sum is p·(da·v - da·out): the same formula with out in place of a. Attention's
// backward is therefore given out as its output, and computes the whole gradient.
func (HostOps[F]) SinkGrad(datt, dsinks, att, lse, sinks Buffer[F], h, d int) {
	sameLength("sink grad", len(datt), len(lse)*d)
	sameLength("sink grad", len(att), len(datt))
	sameLength("sink grad", len(dsinks), h)
	sums := make([]float64, h)
	for i, l := range lse {
		head := i % h
		share := 1 / (1 + math.Exp(float64(sinks[head])-float64(l)))
		var along float64
		for j := i * d; j < (i+1)*d; j++ {
			along += float64(datt[j]) * float64(att[j])
			datt[j] *= F(share)
		}
		sums[head] -= along * (1 - share)
	}
	for i, v := range sums {
		dsinks[i] += F(v)
	}
}

// ZLossGrad adds the gradient of the z-loss. With p the softmax of a row and l its log-sum-exp, dlogits
// holds scale·(p - onehot), and the gradient of z·l² is 2·z·l·p. So the row is multiplied by 1 + 2·z·l,
// and the target's element gets back what that takes from it.
func (HostOps[F]) ZLossGrad(dlogits, logits Buffer[F], loss []float64, targets []int32, z, scale float64, t, v int) {
	sameLength("z-loss grad", len(dlogits), t*v)
	sameLength("z-loss grad", len(logits), t*v)
	sameLength("z-loss grad", len(loss), t)
	for r, target := range targets {
		if target < 0 {
			continue
		}
		at := r*v + int(target)
		more := 2 * z * (loss[r] + float64(logits[at])) // the loss is l less the target's logit
		row := dlogits[r*v : (r+1)*v]
		for i := range row {
			row[i] = F(row[i] * F(1+more))
		}
		dlogits[at] += F(scale * more)
	}
}

// sameLength panics with the operation's name unless two sizes agree.
func sameLength(op string, got, want int) {
	if got != want {
		panic(fmt.Sprintf("%s: buffers of %d and %d elements", op, got, want))
	}
}
