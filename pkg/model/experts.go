package model

import (
	"fmt"
	"math"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Mixtures of experts. A router's softmax over all experts chooses TopK of them for a
// row, ties to the lower; what they compute is added by their weights, experts in
// ascending order. Rows of one expert go through it together: no row's result depends on
// the others.

// experts is the feed-forward part of a layer with a router.
type experts[F tensor.Float] struct {
	router         *linear[F] // [E,C], decoded
	gate, up, down []linear[F]
}

// routing is which rows go where. Grouped index j stands for row rows[j] at expert e,
// bounds[e] <= j < bounds[e+1].
type routing[F tensor.Float] struct {
	probs  []F // [T,E]
	bounds []int
	rows   []int
	weight []F // [T*TopK] by grouped index
}

// routed is what a backward needs of a layer's experts.
type routed[F tensor.Float] struct {
	routing[F]
	gate, up []F // [T*TopK, F] by grouped index
}

// experts builds the part from per-expert tensors; as parameters they are stacked.
func (b *builder[F]) experts(n blockNames) *experts[F] {
	c := &b.stage.Config
	router := b.linear(n.router, c.Experts, c.Width, c.GLUAlpha != 0)
	x := &experts[F]{router: &router}
	if b.err != nil {
		return x
	}
	if m := &x.router.Matrix; m.Dense == nil {
		m.Dense = make([]F, m.Rows*m.Cols)
		tensor.Dequantize(m.Dense, m.Raw, m.DType)
		m.Raw = nil
	}
	f := c.ExpertFF
	both := b.add(Param[F]{Name: n.experts + ".gate_up_proj", Shape: []int{c.Experts, 2 * f, c.Width}})
	down := b.add(Param[F]{Name: n.experts + ".down_proj", Shape: []int{c.Experts, c.Width, f}})
	piece := func(e int, name string, rows, cols, index, from int) linear[F] {
		if b.err != nil {
			return linear[F]{}
		}
		m, err := b.fill.matrix(fmt.Sprintf("%s.%d.%s.weight", n.experts, e, name), rows, cols)
		if err != nil {
			b.err = err
			return linear[F]{}
		}
		if m.Dense == nil {
			b.stage.dense = false
		} else {
			p := &b.stage.params.Tensors[index]
			if p.Data == nil {
				p.Data = make([]F, p.Shape[0]*p.Shape[1]*p.Shape[2])
			}
			m.Dense = p.Data[from : from+copy(p.Data[from:], m.Dense)]
		}
		return linear[F]{Matrix: m, atW: slot{index, from, rows * cols}}
	}
	biased, bothBias, downBias := c.GLUAlpha != 0, 0, 0
	if biased {
		bothBias = b.add(Param[F]{Name: n.experts + ".gate_up_proj_bias", Shape: []int{c.Experts, 2 * f}, Data: make([]F, c.Experts*2*f)})
		downBias = b.add(Param[F]{Name: n.experts + ".down_proj_bias", Shape: []int{c.Experts, c.Width}, Data: make([]F, c.Experts*c.Width)})
	}
	bias := func(l linear[F], e int, name string, index, from int) linear[F] {
		if !biased || b.err != nil {
			return l
		}
		v, err := b.fill.vector(fmt.Sprintf("%s.%d.%s.bias", n.experts, e, name), l.Rows)
		if err != nil {
			b.err = err
			return l
		}
		data := b.stage.params.Tensors[index].Data
		l.bias, l.hasB, l.atB = data[from:from+copy(data[from:], v)], true, slot{index, from, l.Rows}
		return l
	}
	for e := range c.Experts {
		at := e * 2 * f * c.Width
		x.gate = append(x.gate, bias(piece(e, "gate_proj", f, c.Width, both, at), e, "gate_proj", bothBias, 2*e*f))
		x.up = append(x.up, bias(piece(e, "up_proj", f, c.Width, both, at+f*c.Width), e, "up_proj", bothBias, (2*e+1)*f))
		x.down = append(x.down, bias(piece(e, "down_proj", c.Width, f, down, e*f*c.Width), e, "down_proj", downBias, e*c.Width))
	}
	return x
}

// gated computes the experts' activation. GPT-OSS's, g·sigmoid(alpha·g)·(up+1) of bounded
// g and up, is SiLU's of alpha·g and (up+1)/alpha.
func (s *Stage[F]) gated(y, gate, up []F) {
	c := &s.Config
	if c.GLUAlpha == 0 {
		s.set.GLU(y, gate, up, c.Act)
		return
	}
	g, u := s.bounded(gate, up)
	s.set.GLU(y, g, u, kernel.SiLU)
}

// bounded are the arguments of SiLU's gate for GPT-OSS's.
func (s *Stage[F]) bounded(gate, up []F) (g, u []F) {
	alpha, limit := F(s.Config.GLUAlpha), F(s.Config.GLULimit)
	g, u = make([]F, len(gate)), make([]F, len(up))
	for i, v := range gate {
		g[i] = min(v, limit) * alpha
		u[i] = (min(max(up[i], -limit), limit) + 1) / alpha
	}
	return g, u
}

// gatedGrad overwrites dgate and dup, which may be dy.
func (s *Stage[F]) gatedGrad(dgate, dup, dy, gate, up []F) {
	c := &s.Config
	if c.GLUAlpha == 0 {
		s.set.GLUGrad(dgate, dup, nil, dy, gate, up, c.Act)
		return
	}
	alpha, limit := F(c.GLUAlpha), F(c.GLULimit)
	g, u := s.bounded(gate, up)
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

// sink scales each head's output by its share of a softmax that the sink takes part in.
func (s *Stage[F]) sink(att, lse []F, sinks *norm[F]) {
	d := s.Config.HeadDim
	for i, l := range lse {
		share := F(1 / (1 + math.Exp(float64(sinks.gain[i%len(sinks.gain)])-float64(l))))
		for j := range d {
			att[i*d+j] *= share
		}
	}
}

// sinkGrad adds the sinks' gradient and scales datt in place, so that with att behind the
// sinks attention's own gradient is that of all of it: the part of the log-sum-exp just
// makes up for the part of the share.
func (s *Stage[F]) sinkGrad(datt, att, lse []F, sinks *norm[F], g *Params[F]) {
	d, into := s.Config.HeadDim, g.at(sinks.atG)
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

// route computes which experts the rows of h[T,C] go to.
func (s *Stage[F]) route(x *experts[F], h []F, t int) routing[F] {
	c := &s.Config
	r := routing[F]{probs: make([]F, t*c.Experts), bounds: make([]int, c.Experts+1)}
	s.set.MatMul(r.probs, h, &x.router.Matrix, x.router.bias, t)
	chosen, weights := make([]bool, t*c.Experts), make([]F, t*c.Experts)
	for row := range t {
		p, w, in := r.probs[row*c.Experts:(row+1)*c.Experts], weights[row*c.Experts:], chosen[row*c.Experts:]
		softmax(p)
		var sum float64
		for range c.TopK {
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
		if !c.NormTopK {
			sum = 1
		}
		for e, v := range p {
			w[e] = F(float64(v) / sum)
		}
	}
	for e := range c.Experts {
		r.bounds[e+1] += r.bounds[e]
		for row := range t {
			if chosen[row*c.Experts+e] {
				r.rows, r.weight = append(r.rows, row), append(r.weight, weights[row*c.Experts+e])
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

// expertsForward overwrites y[T,C] with what the experts make of h[T,C].
func (s *Stage[F]) expertsForward(x *experts[F], y, h []F, t int) routed[F] {
	c := &s.Config
	k := routed[F]{routing: s.route(x, h, t)}
	n := len(k.rows)
	k.gate, k.up = make([]F, n*c.ExpertFF), make([]F, n*c.ExpertFF)
	in, act, out := make([]F, n*c.Width), make([]F, n*c.ExpertFF), make([]F, n*c.Width)
	k.gather(in, h, c.Width)
	clear(y)
	for e := range x.gate {
		lo, hi := k.bounds[e], k.bounds[e+1]
		if lo == hi {
			continue
		}
		g, u, a := k.gate[lo*c.ExpertFF:hi*c.ExpertFF], k.up[lo*c.ExpertFF:hi*c.ExpertFF], act[lo*c.ExpertFF:hi*c.ExpertFF]
		s.set.MatMuls(in[lo*c.Width:hi*c.Width], hi-lo, x.gate[e].product(g), x.up[e].product(u))
		s.gated(a, g, u)
		o := out[lo*c.Width : hi*c.Width]
		s.set.MatMul(o, a, &x.down[e].Matrix, x.down[e].bias, hi-lo)
		for j := lo; j < hi; j++ {
			to, w := y[k.rows[j]*c.Width:], k.weight[j]
			for i, v := range o[(j-lo)*c.Width : (j-lo+1)*c.Width] {
				to[i] += F(w * v)
			}
		}
	}
	return k
}

// gather copies rows of h in grouped order.
func (r *routing[F]) gather(dst, h []F, width int) {
	for j, row := range r.rows {
		copy(dst[j*width:(j+1)*width], h[row*width:])
	}
}

// expertsBackward overwrites dh[T,C] with the gradient of h from that of what the experts
// made, dy[T,C], and adds their weights' to g.
func (s *Stage[F]) expertsBackward(x *experts[F], k *routed[F], dh, dy, h []F, t int, g *Params[F]) {
	c := &s.Config
	n := len(k.rows)
	in, dout, out := make([]F, n*c.Width), make([]F, n*c.Width), make([]F, n*c.Width)
	act, dact := make([]F, n*c.ExpertFF), make([]F, n*c.ExpertFF)
	dgate, din := make([]F, n*c.ExpertFF), make([]F, n*c.Width)
	k.gather(in, h, c.Width)
	dweight := make([]float64, t*c.Experts) // of the chosen
	for e := range x.gate {
		lo, hi := k.bounds[e], k.bounds[e+1]
		if lo == hi {
			continue
		}
		wide := func(b []F) []F { return b[lo*c.ExpertFF : hi*c.ExpertFF] }
		rows := func(b []F) []F { return b[lo*c.Width : hi*c.Width] }
		s.gated(wide(act), wide(k.gate), wide(k.up))
		s.set.MatMul(rows(out), wide(act), &x.down[e].Matrix, x.down[e].bias, hi-lo)
		for j := lo; j < hi; j++ {
			var sum float64
			d, o := dy[k.rows[j]*c.Width:][:c.Width], out[j*c.Width:]
			to := dout[j*c.Width:]
			for i, v := range d {
				sum += float64(v) * float64(o[i])
				to[i] = F(v * k.weight[j])
			}
			dweight[k.rows[j]*c.Experts+e] = sum
		}
		s.linearGrad(wide(dact), wide(act), hi-lo, g, branch[F]{rows(dout), &x.down[e]})
		dup := wide(dact)
		s.gatedGrad(wide(dgate), dup, wide(dact), wide(k.gate), wide(k.up))
		s.linearGrad(rows(din), rows(in), hi-lo, g, branch[F]{wide(dgate), &x.gate[e]}, branch[F]{dup, &x.up[e]})
	}
	s.linearGrad(dh, h, t, g, branch[F]{s.routerGrad(k, dweight, t), x.router})
	for j, row := range k.rows {
		to := dh[row*c.Width:]
		for i, v := range din[j*c.Width : (j+1)*c.Width] {
			to[i] += v
		}
	}
}

// routerGrad is the gradient of the router's logits from that of the chosen weights.
func (s *Stage[F]) routerGrad(k *routed[F], dweight []float64, t int) []F {
	c := &s.Config
	chosen := make([]bool, t*c.Experts)
	for e := range c.Experts {
		for j := k.bounds[e]; j < k.bounds[e+1]; j++ {
			chosen[k.rows[j]*c.Experts+e] = true
		}
	}
	out := make([]F, t*c.Experts)
	for row := range t {
		lo, hi := row*c.Experts, (row+1)*c.Experts
		p, dw, in := k.probs[lo:hi], dweight[lo:hi], chosen[lo:hi]
		if c.NormTopK {
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
		var mean float64
		for e, v := range p {
			mean += dw[e] * float64(v)
		}
		for e, v := range p {
			out[lo+e] = F(float64(v) * (dw[e] - mean))
		}
	}
	return out
}

// packed are the matrices to pack.
func (x *experts[F]) packed() []*kernel.Matrix[F] {
	var out []*kernel.Matrix[F]
	for e := range x.gate {
		out = append(out, &x.gate[e].Matrix, &x.up[e].Matrix, &x.down[e].Matrix)
	}
	return out
}

// expertPart splits the name of an expert's tensor: what precedes ".mlp.experts.", the
// expert, and what follows.
func expertPart(name string) (layer string, expert int, part string, ok bool) {
	layer, rest, found := strings.Cut(name, ".mlp.experts.")
	if !found {
		return "", 0, "", false
	}
	number, part, found := strings.Cut(rest, ".")
	if _, err := fmt.Sscanf(number, "%d", &expert); err != nil || !found {
		return "", 0, "", false
	}
	return layer, expert, part, true
}
