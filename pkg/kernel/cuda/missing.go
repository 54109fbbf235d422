package cuda

import "github.com/lamina-mesh/lamina/pkg/kernel"

// missing panics for an operation that has no kernel yet. It is never computed on the host in its place.
func (s *Set) missing(operation string) {
	panic(&kernel.MissingError{Device: s.name, Operation: operation})
}

// buf is short for the parameters below.
type buf = kernel.Buffer[float32]

// Operations of training. A shard refuses to train on this set, so nobody calls them.

func (s *Set) MatMulGrad(buf, buf, int, ...kernel.ProductGrad[float32]) { s.missing("matmul grad") }
func (s *Set) EmbedGrad(buf, buf, []int32, int)                         { s.missing("embed grad") }
func (s *Set) RMSNormGrad(_, _, _, _, _ buf, _ float64, _, _ int)       { s.missing("rms norm grad") }
func (s *Set) LayerNormGrad(_, _, _, _, _, _ buf, _ float64, _, _ int)  { s.missing("layer norm grad") }
func (s *Set) AttendCausal(_, _, _, _, _ buf, _, _ int, _ kernel.Heads) { s.missing("attend causal") }
func (s *Set) AttendDocuments(_, _, _, _, _ buf, _ []int, _ kernel.Heads) {
	s.missing("attend documents")
}
func (s *Set) GLUGrad(_, _, _, _, _, _ buf, _ kernel.Act)               { s.missing("glu grad") }
func (s *Set) ActivateGrad(_, _, _, _ buf, _ kernel.Act)                { s.missing("activate grad") }
func (s *Set) Dropout(buf, kernel.Dropout, int, int)                    { s.missing("dropout") }
func (s *Set) SinkGrad(_, _, _, _, _ buf, _, _ int)                     { s.missing("sink grad") }
func (s *Set) RouteGrad(buf, *kernel.Routing[float32], int, int, bool)  { s.missing("route grad") }
func (s *Set) DispatchGrad(_, _ buf, _ *kernel.Routing[float32], _ int) { s.missing("dispatch grad") }
func (s *Set) CombineGrad(_, _, _ buf, _ *kernel.Routing[float32], _, _, _ int) {
	s.missing("combine grad")
}

func (s *Set) AttendCausalGrad(_, _, _, _, _, _, _, _, _ buf, _, _ int, _ kernel.Heads) {
	s.missing("attend causal grad")
}

func (s *Set) AttendDocumentsGrad(_, _, _, _, _, _, _, _, _ buf, _ []int, _ kernel.Heads) {
	s.missing("attend documents grad")
}

func (s *Set) CrossEntropy([]float64, buf, buf, []int32, float64, int, int) {
	s.missing("cross entropy")
}

func (s *Set) ZLossGrad(buf, buf, []float64, []int32, float64, float64, int, int) {
	s.missing("z loss grad")
}

func (s *Set) SumSquares(buf) float64 {
	s.missing("sum of squares")
	return 0
}

func (s *Set) AdamW(_, _, _, _ buf, _ kernel.AdamW) { s.missing("adamw") }
