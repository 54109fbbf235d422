package shard

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

// arithmetic adds and measures gradients in the host's memory, where they come from other replicas and go to them.
type arithmetic interface {
	// Add computes y += x.
	Add(y, x kernel.Buffer[float32])
	// SumSquares adds the squares of x in float64.
	SumSquares(x kernel.Buffer[float32]) float64
}

// hostMath is the arithmetic of a shard whose kernel set computes in a device's memory only. A sum of two values has
// the same bits in every set.
type hostMath struct{}

func (hostMath) Add(y, x kernel.Buffer[float32]) {
	for i, v := range x {
		y[i] += v
	}
}

func (hostMath) SumSquares(x kernel.Buffer[float32]) float64 { return optim.SumSquares([]float32(x)) }
