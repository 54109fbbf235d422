package optim

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Muon holds the constants of Muon (Jordan et al., 2024): the momentum of a matrix, made nearly
// orthogonal, is its step.
type Muon struct {
	Momentum   float64
	Nesterov   bool // look ahead: step by the mean of gradient and momentum
	Iterations int  // of Newton-Schulz
	// MatchAdamW scales steps so that their root mean square is about that of AdamW's steps (Liu et
	// al., 2025), so both take one learning rate. Otherwise a step is scaled by
	// sqrt(max(1, rows/columns)), as in the original.
	MatchAdamW bool
}

// Step updates the matrix p[rows,cols] and its momentum m by the gradient g times scale. lr is the
// learning rate and decay the decoupled weight decay.
func (o Muon) Step(s *Scratch, p, m, g kernel.Buffer[float32], rows, cols int, scale, lr, decay float64) {
	n := rows * cols
	x := s.take(0, n)
	s.set.Copy(x, g)
	s.set.Scale(x, scale*(1-o.Momentum))
	s.set.Scale(m, o.Momentum)
	s.set.Add(m, x) // m = Momentum·m + (1-Momentum)·g
	if o.Nesterov { // x = Momentum·m + (1-Momentum)·g
		y := s.take(1, n)
		s.set.Copy(y, m)
		s.set.Scale(y, o.Momentum)
		s.set.Add(x, y)
	} else {
		s.set.Copy(x, m)
	}
	x = s.Orthogonalize(x, rows, cols, o.Iterations)
	size := math.Sqrt(max(1, float64(rows)/float64(cols)))
	if o.MatchAdamW {
		size = 0.2 * math.Sqrt(float64(max(rows, cols)))
	}
	if decay != 0 {
		s.set.Scale(p, 1-lr*decay)
	}
	s.set.Scale(x, -lr*size)
	s.set.Add(p, x)
}

// smallestNorm bounds what a step is divided by, so that a step of zeros stays one.
const smallestNorm = 1e-7

// These are the coefficients of the quintic iteration. They bring singular values near 1 in few
// steps, but not to 1: they end between about 0.7 and 1.2.
const quinticA, quinticB, quinticC = 3.4445, -4.7750, 2.0315

// Orthogonalize replaces the singular values of x[rows,cols] by values near 1, by an iteration of
// Newton-Schulz: X = a·X + (b·A + c·A²)·X with A = X·Xᵀ. It overwrites x, and returns the result in
// memory that the next call overwrites.
func (s *Scratch) Orthogonalize(x kernel.Buffer[float32], rows, cols, iterations int) kernel.Buffer[float32] {
	// Singular values are at most the norm, so they are at most 1 from here on.
	s.set.Scale(x, 1/max(math.Sqrt(s.set.SumSquares(x)), smallestNorm))
	y := s.take(1, rows*cols)
	n := min(rows, cols) // A is the smaller one of X·Xᵀ and Xᵀ·X
	a, b := s.take(2, n*n), s.take(3, n*n)
	square := kernel.Matrix[float32]{Rows: n, Cols: n}
	for range iterations {
		if rows <= cols {
			s.set.MatMul(a, x, &kernel.Matrix[float32]{Rows: rows, Cols: cols, Dense: x}, nil, rows)
		} else { // the gradient of a matrix is Xᵀ·X, if X is both the input and the output's gradient
			s.set.MatMulGrad(nil, x, rows, kernel.ProductGrad[float32]{DY: x, W: &square, DW: a, Fresh: true})
		}
		square.Dense = a
		s.set.MatMul(b, a, &square, nil, n) // A is symmetric
		s.set.Scale(b, quinticC)
		s.set.Scale(a, quinticB)
		s.set.Add(a, b)
		if rows <= cols { // the gradient of an input is A·X, if A is the output's gradient and X the matrix
			s.set.MatMulGrad(y, nil, n, kernel.ProductGrad[float32]{DY: a,
				W: &kernel.Matrix[float32]{Rows: rows, Cols: cols, Dense: x}})
		} else {
			s.set.MatMul(y, x, &square, nil, rows)
		}
		s.set.Scale(x, quinticA)
		s.set.Add(x, y)
	}
	return x
}

// SGD is stochastic gradient descent with momentum.
type SGD struct {
	Momentum float64 // 0 for none, which needs no moment
	Nesterov bool
}

// Step updates the weights p and the momentum m, which may be nil without momentum, by the gradient g
// times scale. lr is the learning rate and decay the decoupled weight decay.
func (o SGD) Step(s *Scratch, p, m, g kernel.Buffer[float32], scale, lr, decay float64) {
	x := s.take(0, len(p))
	s.set.Copy(x, g)
	s.set.Scale(x, scale)
	if o.Momentum != 0 {
		s.set.Scale(m, o.Momentum)
		s.set.Add(m, x) // m = Momentum·m + g
		if o.Nesterov { // x = g + Momentum·m
			y := s.take(1, len(p))
			s.set.Copy(y, m)
			s.set.Scale(y, o.Momentum)
			s.set.Add(x, y)
		} else {
			s.set.Copy(x, m)
		}
	}
	if decay != 0 {
		s.set.Scale(p, 1-lr*decay)
	}
	s.set.Scale(x, -lr)
	s.set.Add(p, x)
}

// Scratch is the memory that optimizers use during a step. It must not be used by two goroutines at
// once.
type Scratch struct {
	set     kernel.Set[float32]
	buffers [scratchBuffers]kernel.Buffer[float32]
	memory  [scratchBuffers]kernel.Memory[float32] // that they are in
}

// scratchBuffers is the number of buffers that a step takes at most.
const scratchBuffers = 4

// NewScratch returns memory of a kernel set, which the optimizers compute with.
func NewScratch(set kernel.Set[float32]) *Scratch { return &Scratch{set: set} }

// take returns one of the buffers with n values, which are not zero.
func (s *Scratch) take(i, n int) kernel.Buffer[float32] {
	if len(s.buffers[i]) < n {
		s.memory[i] = s.set.Scope()
		s.buffers[i] = s.memory[i].Alloc(n)
	}
	return s.buffers[i][:n]
}
