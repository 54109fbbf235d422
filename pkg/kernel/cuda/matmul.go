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

// operand is a matrix as a product reads it.
type operand struct {
	*packed
	rows, cols   int
	dense        driver.Address // of float32 weights; else 0
	y, bias      driver.Address
	kernel, acts *Kernel // of quantised weights
}

// MatMul computes y = x·Wᵀ + bias.
func (s *Set) MatMul(y, x kernel.Buffer[float32], w *kernel.Matrix[float32], bias kernel.Buffer[float32], t int) {
	s.MatMuls(x, t, kernel.Product[float32]{Y: y, W: w, Bias: bias})
}

// MatMuls computes several products of one x, which is quantised once. They are one entry of the queue, because they
// share the workspace.
func (s *Set) MatMuls(x kernel.Buffer[float32], t int, products ...kernel.Product[float32]) {
	const op = "matmul"
	shape := tileFor(t)
	pad := (t + shape.rows - 1) / shape.rows * shape.rows
	var work int64
	all := make([]operand, len(products))
	for i, p := range products {
		must(op, "x", len(x), t*p.W.Cols)
		must(op, "y", len(p.Y), t*p.W.Rows)
		if p.Bias != nil {
			must(op, "bias", len(p.Bias), p.W.Rows)
		}
		o := &all[i]
		*o = s.operand(p.W, shape)
		o.y, o.bias = address(s.device, op, p.Y), address(s.device, op, p.Bias)
		if o.kernel != nil {
			work = max(work, int64(p.W.Cols/32*pad*(actBytes+8)))
		}
	}
	from := address(s.device, op, x)
	if t == 0 {
		return
	}
	s.workspace(work)
	suffix := "f32"
	if s.bf16 {
		suffix = "bf16"
	}
	rows := 64
	if t <= 16 {
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
				err = w.launch(gemm, driver.Dim{X: blocks(o.rows, 64), Y: blocks(t, rows), Z: 1}, 0, o.y, from, o.dense,
					o.bias, uint32(t), uint32(o.rows), uint32(o.cols), uint32(o.cols), uint32(1), uint32(o.cols),
					uint32(1), uint32(o.rows), uint32(0))
			default:
				xq := w.work
				xs := xq + driver.Address(o.cols/32*pad*actBytes)
				if acts != o.acts {
					acts = o.acts
					grid := driver.Dim{X: blocks(o.cols, acts.Threads), Y: uint32(pad), Z: 1}
					err = w.launch(acts, grid, 0, xq, xs, from, uint32(o.cols), uint32(t), uint32(pad))
				}
				if err == nil {
					grid := driver.Dim{X: blocks(o.rows, shape.columns), Y: uint32(pad / shape.rows), Z: 1}
					err = w.launch(o.kernel, grid, 0, o.y, o.at, xq, xs, o.bias,
						uint32(o.rows), uint32(o.cols), uint32(o.stride), uint32(t), uint32(pad))
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
		o.dense = address(s.device, "matmul", w.Dense)
		return o
	}
	p, ok := w.Packed.(*packed)
	if !ok { // of a call alone, and exact, as on the processor
		p = s.pack(w, true)
	}
	o.packed = p
	if p.dense {
		o.dense = p.at
		return o
	}
	o.kernel = s.need("matmul", fmt.Sprintf("matmul_%s_%dx%d", p.name, shape.columns, shape.rows))
	o.acts = s.need("matmul", "act_q8")
	if p.name == "f16" || p.name == "bf16" {
		o.acts = s.need("matmul", "act_bf16")
	}
	return o
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
