package kernel

import "github.com/lamina-mesh/lamina/pkg/tensor"

// Routed is a Routing that stays in the device's memory.
type Routed[F tensor.Float] struct {
	T, E, TopK int
	Weight     Buffer[F] // [T,TopK], the experts of a row ascending
	Lists      Buffer[F] // the set's own
}

// ExpertMatrices are the matrices that the experts of a layer have for one purpose, such as their gates. They have one
// shape.
type ExpertMatrices[F tensor.Float] struct {
	W    []*Matrix[F] // [E]
	Bias []Buffer[F]  // [E] of [N], or nil for none
	Held any          // the set's own; nil until the first product
}

// RoutedProduct is one of several products with the same grouped rows.
type RoutedProduct[F tensor.Float] struct {
	Y Buffer[F] // [T*TopK,N] in grouped order
	W *ExpertMatrices[F]
}

// ExpertRouter is implemented by sets that choose experts where the router's logits are, so that no pass has to wait
// for them on the host. Grouped order and all results have the bits of Route, Dispatch, MatMuls and Combine; there are
// no gradients.
type ExpertRouter[F tensor.Float] interface {
	// Routes reports whether the set can route t rows to the experts that have these matrices, which are packed.
	Routes(t, topK int, w ...*ExpertMatrices[F]) bool
	// RoutedLists returns the length of Routed.Lists.
	RoutedLists(t, e, topK int) int
	// RouteRows turns a router's logits[T,E] into probabilities in place and chooses experts, as Route does.
	RouteRows(weight, lists, logits Buffer[F], t, e, topK int, normalize bool) Routed[F]
	// DispatchRows copies rows of x[T,C] to dst[T*TopK,C] in grouped order.
	DispatchRows(dst, x Buffer[F], r *Routed[F], c int)
	// ExpertMatMuls multiplies each row of x[T*TopK,I], in grouped order, by the matrices of its expert.
	ExpertMatMuls(x Buffer[F], r *Routed[F], products ...RoutedProduct[F])
	// CombineRows overwrites y[T,C] with the sums of the outputs x[T*TopK,C] of each row's experts, in grouped order,
	// times their weights. Experts are added in ascending order.
	CombineRows(y, x Buffer[F], r *Routed[F], c int)
}
