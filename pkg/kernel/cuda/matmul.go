package cuda

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// tile is the shape of a block of a product of quantised weights: columns and rows of the result. All give the same
// bits.
type tile struct{ columns, rows int }

// tiles are those that the kernels have, by the rows up to which they are taken.
var tiles = [...]tile{{16, 8}, {16, 32}, {64, 64}}

// tileFor returns the tile for t rows.
func tileFor(t int) tile {
	for _, shape := range tiles {
		if t <= shape.rows {
			return shape
		}
	}
	return tiles[len(tiles)-1]
}

// operand is a matrix, or one of each expert, as a product reads it.
type operand struct {
	held         any // what has to live until the product has been put into the queue
	rows, cols   int
	w, y, bias   driver.Address // of experts, w and bias are lists of addresses
	stride       int            // bytes of a row of quantised weights
	kernel, acts *Kernel        // of quantised weights; nil for those of float32
}

// batch is the rows that operands are multiplied by.
type batch struct {
	x      driver.Address
	rows   int
	usual  int            // rows of a matrix, for which tiles are chosen
	groups driver.Address // of experts; zero if all rows are for each operand
	count  int            // of groups
	most   int            // rows of a group, at most
}

// MatMul computes y = x·Wᵀ + bias.
func (s *Set) MatMul(y, x kernel.Buffer[float32], w *kernel.Matrix[float32], bias kernel.Buffer[float32], t int) {
	s.MatMuls(x, t, kernel.Product[float32]{Y: y, W: w, Bias: bias})
}

// MatMuls computes several products of one x, which is quantised once.
func (s *Set) MatMuls(x kernel.Buffer[float32], t int, products ...kernel.Product[float32]) {
	const op = "matmul"
	all := make([]operand, len(products))
	for i, p := range products {
		must(op, "x", len(x), t*p.W.Cols)
		must(op, "y", len(p.Y), t*p.W.Rows)
		if p.Bias != nil {
			must(op, "bias", len(p.Bias), p.W.Rows)
		}
		all[i] = s.operand(p.W, tileFor(t))
		all[i].y, all[i].bias = address(s.device, op, p.Y), address(s.device, op, p.Bias)
	}
	s.multiply(op, all, batch{x: address(s.device, op, x), rows: t, usual: t, count: 1, most: t})
}

// multiply computes products of one x. They are one entry of the queue, because they share the workspace.
func (s *Set) multiply(op string, all []operand, b batch) {
	if b.rows == 0 {
		return
	}
	shape := tileFor(b.usual)
	pad, most := (b.rows+shape.rows-1)/shape.rows*shape.rows, b.most
	if b.groups != 0 { // a group begins at any row, and its first tile at an even one
		pad, most = (b.rows+shape.rows+6)&^7, most+1
	}
	var work int64
	for i := range all {
		if all[i].kernel != nil {
			work = max(work, int64(all[i].cols/32*pad*(actBytes+8)))
		}
	}
	s.workspace(work)
	suffix, rows := "f32", 64
	if s.bf16 {
		suffix = "bf16"
	}
	if b.usual <= 16 {
		rows = 16
	}
	gemm := s.need(op, fmt.Sprintf("gemm_%s_%d", suffix, rows))
	s.send(func(w *worker) error {
		var acts *Kernel // what the workspace has
		for i := range all {
			o := &all[i]
			var err error
			switch {
			case o.rows == 0:
			case o.kernel == nil:
				grid := driver.Dim{X: blocks(o.rows, 64), Y: blocks(b.most, rows), Z: uint32(b.count)}
				err = w.launch(gemm, grid, 0, o.y, b.x, o.w, o.bias, b.groups, uint32(b.rows), uint32(o.rows),
					uint32(o.cols), uint32(o.cols), uint32(1), uint32(o.cols), uint32(1), uint32(o.rows), uint32(0))
			default:
				xq := w.work
				xs := xq + driver.Address(o.cols/32*pad*actBytes)
				if acts != o.acts {
					acts = o.acts
					grid := driver.Dim{X: blocks(o.cols, acts.Threads), Y: uint32(pad), Z: 1}
					err = w.launch(acts, grid, 0, xq, xs, b.x, uint32(o.cols), uint32(b.rows), uint32(pad))
				}
				if err == nil {
					grid := driver.Dim{X: blocks(o.rows, shape.columns), Y: blocks(most, shape.rows),
						Z: uint32(b.count)}
					err = w.launch(o.kernel, grid, 0, o.y, o.w, xq, xs, o.bias, b.groups,
						uint32(o.rows), uint32(o.cols), uint32(o.stride), uint32(b.rows), uint32(pad))
				}
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// actBytes is the most that a block of 32 quantised activations takes: that of bfloat16.
const actBytes = 64

// operand finds the kernel for a matrix, which it packs if nobody has.
func (s *Set) operand(w *kernel.Matrix[float32], shape tile) operand {
	o := operand{rows: w.Rows, cols: w.Cols}
	if w.Dense != nil {
		must("matmul", "weights", len(w.Dense), w.Rows*w.Cols)
		o.w = address(s.device, "matmul", w.Dense)
		return o
	}
	p, ok := w.Packed.(*packed)
	if !ok { // of a call alone, and exact, as on the processor
		p = s.pack(w, true)
	}
	o.held, o.w, o.stride = p, p.at, p.stride
	if !p.dense {
		o.kernel, o.acts = s.product(p, shape)
	}
	return o
}

// product returns the kernels of products of a matrix that is not decoded, and of their activations.
func (s *Set) product(p *packed, shape tile) (product, acts *Kernel) {
	acts = s.need("matmul", "act_q8")
	if p.name == "f16" || p.name == "bf16" {
		acts = s.need("matmul", "act_bf16")
	}
	return s.need("matmul", fmt.Sprintf("matmul_%s_%dx%d", p.name, shape.columns, shape.rows)), acts
}

// Combine adds the output of an expert, times the weights of its rows.
func (s *Set) Combine(y, x kernel.Buffer[float32], r *kernel.Routing[float32], lo, hi, c int) {
	const op = "combine"
	must(op, "x", len(x), (hi-lo)*c)
	k, to, from := s.need(op, "combine"), address(s.device, op, y), address(s.device, op, x)
	weight := address(s.device, op, r.Weight[lo:hi])
	rows := s.listRows(op, "y", r.Rows[lo:hi], len(y)/c)
	if n := len(x); n > 0 {
		s.send(func(w *worker) error {
			list, err := w.stage(bytesOf(rows))
			if err != nil {
				return err
			}
			return w.launch(k, driver.Dim{X: blocks(n, k.Threads), Y: 1, Z: 1}, 0, to, from, list, weight, uint32(c),
				uint32(n))
		})
	}
}
