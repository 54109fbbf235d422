// Package optim holds what turns gradients into weights: AdamW, the learning-rate
// schedule and clipping. All are pure functions over one shard's parameters, in
// index order, so equal input gives equal bits.
package optim

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// AdamW holds the constants of Loshchilov and Hutter's AdamW (arXiv 1711.05101):
// decoupled weight decay, bias-corrected moments.
type AdamW struct {
	Beta1, Beta2 float64 // decay of the first and second moment
	Epsilon      float64 // added to the root of the second moment
	Decay        float64 // decoupled weight decay, times the learning rate
}

// Step updates weights p and moments m, v by gradient g scaled by scale, at the
// t-th optimizer step (from 1) with learning rate lr. All slices have one length.
// decay false leaves the weights' size alone.
func (a AdamW) Step(p, m, v, g []float32, scale, lr float64, t int, decay bool) {
	if len(m) != len(p) || len(v) != len(p) || len(g) != len(p) {
		panic(fmt.Sprintf("adamw: %d weights, %d and %d moments, %d gradients", len(p), len(m), len(v), len(g)))
	}
	b1, b2 := float32(a.Beta1), float32(a.Beta2)
	c1, c2 := float32(1-a.Beta1), float32(1-a.Beta2)
	s, eps := float32(scale), float32(a.Epsilon)
	size := float32(lr / (1 - math.Pow(a.Beta1, float64(t))))
	root := float32(1 / (1 - math.Pow(a.Beta2, float64(t))))
	keep := float32(1)
	if decay {
		keep = float32(1 - lr*a.Decay)
	}
	for i, x := range g {
		x = float32(x * s)
		m[i] = float32(b1*m[i]) + float32(c1*x)
		v[i] = float32(b2*v[i]) + float32(float32(c2*x)*x)
		step := float32(size*m[i]) / (float32(math.Sqrt(float64(float32(root*v[i])))) + eps)
		p[i] = float32(p[i]*keep) - step
	}
}

// Cosine is a learning-rate schedule: linear warm-up from 0 to Max over Warmup
// steps, then half a cosine down to Min at Total.
type Cosine struct {
	Max, Min float64
	Warmup   int
	Total    int
}

// At returns the rate of the step-th optimizer step, from 1.
func (c Cosine) At(step int) float64 {
	if step <= c.Warmup {
		return c.Max * float64(step) / float64(c.Warmup+1)
	}
	if step >= c.Total {
		return c.Min
	}
	done := float64(step-c.Warmup) / float64(max(1, c.Total-c.Warmup))
	return c.Min + (c.Max-c.Min)*(1+math.Cos(math.Pi*done))/2
}

// SumSquares adds the squares of x in float64, in index order.
func SumSquares[F tensor.Float](x []F) float64 {
	var sum float64
	for _, v := range x {
		sum += float64(float64(v) * float64(v))
	}
	return sum
}

// ClipScale is what gradients of the given global norm are multiplied by so that
// the norm is at most limit; a limit of 0 clips nothing.
func ClipScale(norm, limit float64) float64 {
	if limit > 0 && norm > limit {
		return limit / norm
	}
	return 1
}
