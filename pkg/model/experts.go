package model

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Mixture of experts: for each row a router takes the softmax over all experts and chooses the TopK
// most probable ones. If two are equal, it chooses the lower index. The row's output is the
// weighted sum of their outputs, added in ascending order of experts. All rows of an expert go
// through it in one product, and still no row's result depends on other rows.

// experts is the feed-forward part of a layer with a router.
type experts[F tensor.Float] struct {
	router         *linear[F] // [E,C], decoded
	gate, up, down []linear[F]

	gates, ups, downs kernel.ExpertMatrices[F] // the same, for sets that choose experts on their device
}

// routed is what the backward pass needs of a layer's experts.
type routed[F tensor.Float] struct {
	kernel.Routing[F]
	gate, up kernel.Buffer[F] // [T*TopK, F] by grouped index
	memory   kernel.Memory[F] // of the buffers, in training
	split    *routedSplit[F]  // between the two halves of a backward pass
}

// experts builds the experts of a layer. Files hold one tensor per expert. Parameters stack the
// tensors of all experts.
func (b *builder[F]) experts(ffn *FeedForward) *experts[F] {
	spec, width := ffn.Experts, b.stage.Spec.Width
	router := b.linear(&spec.Router, spec.Count, width, plainTensor)
	x := &experts[F]{router: &router}
	if b.err != nil {
		return x
	}
	if m := &x.router.Matrix; m.Raw != nil {
		dense := make([]F, m.Rows*m.Cols)
		tensor.Dequantize(dense, m.Raw, m.DType)
		m.Dense, m.Raw = b.stage.fromHost(dense), nil
	}
	f := spec.Width
	both := b.add(Param[F]{Name: spec.Stack + ".gate_up_proj", Shape: []int{spec.Count, 2 * f, width}})
	down := b.add(Param[F]{Name: spec.Stack + ".down_proj", Shape: []int{spec.Count, width, f}})
	bothBias, downBias := 0, 0
	if spec.Bias {
		bothBias = b.add(Param[F]{Name: spec.Stack + ".gate_up_proj_bias", Shape: []int{spec.Count, 2 * f},
			Data: b.stage.alloc(spec.Count * 2 * f)})
		downBias = b.add(Param[F]{Name: spec.Stack + ".down_proj_bias", Shape: []int{spec.Count, width},
			Data: b.stage.alloc(spec.Count * width)})
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
	x.gates, x.ups, x.downs = together(x.gate), together(x.up), together(x.down)
	return x
}

// together returns the matrices of all experts and their biases.
func together[F tensor.Float](linears []linear[F]) kernel.ExpertMatrices[F] {
	out := kernel.ExpertMatrices[F]{W: make([]*kernel.Matrix[F], len(linears))}
	if linears[0].hasB {
		out.Bias = make([]kernel.Buffer[F], len(linears))
	}
	for i := range linears {
		out.W[i] = &linears[i].Matrix
		if out.Bias != nil {
			out.Bias[i] = linears[i].bias
		}
	}
	return out
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
			stack.Data = b.stage.alloc(stack.Shape[0] * stack.Shape[1] * stack.Shape[2])
		}
		piece := stack.Data[at.from : at.from+len(m.Dense)]
		b.stage.set.Upload(piece, m.Dense)
		m.Dense = piece
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
	l.bias, l.hasB, l.atB = b.stage.params.at(at), true, at
	b.stage.set.Upload(l.bias, v)
}

// gated computes the activation of experts. GPT-OSS's is g·sigmoid(alpha·g)·(up+1) with
// clamped g and up. As SiLU(x) = x·sigmoid(x), that is SiLU(alpha·g)·(up+1)/alpha: the gated
// SiLU of alpha·g and (up+1)/alpha.
func (s *Stage[F]) gated(f *FeedForward, y, gate, up kernel.Buffer[F], a allocate[F]) {
	if f.Experts.Alpha == 0 {
		s.set.GLU(y, gate, up, f.Act)
		return
	}
	g, u := s.clamped(f.Experts, gate, up, a)
	s.set.GLU(y, g, u, kernel.SiLU)
}

// clamped returns the arguments of the gated SiLU that computes GPT-OSS's activation.
func (s *Stage[F]) clamped(x *Experts, gate, up kernel.Buffer[F], a allocate[F]) (g, u kernel.Buffer[F]) {
	g, u = a(len(gate)), a(len(up))
	s.set.ClampedGate(g, u, gate, up, x.Alpha, x.Limit)
	return g, u
}

// gatedGrad overwrites dgate and dup with the gradients of gate and up. dup may be dy.
func (s *Stage[F]) gatedGrad(f *FeedForward, dgate, dup, dy, gate, up kernel.Buffer[F], a allocate[F]) {
	x := f.Experts
	if x.Alpha == 0 {
		s.set.GLUGrad(dgate, dup, nil, dy, gate, up, f.Act)
		return
	}
	g, u := s.clamped(x, gate, up, a)
	s.set.GLUGrad(dgate, dup, nil, dy, g, u, kernel.SiLU)
	s.set.ClampedGateGrad(dgate, dup, gate, up, x.Alpha, x.Limit)
}

// allocate returns a buffer of n values that live as long as what a pass computes with them.
type allocate[F tensor.Float] func(n int) kernel.Buffer[F]

// expertsForward overwrites y[T,C] with the output of the experts for h[T,C]. The result is in buffers of alloc.
func (s *Stage[F]) expertsForward(blk *block[F], y, h kernel.Buffer[F], t int, alloc allocate[F]) routed[F] {
	x, spec, width := blk.experts, blk.FFN.Experts, s.Spec.Width
	ff := spec.Width
	logits, weight := alloc(t*spec.Count), alloc(t*spec.TopK)
	s.multiply(h, t, output[F]{x.router, logits})
	k := routed[F]{Routing: s.set.Route(weight, logits, t, spec.Count, spec.TopK, spec.Normalize)}
	n := len(k.Rows)
	k.gate, k.up = alloc(n*ff), alloc(n*ff)
	in, act, out := alloc(n*width), alloc(n*ff), alloc(n*width)
	s.set.Dispatch(in, h, &k.Routing, width)
	s.set.Clear(y)
	for e := range x.gate {
		lo, hi := k.Bounds[e], k.Bounds[e+1]
		if lo == hi {
			continue
		}
		g, u, a := k.gate[lo*ff:hi*ff], k.up[lo*ff:hi*ff], act[lo*ff:hi*ff]
		s.set.MatMuls(in[lo*width:hi*width], hi-lo, x.gate[e].product(g), x.up[e].product(u))
		s.gated(&blk.FFN, a, g, u, alloc)
		o := out[lo*width : hi*width]
		s.set.MatMul(o, a, &x.down[e].Matrix, x.down[e].bias, hi-lo)
		s.set.Combine(y, o, &k.Routing, lo, hi, width)
	}
	return k
}

// expertsRouted is expertsForward on a set that chooses experts on its device, where no pass waits for the choice; the
// bits are the same. It returns false, and has done nothing, if the set does not.
func (s *Stage[F]) expertsRouted(blk *block[F], y, h kernel.Buffer[F], t int, alloc allocate[F]) bool {
	x, spec, width := blk.experts, blk.FFN.Experts, s.Spec.Width
	set, ok := s.set.(kernel.ExpertRouter[F])
	if !ok || !set.Routes(t, spec.TopK, &x.gates, &x.ups, &x.downs) {
		return false
	}
	n := t * spec.TopK
	logits, weight, lists := alloc(t*spec.Count), alloc(n), alloc(set.RoutedLists(t, spec.Count, spec.TopK))
	in, gate, up := alloc(n*width), alloc(n*spec.Width), alloc(n*spec.Width)
	act, out := alloc(n*spec.Width), alloc(n*width)
	s.multiply(h, t, output[F]{x.router, logits})
	r := set.RouteRows(weight, lists, logits, t, spec.Count, spec.TopK, spec.Normalize)
	set.DispatchRows(in, h, &r, width)
	set.ExpertMatMuls(in, &r, kernel.RoutedProduct[F]{Y: gate, W: &x.gates}, kernel.RoutedProduct[F]{Y: up, W: &x.ups})
	s.gated(&blk.FFN, act, gate, up, alloc)
	set.ExpertMatMuls(act, &r, kernel.RoutedProduct[F]{Y: out, W: &x.downs})
	set.CombineRows(y, out, &r, width)
	return true
}

// expertsBackward overwrites dh[T,C] with the gradient of h, given the gradient dy[T,C] of
// the experts' output, and adds the gradients of their weights to g. With split it keeps what
// expertsWeights needs to do that.
func (s *Stage[F]) expertsBackward(blk *block[F], k *routed[F], dh, dy, h kernel.Buffer[F], t int, g *Params[F],
	split bool) {
	x, spec, width := blk.experts, blk.FFN.Experts, s.Spec.Width
	ff, n := spec.Width, len(k.Rows)
	memory := s.set.Scope()
	in, dout, out := memory.Alloc(n*width), memory.Alloc(n*width), memory.Alloc(n*width)
	act, dact := memory.Alloc(n*ff), memory.Alloc(n*ff)
	dgate, din := memory.Alloc(n*ff), memory.Alloc(n*width)
	s.set.Dispatch(in, h, &k.Routing, width)
	for e := range x.gate {
		lo, hi := k.Bounds[e], k.Bounds[e+1]
		if lo == hi {
			continue
		}
		wide := func(b kernel.Buffer[F]) kernel.Buffer[F] { return b[lo*ff : hi*ff] }
		rows := func(b kernel.Buffer[F]) kernel.Buffer[F] { return b[lo*width : hi*width] }
		s.gated(&blk.FFN, wide(act), wide(k.gate), wide(k.up), memory.Alloc)
		s.set.MatMul(rows(out), wide(act), &x.down[e].Matrix, x.down[e].bias, hi-lo)
		s.set.CombineGrad(rows(dout), dy, rows(out), &k.Routing, lo, hi, width)
		s.linearGrad(wide(dact), wide(act), hi-lo, g, branch[F]{rows(dout), &x.down[e]})
		dup := wide(dact) // in the place of the gradient of act
		s.gatedGrad(&blk.FFN, wide(dgate), dup, wide(dact), wide(k.gate), wide(k.up), memory.Alloc)
		s.linearGrad(rows(din), rows(in), hi-lo, g, branch[F]{wide(dgate), &x.gate[e]}, branch[F]{dup, &x.up[e]})
	}
	dlogits := memory.Alloc(t * spec.Count)
	s.set.RouteGrad(dlogits, &k.Routing, t, spec.Count, spec.Normalize)
	s.linearGrad(dh, h, t, g, branch[F]{dlogits, x.router})
	s.set.DispatchGrad(dh, din, &k.Routing, width)
	if split {
		k.split = &routedSplit[F]{memory: memory, in: in, act: act, dout: dout, dgate: dgate, dup: dact,
			dlogits: dlogits}
	}
}

// routedSplit is what expertsBackward keeps for expertsWeights.
type routedSplit[F tensor.Float] struct {
	memory                             kernel.Memory[F] // of the others
	in, act, dout, dgate, dup, dlogits kernel.Buffer[F]
}

// expertsWeights adds the gradients of the experts' weights to g, after expertsBackward.
func (s *Stage[F]) expertsWeights(blk *block[F], k *routed[F], h kernel.Buffer[F], t int, g *Params[F]) {
	x, width, ff, d := blk.experts, s.Spec.Width, blk.FFN.Experts.Width, k.split
	for e := range x.gate {
		lo, hi := k.Bounds[e], k.Bounds[e+1]
		if lo == hi {
			continue
		}
		s.linearGrad(nil, d.act[lo*ff:hi*ff], hi-lo, g, branch[F]{d.dout[lo*width : hi*width], &x.down[e]})
		s.linearGrad(nil, d.in[lo*width:hi*width], hi-lo, g, branch[F]{d.dgate[lo*ff : hi*ff], &x.gate[e]},
			branch[F]{d.dup[lo*ff : hi*ff], &x.up[e]})
	}
	s.linearGrad(nil, h, t, g, branch[F]{d.dlogits, x.router})
}

// packed lists the matrices that the kernel set packs.
func (x *experts[F]) packed() []*kernel.Matrix[F] {
	var out []*kernel.Matrix[F]
	for e := range x.gate {
		out = append(out, &x.gate[e].Matrix, &x.up[e].Matrix, &x.down[e].Matrix)
	}
	return out
}
