package kernel

import "github.com/lamina-mesh/lamina/pkg/tensor"

// LowRank is what a low-rank adapter adds to the product of a matrix for some rows: y[T,N] += (s·(x[T,I]·Aᵀ))·Bᵀ.
// A step over many adapters has one for every run of rows and every matrix.
type LowRank[F tensor.Float] struct {
	Y, X  Buffer[F]  // [T,N], [T,I]
	U, V  Buffer[F]  // scratch [T,r], [T,N], not shared with other products of a call; see LowScratch
	A, B  *Matrix[F] // [r,I], [N,r]; dense
	Scale float64    // s
	Rows  int        // T
}

// LowRanks is implemented by sets that compute many low-rank products faster together than one after another. The
// products of a call have different y. The bits are those of MatMul(U, X, A), Scale(U), MatMul(V, U, B) and Add(Y, V).
type LowRanks[F tensor.Float] interface {
	// LowRanks adds each product to its Y.
	LowRanks(products []LowRank[F])

	// PackLowRank puts factors into the order in which LowRanks reads them, and lets go of their Dense. After it they
	// are for LowRanks only. A set may leave them as they are. The factors of a group are for the same x; those of the
	// parts of a fused matrix have the same A, in the same memory. LowRanks is fastest if the products of a group
	// follow one another in its list, in the same order.
	PackLowRank(groups [][]Factors[F])

	// LowScratch reports whether LowRanks uses U and V, which may be nil otherwise.
	LowScratch() bool
}

// Factors are the two factors of an adapter of a matrix: A[r,I] and B[N,r].
type Factors[F tensor.Float] struct{ A, B *Matrix[F] }

// AddLowRanks computes low-rank products with a set.
func AddLowRanks[F tensor.Float](set Set[F], products []LowRank[F]) {
	if together, ok := set.(LowRanks[F]); ok {
		together.LowRanks(products)
		return
	}
	AddEachLowRank(set, products)
}

// AddEachLowRank computes low-rank products one after another.
func AddEachLowRank[F tensor.Float](set Set[F], products []LowRank[F]) {
	for i := range products {
		p := &products[i]
		set.MatMul(p.U, p.X, p.A, nil, p.Rows)
		set.Scale(p.U, p.Scale)
		set.MatMul(p.V, p.U, p.B, nil, p.Rows)
		set.Add(p.Y, p.V)
	}
}

// NeedsLowScratch reports whether AddLowRanks uses U and V.
func NeedsLowScratch[F tensor.Float](set Set[F]) bool {
	together, ok := set.(LowRanks[F])
	return !ok || together.LowScratch()
}
