package cuda

import (
	"fmt"
	"runtime"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// The choice of experts on the device. Kernels write which rows go to which experts to lists on the device, and the
// products of experts read them there: a launch has blocks for all groups of rows that there may be, and those of a
// group that has no rows return at once. So the host need not know the choice, and a step may be a graph.

// heldExperts is the list of addresses of the matrices of experts on the device, and behind it that of their biases.
type heldExperts struct {
	scope  *scope
	at     driver.Address
	places []uint64
}

// form says how a matrix lies on the device.
type form struct {
	rows, cols, stride int
	name               string
	dense              bool
}

// formOf returns the form of a matrix, and whether it is on the device.
func formOf(w *kernel.Matrix[float32]) (form, bool) {
	f := form{rows: w.Rows, cols: w.Cols, name: "f32", dense: true}
	if w.Dense != nil {
		return f, true
	}
	p, ok := w.Packed.(*packed)
	if ok && !p.dense {
		f.name, f.stride, f.dense = p.name, p.stride, false
	}
	return f, ok
}

// Routes reports whether rows can be routed to experts: their matrices are on the device in one form, and a launch has
// room for the rows.
func (s *Set) Routes(t, topK int, w ...*kernel.ExpertMatrices[float32]) bool {
	if t*topK > maxBlocksY-2*tiles[len(tiles)-1].rows { // with what tiles have beyond them
		return false
	}
	for _, x := range w {
		if len(x.W) == 0 || len(x.W) > maxBlocksY {
			return false
		}
		want, ok := formOf(x.W[0])
		if !ok || slices.ContainsFunc(x.W, func(m *kernel.Matrix[float32]) bool {
			f, ok := formOf(m)
			return !ok || f != want
		}) {
			return false
		}
	}
	return true
}

// routedLists are the lists of a Routed: experts by row, and the grouped index of each, [T,TopK]; rows by grouped
// index, [T*TopK]; and the groups, each an expert and the grouped indices from and to, [min(E,T*TopK),3].
type routedLists struct{ chosen, slots, rows, groups driver.Address }

// groupsOf returns how many groups there may be.
func groupsOf(t, e, topK int) int { return min(e, t*topK) }

// RoutedLists returns the length of the lists.
func (s *Set) RoutedLists(t, e, topK int) int { return 3 * (t*topK + groupsOf(t, e, topK)) }

// routed returns the places of lists.
func (s *Set) routed(op string, r *kernel.Routed[float32]) routedLists {
	must(op, "lists", len(r.Lists), s.RoutedLists(r.T, r.E, r.TopK))
	at, n := address(s.device, op, r.Lists), driver.Address(4*r.T*r.TopK)
	return routedLists{at, at + n, at + 2*n, at + 3*n}
}

// RouteRows chooses experts on the device, and groups their rows.
func (s *Set) RouteRows(
	weight, lists, logits kernel.Buffer[float32], t, e, topK int, normalize bool,
) kernel.Routed[float32] {
	const op = "route"
	must(op, "logits", len(logits), t*e)
	must(op, "weight", len(weight), t*topK)
	if topK < 1 || topK > e {
		panic(fmt.Sprintf("%s: %d of %d experts", op, topK, e))
	}
	r := kernel.Routed[float32]{T: t, E: e, TopK: topK, Weight: weight, Lists: lists}
	at := s.routed(op, &r)
	choose, group := s.need(op, "route"), s.need(op, "route_groups")
	from, to, divide := address(s.device, op, logits), address(s.device, op, weight), uint32(0)
	if normalize {
		divide = 1
	}
	if t == 0 {
		return r
	}
	warps := func(k *Kernel, n int) driver.Dim { return driver.Dim{X: blocks(n, k.Threads/32), Y: 1, Z: 1} }
	s.launch(choose, warps(choose, t), 0, from, at.chosen, to, uint32(t), uint32(e), uint32(topK), divide)
	s.launch(group, warps(group, e), 0, at.rows, at.slots, at.groups, at.chosen, uint32(t*topK), uint32(e),
		uint32(topK))
	return r
}

// DispatchRows copies rows of x to dst in grouped order.
func (s *Set) DispatchRows(dst, x kernel.Buffer[float32], r *kernel.Routed[float32], c int) {
	const op = "dispatch"
	must(op, "dst", len(dst), r.T*r.TopK*c)
	must(op, "x", len(x), r.T*c)
	s.each(op, "dispatch", len(dst), address(s.device, op, dst), address(s.device, op, x), s.routed(op, r).rows,
		uint32(c), uint32(len(dst)))
}

// CombineRows overwrites y with the weighted sums of the outputs of experts.
func (s *Set) CombineRows(y, x kernel.Buffer[float32], r *kernel.Routed[float32], c int) {
	const op = "combine"
	must(op, "x", len(x), r.T*r.TopK*c)
	must(op, "y", len(y), r.T*c)
	must(op, "weight", len(r.Weight), r.T*r.TopK)
	s.each(op, "combine_rows", len(y), address(s.device, op, y), address(s.device, op, x), s.routed(op, r).slots,
		address(s.device, op, r.Weight), uint32(c), uint32(r.TopK), uint32(len(y)))
}

// ExpertMatMuls multiplies grouped rows by the matrices of their experts.
func (s *Set) ExpertMatMuls(
	x kernel.Buffer[float32], r *kernel.Routed[float32], products ...kernel.RoutedProduct[float32],
) {
	const op = "expert matmul"
	n := r.T * r.TopK
	b := batch{x: address(s.device, op, x), rows: n, groups: s.routed(op, r).groups, count: groupsOf(r.T, r.E, r.TopK),
		most: r.T} // a row is for an expert once
	b.usual = max(1, min(r.T, 2*n/r.E))
	all := make([]operand, len(products))
	for i, p := range products {
		must(op, "matrices", len(p.W.W), r.E)
		must(op, "x", len(x), n*p.W.W[0].Cols)
		must(op, "y", len(p.Y), n*p.W.W[0].Rows)
		all[i] = s.expertOperand(op, p.W, tileFor(b.usual))
		all[i].y = address(s.device, op, p.Y)
	}
	s.multiply(op, all, b)
	runtime.KeepAlive(products)
}

// expertOperand returns the matrices of experts as a product reads them.
func (s *Set) expertOperand(op string, w *kernel.ExpertMatrices[float32], shape tile) operand {
	if !s.Routes(0, 0, w) {
		panic(fmt.Sprintf("%s: the matrices are not all on the device in one form", op))
	}
	first := w.W[0]
	places := make([]uint64, 0, len(w.W)+len(w.Bias))
	for _, m := range w.W {
		var at driver.Address
		if p, ok := m.Packed.(*packed); m.Dense == nil && ok {
			at = p.at
		} else {
			must(op, "weights", len(m.Dense), m.Rows*m.Cols)
			at = address(s.device, op, m.Dense)
		}
		places = append(places, uint64(at))
	}
	if w.Bias != nil {
		must(op, "biases", len(w.Bias), len(w.W))
	}
	for _, b := range w.Bias {
		must(op, "bias", len(b), first.Rows)
		places = append(places, uint64(address(s.device, op, b)))
	}
	h := s.holdExperts(w, places)
	o := operand{held: h, rows: first.Rows, cols: first.Cols, w: h.at}
	if w.Bias != nil {
		o.bias = h.at + driver.Address(8*len(w.W))
	}
	if p, ok := first.Packed.(*packed); first.Dense == nil && ok && !p.dense {
		o.stride = p.stride
		o.kernel, o.acts = s.product(p, shape)
	}
	return o
}

// holdExperts puts a list of addresses on the device unless it is there. The list does not change any more, since
// graphs may read it: other addresses are another list.
func (d *device) holdExperts(w *kernel.ExpertMatrices[float32], places []uint64) *heldExperts {
	defer d.lockTables()()
	h, ok := w.Held.(*heldExperts)
	if !ok || !slices.Equal(h.places, places) {
		h = &heldExperts{scope: d.core.newScope(), places: places}
		h.at = h.scope.allocRaw(8*int64(len(places)), workspaceUse)
		d.core.send(func(w *worker) error { return w.upload(h.at, bytesOf(h.places)) })
		w.Held = h
	}
	d.rec.keeps(h)
	return h
}
