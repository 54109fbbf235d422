// Package optim has the optimizers AdamW, Muon and SGD with momentum, learning rate schedules and
// gradient clipping. All are pure functions of one shard's parameters, so the same input gives the
// same bits. They use operations of a kernel set only, whose bits do not depend on threads. Muon
// works on whole matrices. A matrix is never split over stages, so the layout of a run does not
// matter to it.
//
// Config says which optimizer steps which parameter. Rules choose parameters by their names.
package optim

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// AdamW holds the constants of Loshchilov and Hutter's AdamW (arXiv 1711.05101): decoupled weight
// decay, bias-corrected moments.
type AdamW struct {
	Beta1, Beta2 float64 // decay of the first and second moment
	Epsilon      float64 // added to the square root of the second moment
	Decay        float64 // decoupled weight decay, times the learning rate
}

// Step updates the weights p and the moments m and v by the gradient g times scale. t is the number
// of the optimizer step, from 1, and lr its learning rate. All slices have the same length. decay
// turns weight decay on.
func (a AdamW) Step(set kernel.Set[float32], p, m, v, g []float32, scale, lr float64, t int, decay bool) {
	o := kernel.AdamW{
		Scale: scale, Beta1: a.Beta1, Beta2: a.Beta2, Epsilon: a.Epsilon, Keep: 1,
		Size: lr / (1 - math.Pow(a.Beta1, float64(t))), Root: 1 / (1 - math.Pow(a.Beta2, float64(t))),
	}
	if decay {
		o.Keep = 1 - lr*a.Decay
	}
	set.AdamW(p, m, v, g, o)
}

// SumSquares sums the squares of x in float64, in index order. It is the reference for the
// SumSquares of kernel sets.
func SumSquares[F tensor.Float](x []F) float64 {
	var sum float64
	for _, v := range x {
		sum += float64(float64(v) * float64(v))
	}
	return sum
}

// ClipScale returns the factor for gradients of the given global norm after which the norm
// is at most limit. A limit of 0 means no clipping.
func ClipScale(norm, limit float64) float64 {
	if limit > 0 && norm > limit {
		return limit / norm
	}
	return 1
}
