package kernel

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Mixtures of experts. A router scores E experts for each row and the row goes to the TopK best. The
// rows of one expert are grouped, so that the expert multiplies them together: grouped index j
// stands for row Rows[j] at expert e, where Bounds[e] <= j < Bounds[e+1].

// Routing says which rows of a batch go to which experts, and with what weights.
type Routing[F tensor.Float] struct {
	Bounds []int // [E+1]
	Rows   []int // [T*TopK], ascending within an expert

	Probs  Buffer[F] // [T,E]: the softmax over all experts
	Weight Buffer[F] // [T*TopK] by grouped index
	// DWeight is the gradient of Weight. CombineGrad writes it and RouteGrad reads it; between them it
	// is the set's own.
	DWeight []float64
}

// Route turns the router's logits[T,E] into probabilities in place and chooses the topK experts of
// each row; of equal ones the first. Weights are the probabilities, divided by their sum over the
// chosen ones if normalize is set.
func (HostOps[F]) Route(weight, logits Buffer[F], t, e, topK int, normalize bool) Routing[F] {
	sameLength("route", len(logits), t*e)
	sameLength("route", len(weight), t*topK)
	r := Routing[F]{Probs: logits, Weight: weight[:0], Bounds: make([]int, e+1)}
	chosen, weights := make([]bool, t*e), make([]F, t*e)
	for row := range t {
		p, w, in := logits[row*e:(row+1)*e], weights[row*e:], chosen[row*e:]
		softmax(p)
		var sum float64
		for range topK {
			best := -1
			for i, v := range p {
				if !in[i] && (best < 0 || v > p[best]) {
					best = i
				}
			}
			in[best] = true
			sum += float64(p[best])
			r.Bounds[best+1]++
		}
		if !normalize {
			sum = 1
		}
		for i, v := range p {
			w[i] = F(float64(v) / sum)
		}
	}
	for i := range e {
		r.Bounds[i+1] += r.Bounds[i]
		for row := range t {
			if chosen[row*e+i] {
				r.Rows, r.Weight = append(r.Rows, row), append(r.Weight, weights[row*e+i])
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
		sum += exponential(float64(v) - best)
	}
	for i, v := range x {
		x[i] = F(exponential(float64(v)-best) / sum)
	}
}

// exponential returns the exponential of a number that is not positive. math.Exp differs in the last bit between
// architectures, and between processors with and without fused multiplications; this gives the same bits everywhere,
// also on devices that choose experts themselves: those of math.Exp on amd64 with fused multiplications.
//
// The method is N. Shibata's (Efficient evaluation methods of elementary functions suitable for SIMD computation,
// 2010): with x = n·ln 2 + 16r and p(r) = exp(r)-1, four steps p(2r) = p(r)·(p(r)+2) lead to exp(16r)-1.
func exponential(x float64) float64 {
	const (
		ln2High = 0.69314718055966295651160180568695068359375 // its products with n are exact
		ln2Low  = 0.28235290563031577122588448175013436025525412068e-12
	)
	switch {
	case math.IsNaN(x):
		return x
	case x < -1000:
		return 0
	}
	n := math.RoundToEven(x * math.Log2E)
	r := math.FMA(-n, ln2High, x)
	r = float64(math.FMA(-n, ln2Low, r) * 0.0625)
	p := 2.4801587301587301587e-5
	for _, c := range [...]float64{1.9841269841269841270e-4, 1.3888888888888888889e-3, 8.3333333333333333333e-3,
		4.1666666666666666667e-2, 1.6666666666666666667e-1, 0.5, 1} {
		p = math.FMA(p, r, c)
	}
	p = float64(p * r)
	for range 3 {
		p = float64(p * (p + 2))
	}
	return math.Ldexp(math.FMA(p, p+2, 1), int(n))
}

// RouteGrad overwrites dlogits[T,E] with the gradient of Route's logits.
func (HostOps[F]) RouteGrad(dlogits Buffer[F], r *Routing[F], t, e int, normalize bool) {
	sameLength("route grad", len(dlogits), t*e)
	// The gradient of a row's weights by expert; zero for those that were not chosen.
	dweight, chosen := make([]float64, t*e), make([]bool, t*e)
	for i := range e {
		for j := r.Bounds[i]; j < r.Bounds[i+1]; j++ {
			dweight[r.Rows[j]*e+i], chosen[r.Rows[j]*e+i] = r.DWeight[j], true
		}
	}
	for row := range t {
		lo, hi := row*e, (row+1)*e
		p, dw, in := r.Probs[lo:hi], dweight[lo:hi], chosen[lo:hi]
		if normalize {
			// weight = p/Σp, so dp = (dweight - Σ dweight·weight)/Σp over the chosen.
			var sum, mean float64
			for i, v := range p {
				if in[i] {
					sum += float64(v)
				}
			}
			for i, v := range p {
				if in[i] {
					mean += dw[i] * float64(v) / sum
				}
			}
			for i := range dw {
				if in[i] {
					dw[i] = (dw[i] - mean) / sum
				}
			}
		}
		var mean float64
		for i, v := range p {
			mean += dw[i] * float64(v)
		}
		for i, v := range p {
			dlogits[lo+i] = F(float64(v) * (dw[i] - mean))
		}
	}
}

// Dispatch copies rows of x[T,C] to dst[T*TopK,C] in grouped order.
func (HostOps[F]) Dispatch(dst, x Buffer[F], r *Routing[F], c int) {
	sameLength("dispatch", len(dst), len(r.Rows)*c)
	for j, row := range r.Rows {
		copy(dst[j*c:(j+1)*c], x[row*c:(row+1)*c])
	}
}

// DispatchGrad adds d[T*TopK,C] to dx[T,C], grouped indices ascending.
func (HostOps[F]) DispatchGrad(dx, d Buffer[F], r *Routing[F], c int) {
	sameLength("dispatch grad", len(d), len(r.Rows)*c)
	for j, row := range r.Rows {
		to := dx[row*c : (row+1)*c]
		for i, v := range d[j*c : (j+1)*c] {
			to[i] += v
		}
	}
}

// Combine adds the output x[hi-lo,C] of grouped indices lo to hi, times their weights, to y[T,C].
func (HostOps[F]) Combine(y, x Buffer[F], r *Routing[F], lo, hi, c int) {
	sameLength("combine", len(x), (hi-lo)*c)
	for j := lo; j < hi; j++ {
		to, w := y[r.Rows[j]*c:(r.Rows[j]+1)*c], r.Weight[j]
		for i, v := range x[(j-lo)*c : (j-lo+1)*c] {
			to[i] += F(w * v)
		}
	}
}

// CombineGrad overwrites dx[hi-lo,C] with the gradient of Combine's x and writes that of the weights.
func (HostOps[F]) CombineGrad(dx, dy, x Buffer[F], r *Routing[F], lo, hi, c int) {
	sameLength("combine grad", len(dx), (hi-lo)*c)
	sameLength("combine grad", len(x), len(dx))
	if r.DWeight == nil {
		r.DWeight = make([]float64, len(r.Rows))
	}
	for j := lo; j < hi; j++ {
		var sum float64
		d, o, to := dy[r.Rows[j]*c:(r.Rows[j]+1)*c], x[(j-lo)*c:], dx[(j-lo)*c:]
		for i, v := range d {
			sum += float64(v) * float64(o[i])
			to[i] = F(v * r.Weight[j])
		}
		r.DWeight[j] = sum
	}
}
