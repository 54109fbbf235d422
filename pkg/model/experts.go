package model

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Mixtures of experts. For each row a router takes the softmax over all experts and chooses
// the TopK most probable ones; of equal ones the lower index wins. The row's output is the
// weighted sum of their outputs, added in ascending order of experts. All rows of an expert
// go through it in one product, and still no row's result depends on other rows.

// experts is the feed-forward part of a layer with a router.
type experts[F tensor.Float] struct {
	router         *linear[F] // [E,C], decoded
	gate, up, down []linear[F]
}

// routing says which rows go to which expert. Rows are grouped by expert: index j, with
// bounds[e] <= j < bounds[e+1], stands for row rows[j] at expert e.
type routing[F tensor.Float] struct {
	probs  []F // [T,E]
	bounds []int
	rows   []int
	weight []F // [T*TopK] by grouped index
}

// routed is what the backward pass needs of a layer's experts.
type routed[F tensor.Float] struct {
	routing[F]
	gate, up []F // [T*TopK, F] by grouped index
}

// experts builds the experts of a layer. Files hold one tensor an expert; parameters stack
// the tensors of all experts.
func (b *builder[F]) experts(ffn *FeedForward) *experts[F] {
	spec, width := ffn.Experts, b.stage.Spec.Width
	router := b.linear(&spec.Router, spec.Count, width, plainTensor)
	x := &experts[F]{router: &router}
	if b.err != nil {
		return x
	}
	if m := &x.router.Matrix; m.Dense == nil {
		m.Dense = make([]F, m.Rows*m.Cols)
		tensor.Dequantize(m.Dense, m.Raw, m.DType)
		m.Raw = nil
	}
	f := spec.Width
	both := b.add(Param[F]{Name: spec.Stack + ".gate_up_proj", Shape: []int{spec.Count, 2 * f, width}})
	down := b.add(Param[F]{Name: spec.Stack + ".down_proj", Shape: []int{spec.Count, width, f}})
	bothBias, downBias := 0, 0
	if spec.Bias {
		bothBias = b.add(Param[F]{Name: spec.Stack + ".gate_up_proj_bias", Shape: []int{spec.Count, 2 * f}, Data: make([]F, spec.Count*2*f)})
		downBias = b.add(Param[F]{Name: spec.Stack + ".down_proj_bias", Shape: []int{spec.Count, width}, Data: make([]F, spec.Count*width)})
	}
	piece := func(e int, p expertPart, rows, cols int, weight, bias slot) linear[F] {
		l := b.expert(spec, e, p, rows, cols, weight)
		if spec.Bias {
			b.expertBias(&l, spec, e, p, bias)
		}
		return l
	}
	n := f * width
	for e := range spec.Count {
		x.gate = append(x.gate, piece(e, gatePart, f, width, slot{both, 2 * e * n, n}, slot{bothBias, 2 * e * f, f}))
		x.up = append(x.up, piece(e, upPart, f, width, slot{both, (2*e + 1) * n, n}, slot{bothBias, (2*e + 1) * f, f}))
		x.down = append(x.down, piece(e, downPart, width, f, slot{down, e * n, n}, slot{downBias, e * width, width}))
	}
	return x
}

// expert fills an expert's matrix. A decoded matrix is copied to its piece of the stack.
func (b *builder[F]) expert(x *Experts, e int, p expertPart, rows, cols int, at slot) linear[F] {
	if b.err != nil {
		return linear[F]{}
	}
	w := wanted{end: ".weight", rows: rows, cols: cols}
	if p == downPart {
		w.role = residualTensor
	}
	m, err := b.fill.expert(x, e, p, w)
	if err != nil {
		b.err = err
		return linear[F]{}
	}
	if m.Dense == nil {
		b.stage.dense = false
	} else {
		stack := &b.stage.params.Tensors[at.index]
		if stack.Data == nil {
			stack.Data = make([]F, stack.Shape[0]*stack.Shape[1]*stack.Shape[2])
		}
		m.Dense = stack.Data[at.from : at.from+copy(stack.Data[at.from:], m.Dense)]
	}
	return linear[F]{Matrix: m, atW: at}
}

func (b *builder[F]) expertBias(l *linear[F], x *Experts, e int, p expertPart, at slot) {
	if b.err != nil {
		return
	}
	v, err := b.fill.expertBias(x, e, p, wanted{end: ".bias", rows: l.Rows})
	if err != nil {
		b.err = err
		return
	}
	data := b.stage.params.Tensors[at.index].Data
	l.bias, l.hasB, l.atB = data[at.from:at.from+copy(data[at.from:], v)], true, at
}

// gated computes the activation of experts. GPT-OSS's is g·sigmoid(alpha·g)·(up+1) with
// clamped g and up. As SiLU(x) = x·sigmoid(x), that is SiLU(alpha·g)·(up+1)/alpha: the gated
// SiLU of alpha·g and (up+1)/alpha.
func (s *Stage[F]) gated(f *FeedForward, y, gate, up []F) {
	if f.Experts.Alpha == 0 {
		s.set.GLU(y, gate, up, f.Act)
		return
	}
	g, u := clamped(f.Experts, gate, up)
	s.set.GLU(y, g, u, kernel.SiLU)
}

// clamped returns the arguments of the gated SiLU that computes GPT-OSS's activation.
func clamped[F tensor.Float](x *Experts, gate, up []F) (g, u []F) {
	alpha, limit := F(x.Alpha), F(x.Limit)
	g, u = make([]F, len(gate)), make([]F, len(up))
	for i, v := range gate {
		g[i] = min(v, limit) * alpha
		u[i] = (min(max(up[i], -limit), limit) + 1) / alpha
	}
	return g, u
}

// gatedGrad overwrites dgate and dup with the gradients of gate and up. dup may be dy.
func (s *Stage[F]) gatedGrad(f *FeedForward, dgate, dup, dy, gate, up []F) {
	x := f.Experts
	if x.Alpha == 0 {
		s.set.GLUGrad(dgate, dup, nil, dy, gate, up, f.Act)
		return
	}
	alpha, limit := F(x.Alpha), F(x.Limit)
	g, u := clamped(x, gate, up)
	s.set.GLUGrad(dgate, dup, nil, dy, g, u, kernel.SiLU)
	for i := range dgate {
		dgate[i] *= alpha
		if gate[i] > limit {
			dgate[i] = 0
		}
		dup[i] /= alpha
		if up[i] > limit || up[i] < -limit {
			dup[i] = 0
		}
	}
}

// sink scales each head's output att to that of a softmax in which the sink takes part: by
// exp(lse) / (exp(lse) + exp(sink)), where lse is the log-sum-exp of the other scores.
func (s *Stage[F]) sink(att, lse []F, sinks *norm[F], d int) {
	for i, l := range lse {
		share := F(1 / (1 + math.Exp(float64(sinks.gain[i%len(sinks.gain)])-float64(l))))
		for j := range d {
			att[i*d+j] *= share
		}
	}
}

// sinkGrad adds the gradient of the sinks to g and scales datt in place to the gradient of
// attention's output before the sink.
//
// The output is out = share·a with share = exp(lse) / (exp(lse) + exp(sink)), so that
// da = share·dout. Attention's backward computes the gradient of a score with probability p
// and value v as p·(da·v - da·a). The share adds p·share·(1-share)·dout·a, because it depends
// on lse. The sum is p·(da·v - da·out): the same formula with out in place of a. Attention's
// backward is therefore given out as its output, and computes the whole gradient.
func (s *Stage[F]) sinkGrad(datt, att, lse []F, sinks *norm[F], d int, g *Params[F]) {
	into := g.at(sinks.atG)
	sums := make([]float64, len(into))
	for i, l := range lse {
		head := i % len(into)
		share := 1 / (1 + math.Exp(float64(sinks.gain[head])-float64(l)))
		var along float64
		for j := i * d; j < (i+1)*d; j++ {
			along += float64(datt[j]) * float64(att[j])
			datt[j] *= F(share)
		}
		sums[head] -= along * (1 - share)
	}
	for i, v := range sums {
		into[i] += F(v)
	}
}

// route chooses the experts of every row of h[T,C].
func (s *Stage[F]) route(blk *block[F], h []F, t int) routing[F] {
	c, x := blk.FFN.Experts, blk.experts
	r := routing[F]{probs: make([]F, t*c.Count), bounds: make([]int, c.Count+1)}
	s.set.MatMul(r.probs, h, &x.router.Matrix, x.router.bias, t)
	chosen, weights := make([]bool, t*c.Count), make([]F, t*c.Count)
	for row := range t {
		p, w, in := r.probs[row*c.Count:(row+1)*c.Count], weights[row*c.Count:], chosen[row*c.Count:]
		softmax(p)
		var sum float64
		for range c.TopK { // > keeps the lower index of equal probabilities
			best := -1
			for e, v := range p {
				if !in[e] && (best < 0 || v > p[best]) {
					best = e
				}
			}
			in[best] = true
			sum += float64(p[best])
			r.bounds[best+1]++
		}
		if !c.Normalize {
			sum = 1
		}
		for e, v := range p {
			w[e] = F(float64(v) / sum)
		}
	}
	for e := range c.Count {
		r.bounds[e+1] += r.bounds[e]
		for row := range t {
			if chosen[row*c.Count+e] {
				r.rows, r.weight = append(r.rows, row), append(r.weight, weights[row*c.Count+e])
			}
		}
	}
	return r
}

// softmax turns logits into probabilities, in float64.
func softmax[F tensor.Float](x []F) {
	best := math.Inf(-1)
	for _, v := range x {
		best = max(best, float64(v))
	}
	var sum float64
	for _, v := range x {
		sum += math.Exp(float64(v) - best)
	}
	for i, v := range x {
		x[i] = F(math.Exp(float64(v)-best) / sum)
	}
}

// expertsForward overwrites y[T,C] with the output of the experts for h[T,C].
func (s *Stage[F]) expertsForward(blk *block[F], y, h []F, t int) routed[F] {
	x, ff, width := blk.experts, blk.FFN.Experts.Width, s.Spec.Width
	k := routed[F]{routing: s.route(blk, h, t)}
	n := len(k.rows)
	k.gate, k.up = make([]F, n*ff), make([]F, n*ff)
	in, act, out := make([]F, n*width), make([]F, n*ff), make([]F, n*width)
	k.gather(in, h, width)
	clear(y)
	for e := range x.gate {
		lo, hi := k.bounds[e], k.bounds[e+1]
		if lo == hi {
			continue
		}
		g, u, a := k.gate[lo*ff:hi*ff], k.up[lo*ff:hi*ff], act[lo*ff:hi*ff]
		s.set.MatMuls(in[lo*width:hi*width], hi-lo, x.gate[e].product(g), x.up[e].product(u))
		s.gated(&blk.FFN, a, g, u)
		o := out[lo*width : hi*width]
		s.set.MatMul(o, a, &x.down[e].Matrix, x.down[e].bias, hi-lo)
		for j := lo; j < hi; j++ {
			to, w := y[k.rows[j]*width:], k.weight[j]
			for i, v := range o[(j-lo)*width : (j-lo+1)*width] {
				to[i] += F(w * v)
			}
		}
	}
	return k
}

// gather copies the rows of h in grouped order.
func (r *routing[F]) gather(dst, h []F, width int) {
	for j, row := range r.rows {
		copy(dst[j*width:(j+1)*width], h[row*width:])
	}
}

// expertsBackward overwrites dh[T,C] with the gradient of h, given the gradient dy[T,C] of
// the experts' output, and adds the gradients of their weights to g.
func (s *Stage[F]) expertsBackward(blk *block[F], k *routed[F], dh, dy, h []F, t int, g *Params[F]) {
	x, count, ff, width := blk.experts, blk.FFN.Experts.Count, blk.FFN.Experts.Width, s.Spec.Width
	n := len(k.rows)
	in, dout, out := make([]F, n*width), make([]F, n*width), make([]F, n*width)
	act, dact := make([]F, n*ff), make([]F, n*ff)
	dgate, din := make([]F, n*ff), make([]F, n*width)
	k.gather(in, h, width)
	dweight := make([]float64, t*count) // gradients of the weights of chosen experts
	for e := range x.gate {
		lo, hi := k.bounds[e], k.bounds[e+1]
		if lo == hi {
			continue
		}
		wide := func(b []F) []F { return b[lo*ff : hi*ff] }
		rows := func(b []F) []F { return b[lo*width : hi*width] }
		s.gated(&blk.FFN, wide(act), wide(k.gate), wide(k.up))
		s.set.MatMul(rows(out), wide(act), &x.down[e].Matrix, x.down[e].bias, hi-lo)
		for j := lo; j < hi; j++ {
			var sum float64
			d, o := dy[k.rows[j]*width:][:width], out[j*width:]
			to := dout[j*width:]
			for i, v := range d {
				sum += float64(v) * float64(o[i])
				to[i] = F(v * k.weight[j])
			}
			dweight[k.rows[j]*count+e] = sum
		}
		s.linearGrad(wide(dact), wide(act), hi-lo, g, branch[F]{rows(dout), &x.down[e]})
		dup := wide(dact)
		s.gatedGrad(&blk.FFN, wide(dgate), dup, wide(dact), wide(k.gate), wide(k.up))
		s.linearGrad(rows(din), rows(in), hi-lo, g, branch[F]{wide(dgate), &x.gate[e]}, branch[F]{dup, &x.up[e]})
	}
	s.linearGrad(dh, h, t, g, branch[F]{routerGrad(blk.FFN.Experts, k, dweight, t), x.router})
	for j, row := range k.rows {
		to := dh[row*width:]
		for i, v := range din[j*width : (j+1)*width] {
			to[i] += v
		}
	}
}

// routerGrad returns the gradient of the router's logits [T,E], given the gradients of the
// weights of the chosen experts.
func routerGrad[F tensor.Float](c *Experts, k *routed[F], dweight []float64, t int) []F {
	chosen := make([]bool, t*c.Count)
	for e := range c.Count {
		for j := k.bounds[e]; j < k.bounds[e+1]; j++ {
			chosen[k.rows[j]*c.Count+e] = true
		}
	}
	out := make([]F, t*c.Count)
	for row := range t {
		lo, hi := row*c.Count, (row+1)*c.Count
		p, dw, in := k.probs[lo:hi], dweight[lo:hi], chosen[lo:hi]
		if c.Normalize { // weights are p/sum: first the gradient of that quotient
			var sum, mean float64
			for e, v := range p {
				if in[e] {
					sum += float64(v)
				}
			}
			for e, v := range p {
				if in[e] {
					mean += dw[e] * float64(v) / sum
				}
			}
			for e := range dw {
				if in[e] {
					dw[e] = (dw[e] - mean) / sum
				}
			}
		}
		var mean float64 // then that of the softmax: p·(dp - Σ p·dp)
		for e, v := range p {
			mean += dw[e] * float64(v)
		}
		for e, v := range p {
			out[lo+e] = F(float64(v) * (dw[e] - mean))
		}
	}
	return out
}

// packed lists the matrices that the kernel set packs.
func (x *experts[F]) packed() []*kernel.Matrix[F] {
	var out []*kernel.Matrix[F]
	for e := range x.gate {
		out = append(out, &x.gate[e].Matrix, &x.up[e].Matrix, &x.down[e].Matrix)
	}
	return out
}
