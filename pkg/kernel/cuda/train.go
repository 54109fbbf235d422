package cuda

import (
	"fmt"
	"math"
	"runtime"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// The operations of training but for attention.

// buf is short for the parameters below.
type buf = kernel.Buffer[float32]

// MatMulGrad is the gradient of MatMuls. Each of its sums is one chain of gemm, so it has one order.
func (s *Set) MatMulGrad(dx, x buf, t int, products ...kernel.ProductGrad[float32]) {
	const op = "matmul grad"
	cols := 0
	for _, p := range products {
		must(op, "dy", len(p.DY), t*p.W.Rows)
		if cols = p.W.Cols; dx != nil {
			must(op, "dx", len(dx), t*cols)
		}
		if p.DW != nil {
			must(op, "x", len(x), t*cols)
			must(op, "dw", len(p.DW), p.W.Rows*cols)
		}
		if p.DBias != nil {
			must(op, "dbias", len(p.DBias), p.W.Rows)
			s.each(op, "column_sums", p.W.Rows, address(s.device, op, p.DBias), address(s.device, op, p.DY), uint32(t),
				uint32(p.W.Rows))
		}
	}
	for i, p := range products {
		rows, dy := p.W.Rows, address(s.device, op, p.DY)
		if dx != nil {
			w, keep := s.decoded(p.W)
			// dx[T,I] = dy[T,N]·W[N,I]
			s.gemm(op, address(s.device, op, dx), dy, w, [3]int{t, cols, rows}, [4]int{rows, 1, 1, cols}, cols, i > 0)
			runtime.KeepAlive(keep)
		}
		if p.DW != nil {
			// dW[N,I] += dyᵀ[N,T]·x[T,I]
			s.gemm(op, address(s.device, op, p.DW), dy, address(s.device, op, x), [3]int{rows, cols, t},
				[4]int{1, rows, 1, cols}, cols, !p.Fresh)
		}
	}
}

// gemm computes c[m,n] from sizes m, n and k and the strides of the rows and columns of a and of b.
func (s *Set) gemm(op string, c, a, b driver.Address, size [3]int, strides [4]int, ldc int, add bool) {
	m, n, k := size[0], size[1], size[2]
	if m == 0 || n == 0 {
		return
	}
	suffix, rows, more := "f32", 64, uint32(0)
	if s.bf16 {
		suffix = "bf16"
	}
	if m <= 16 {
		rows = 16
	}
	if add {
		more = 1
	}
	s.launch(s.need(op, fmt.Sprintf("gemm_%s_%d", suffix, rows)),
		driver.Dim{X: blocks(n, 64), Y: blocks(m, rows), Z: 1}, 0, c, a, b, driver.Address(0), driver.Address(0),
		uint32(m), uint32(n), uint32(k), uint32(strides[0]), uint32(strides[1]), uint32(strides[2]), uint32(strides[3]),
		uint32(ldc), more)
}

// EmbedGrad adds rows of dy to rows of dw.
func (s *Set) EmbedGrad(dw, dy buf, ids []int32, c int) {
	const op = "embed grad"
	must(op, "dy", len(dy), len(ids)*c)
	for i, id := range ids {
		if id < 0 || (int(id)+1)*c > len(dw) {
			panic(fmt.Sprintf("%s: id %d at %d: there are %d rows", op, id, i, len(dw)/c))
		}
	}
	s.addRows(op, dw, dy, append([]int32(nil), ids...), c)
}

// addRows adds row i of from to row rows[i] of to, i ascending.
func (s *Set) addRows(op string, to, from buf, rows []int32, c int) {
	k, dst, src := s.need(op, "embed_grad"), address(s.device, op, to), address(s.device, op, from)
	if len(rows) == 0 {
		return
	}
	s.send(func(w *worker) error {
		list, err := w.stage(bytesOf(rows))
		if err != nil {
			return err
		}
		return w.launch(k, driver.Dim{X: blocks(c, k.Threads), Y: 1, Z: 1}, 0, dst, src, list, uint32(c),
			uint32(len(rows)))
	})
}

// RMSNormGrad adds to dx and dg.
func (s *Set) RMSNormGrad(dx, dg, dy, x, g buf, eps float64, t, c int) {
	s.normGrad("rms norm grad", "rmsnorm_grad", dx, dg, nil, dy, x, g, eps, t, c)
}

// LayerNormGrad adds to dx, dg and db.
func (s *Set) LayerNormGrad(dx, dg, db, dy, x, g buf, eps float64, t, c int) {
	s.normGrad("layer norm grad", "layernorm_grad", dx, dg, db, dy, x, g, eps, t, c)
}

func (s *Set) normGrad(op, name string, dx, dg, db, dy, x, g buf, eps float64, t, c int) {
	must(op, "x", len(x), t*c)
	must(op, "dy", len(dy), t*c)
	must(op, "g", len(g), c)
	if dx != nil {
		must(op, "dx", len(dx), t*c)
	}
	rows, columns := s.need(op, name), s.need(op, "norm_grad_columns")
	toX, toG, toB := address(s.device, op, dx), address(s.device, op, dg), address(s.device, op, db)
	fromY, fromX, gain := address(s.device, op, dy), address(s.device, op, x), address(s.device, op, g)
	if t == 0 {
		return
	}
	s.workspace(int64(8 * t))
	s.send(func(w *worker) error {
		err := w.launch(rows, driver.Dim{X: uint32(t), Y: 1, Z: 1}, 0, toX, w.work, fromY, fromX, gain, uint32(c),
			float32(eps))
		if err != nil || dg == nil {
			return err
		}
		return w.launch(columns, driver.Dim{X: blocks(c, columns.Threads), Y: 1, Z: 1}, 0, toG, toB, fromY, fromX,
			w.work, uint32(t), uint32(c))
	})
}

// GLUGrad overwrites dgate and dup.
func (s *Set) GLUGrad(dgate, dup, y, dy, gate, up buf, act kernel.Act) {
	const op = "glu grad"
	for _, b := range []buf{dup, dy, gate, up} {
		must(op, "a buffer", len(b), len(dgate))
	}
	s.each(op, "glu_grad"+activation(op, act), len(dgate), address(s.device, op, dgate), address(s.device, op, dup),
		address(s.device, op, y), address(s.device, op, dy), address(s.device, op, gate), address(s.device, op, up),
		uint32(len(dgate)))
}

// ActivateGrad overwrites dx.
func (s *Set) ActivateGrad(dx, y, dy, x buf, act kernel.Act) {
	const op = "activate grad"
	must(op, "dy", len(dy), len(dx))
	must(op, "x", len(x), len(dx))
	s.each(op, "activate_grad"+activation(op, act), len(dx), address(s.device, op, dx), address(s.device, op, y),
		address(s.device, op, dy), address(s.device, op, x), uint32(len(dx)))
}

// dropout returns the parameters of dropout as kernels take them.
func dropout(d kernel.Dropout) (low, high, threshold uint32, keep float32, from uint32) {
	return uint32(d.Key), uint32(d.Key >> 32), uint32(d.Rate * (1 << 32)), float32(1 / (1 - d.Rate)), uint32(d.From)
}

// Dropout drops values of rows in place.
func (s *Set) Dropout(x buf, d kernel.Dropout, t, c int) {
	const op = "dropout"
	must(op, "x", len(x), t*c)
	if d.Rate == 0 {
		return
	}
	low, high, threshold, keep, from := dropout(d)
	s.each(op, "dropout", len(x), address(s.device, op, x), low, high, threshold, keep, from, uint32(c), uint32(len(x)))
}

// SinkGrad adds to dsinks and scales datt in place.
func (s *Set) SinkGrad(datt, dsinks, att, lse, sinks buf, h, d int) {
	const op = "sink grad"
	must(op, "datt", len(datt), len(lse)*d)
	must(op, "att", len(att), len(datt))
	must(op, "dsinks", len(dsinks), h)
	must(op, "sinks", len(sinks), h)
	rows, sums, n := s.need(op, "sink_grad_rows"), s.need(op, "column_sums"), len(lse)
	toAtt, toSinks := address(s.device, op, datt), address(s.device, op, dsinks)
	fromAtt, fromLSE, fromSinks := address(s.device, op, att), address(s.device, op, lse), address(s.device, op, sinks)
	if n == 0 {
		return
	}
	s.workspace(int64(4 * n))
	s.send(func(w *worker) error {
		err := w.launch(rows, driver.Dim{X: blocks(n, rows.Threads), Y: 1, Z: 1}, 0, toAtt, w.work, fromAtt, fromLSE,
			fromSinks, uint32(h), uint32(d), uint32(n))
		if err != nil {
			return err
		}
		return w.launch(sums, driver.Dim{X: blocks(h, sums.Threads), Y: 1, Z: 1}, 0, toSinks, w.work, uint32(n/h),
			uint32(h))
	})
}

// RouteGrad overwrites dlogits. The router's few probabilities go through the host, as in Route.
func (s *Set) RouteGrad(dlogits buf, r *kernel.Routing[float32], t, e int, normalize bool) {
	must("route grad", "dlogits", len(dlogits), t*e)
	host, out := *r, make([]float32, len(dlogits))
	host.Probs = s.Host(r.Probs)
	kernel.HostOps[float32]{}.RouteGrad(out, &host, t, e, normalize)
	s.Upload(dlogits, out)
}

// DispatchGrad adds rows of d to rows of dx.
func (s *Set) DispatchGrad(dx, d buf, r *kernel.Routing[float32], c int) {
	const op = "dispatch grad"
	must(op, "d", len(d), len(r.Rows)*c)
	s.addRows(op, dx, d, s.listRows(op, "dx", r.Rows, len(dx)/c), c)
}

// listRows checks a list of rows of a buffer with so many and returns it as kernels read it.
func (s *Set) listRows(op, name string, rows []int, most int) []int32 {
	list := make([]int32, len(rows))
	for i, row := range rows {
		if row < 0 || row >= most {
			panic(fmt.Sprintf("%s: row %d is not one of the %d of %s", op, row, most, name))
		}
		list[i] = int32(row)
	}
	return list
}

// CombineGrad overwrites dx and keeps the gradient of the weights in r.
func (s *Set) CombineGrad(dx, dy, x buf, r *kernel.Routing[float32], lo, hi, c int) {
	const op = "combine grad"
	n := hi - lo
	must(op, "dx", len(dx), n*c)
	must(op, "x", len(x), n*c)
	if r.DWeight == nil {
		r.DWeight = make([]float64, len(r.Rows))
	}
	list := s.listRows(op, "dy", r.Rows[lo:hi], len(dy)/c)
	k, to := s.need(op, "combine_grad"), address(s.device, op, dx)
	fromY, fromX, weight := address(s.device, op, dy), address(s.device, op, x), address(s.device, op, r.Weight[lo:hi])
	if n == 0 {
		return
	}
	s.workspace(int64(4 * n))
	dots := make([]float32, n)
	s.do(func(w *worker) error {
		rows, err := w.stage(bytesOf(list))
		if err != nil {
			return err
		}
		err = w.launch(k, driver.Dim{X: uint32(n), Y: 1, Z: 1}, 0, to, w.work, fromY, fromX, rows, weight, uint32(c))
		if err != nil {
			return err
		}
		return w.download(bytesOf(dots), w.work)
	})
	for i, v := range dots {
		r.DWeight[lo+i] = float64(v)
	}
}

// CrossEntropy writes losses, and the gradient of the logits unless dlogits is nil.
func (s *Set) CrossEntropy(loss []float64, dlogits, logits buf, targets []int32, scale float64, t, v int) {
	const op = "cross entropy"
	must(op, "logits", len(logits), t*v)
	must(op, "loss", len(loss), t)
	if dlogits != nil {
		must(op, "dlogits", len(dlogits), t*v)
	}
	chosen := s.targets(op, logits, targets, t, v)
	parts, join, grad := s.need(op, "lse_part"), s.need(op, "lse_join"), s.need(op, "cross_entropy_grad")
	const most = 4096 // rows of a launch, which the list of their targets goes with
	chunks := (v + 4095) / 4096
	s.workspace(int64(8 * most * (chunks + 1)))
	for lo := 0; lo < t; lo += most {
		n := min(most, t-lo)
		from, list := address(s.device, op, logits[lo*v:(lo+n)*v]), append([]int32(nil), targets[lo:lo+n]...)
		stats, to := make([]float32, 2*n), driver.Address(0)
		if dlogits != nil {
			to = address(s.device, op, dlogits[lo*v:(lo+n)*v])
		}
		s.do(func(w *worker) error {
			joined := w.work + driver.Address(8*n*chunks)
			err := w.launch(parts, driver.Dim{X: uint32(chunks), Y: uint32(n), Z: 1}, 0, w.work, from, uint32(v))
			if err != nil {
				return err
			}
			err = w.launch(join, driver.Dim{X: blocks(n, join.Threads), Y: 1, Z: 1}, 0, joined, w.work, uint32(chunks),
				uint32(n))
			if err != nil {
				return err
			}
			if to != 0 {
				at, err := w.stage(bytesOf(list))
				if err != nil {
					return err
				}
				err = w.launch(grad, driver.Dim{X: blocks(n*v, grad.Threads), Y: 1, Z: 1}, 0, to, from, joined, at,
					float32(scale), uint32(v), uint32(n*v))
				if err != nil {
					return err
				}
			}
			return w.download(bytesOf(stats), joined)
		})
		for i, target := range list {
			loss[lo+i] = 0
			if target >= 0 {
				loss[lo+i] = float64(stats[2*i]) + math.Log(float64(stats[2*i+1])) - float64(chosen[lo+i])
			}
		}
	}
}

// targets returns the logits of the targets of rows; that of a negative one is any.
func (s *Set) targets(op string, logits buf, targets []int32, t, v int) []float32 {
	must(op, "targets", len(targets), t)
	if t*v > math.MaxInt32 {
		panic(fmt.Sprintf("%s: %d rows of %d logits are more than %d elements", op, t, v, math.MaxInt32))
	}
	at := make([]int32, t)
	for i, target := range targets {
		if int(target) >= v {
			panic(fmt.Sprintf("%s: target %d of row %d: there are %d logits", op, target, i, v))
		}
		at[i] = int32(i*v) + max(target, 0)
	}
	memory := s.newScope()
	y := memory.Alloc(t)
	s.gather(op, y, address(s.device, op, logits), "embed_f32", at, 1, 4)
	out := s.Host(y)
	runtime.KeepAlive(memory)
	return out
}

// ZLossGrad adds the gradient of the z-loss; see kernel.HostOps.
func (s *Set) ZLossGrad(dlogits, logits buf, loss []float64, targets []int32, z, scale float64, t, v int) {
	const op = "z-loss grad"
	must(op, "dlogits", len(dlogits), t*v)
	must(op, "logits", len(logits), t*v)
	must(op, "loss", len(loss), t)
	chosen := s.targets(op, logits, targets, t, v)
	k := s.need(op, "zloss_grad")
	const most = 4096
	for lo := 0; lo < t; lo += most {
		n := min(most, t-lo)
		factors, list := make([]float32, 2*n), append([]int32(nil), targets[lo:lo+n]...)
		for i := range n {
			more := 2 * z * (loss[lo+i] + float64(chosen[lo+i]))
			factors[2*i], factors[2*i+1] = float32(1+more), float32(scale*more)
		}
		to := address(s.device, op, dlogits[lo*v:(lo+n)*v])
		s.send(func(w *worker) error {
			by, err := w.stage(bytesOf(factors))
			if err != nil {
				return err
			}
			at, err := w.stage(bytesOf(list))
			if err != nil {
				return err
			}
			return w.launch(k, driver.Dim{X: blocks(n*v, k.Threads), Y: 1, Z: 1}, 0, to, by, at, uint32(v), uint32(n*v))
		})
	}
}

// squaresBlock is the number of elements that a block of sum_squares adds.
const squaresBlock = 8192

// SumSquares adds the squares of x in float64.
func (s *Set) SumSquares(x buf) float64 {
	const op = "sum of squares"
	k := s.need(op, "sum_squares")
	if len(x) == 0 {
		return 0
	}
	from, sums := address(s.device, op, x), make([]uint64, blocks(len(x), squaresBlock))
	s.workspace(int64(8 * len(sums)))
	s.do(func(w *worker) error {
		err := w.launch(k, driver.Dim{X: uint32(len(sums)), Y: 1, Z: 1}, 0, w.work, from, uint32(len(x)))
		if err != nil {
			return err
		}
		return w.download(bytesOf(sums), w.work)
	})
	var sum float64
	for _, v := range sums {
		sum += math.Float64frombits(v)
	}
	return sum
}

// AdamW steps weights.
func (s *Set) AdamW(p, m, v, g buf, o kernel.AdamW) {
	const op = "adamw"
	for _, b := range []buf{m, v, g} {
		must(op, "a buffer", len(b), len(p))
	}
	s.each(op, "adamw", len(p), address(s.device, op, p), address(s.device, op, m), address(s.device, op, v),
		address(s.device, op, g), float32(o.Scale), float32(o.Beta1), float32(1-o.Beta1), float32(o.Beta2),
		float32(1-o.Beta2), float32(o.Size), float32(o.Root), float32(o.Epsilon), float32(o.Keep), uint32(len(p)))
}
