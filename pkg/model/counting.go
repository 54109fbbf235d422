package model

import "github.com/lamina-mesh/lamina/pkg/kernel"

// counting is a device's kernel set for stages that are only measured: it counts the bytes that they would allocate.
// Its buffers have the right lengths, but all that it makes share their memory, and no operation reads or writes them.
// Scratch memory of norms counts as weights.
type counting struct {
	kernel.Set[float32]
	device kernel.Accelerator[float32]
	bytes  int64
	memory []float32 // of all buffers
	bits   []uint16
}

// counted marks a matrix that has been counted.
type counted struct{}

// blank returns a buffer, which is not counted.
func (c *counting) blank(n int) []float32 {
	if n > len(c.memory) {
		c.memory = make([]float32, n)
	}
	return c.memory[:n:n]
}

func (c *counting) Scope() kernel.Memory[float32] { return c }

func (c *counting) Alloc(n int) kernel.Buffer[float32] { return c.FromHost(c.blank(n)) }

func (c *counting) AllocBF16(n int) []uint16 {
	if n > len(c.bits) {
		c.bits = make([]uint16, n)
	}
	c.bytes += 2 * int64(n)
	return c.bits[:n:n]
}

func (c *counting) FromHost(x []float32) kernel.Buffer[float32] {
	c.bytes += 4 * int64(len(x))
	return x
}

func (c *counting) Pack(w *kernel.Matrix[float32]) {
	if w.Packed == nil {
		c.bytes += c.device.PackedBytes(w)
		w.Packed = counted{}
	}
}

// uncounted is short for the parameters below.
type uncounted = kernel.Buffer[float32]

func (*counting) Upload(uncounted, []float32)   {}
func (*counting) Download([]float32, uncounted) {}
func (*counting) Copy(_, _ uncounted)           {}
func (*counting) Clear(uncounted)               {}

// Host returns the buffer itself.
func (*counting) Host(x uncounted) []float32 { return x }

func (*counting) RoundBF16([]uint16, uncounted) {}
func (*counting) WidenBF16(uncounted, []uint16) {}

func (*counting) MatMul(_, _ uncounted, _ *kernel.Matrix[float32], _ uncounted, _ int)           {}
func (*counting) MatMuls(uncounted, int, ...kernel.Product[float32])                             {}
func (*counting) MatMulGrad(_, _ uncounted, _ int, _ ...kernel.ProductGrad[float32])             {}
func (*counting) Embed(uncounted, *kernel.Matrix[float32], []int32)                              {}
func (*counting) EmbedGrad(_, _ uncounted, _ []int32, _ int)                                     {}
func (*counting) RMSNorm(_, _, _ uncounted, _ float64, _, _ int)                                 {}
func (*counting) RMSNormGrad(_, _, _, _, _ uncounted, _ float64, _, _ int)                       {}
func (*counting) LayerNorm(_, _, _, _ uncounted, _ float64, _, _ int)                            {}
func (*counting) LayerNormGrad(_, _, _, _, _, _ uncounted, _ float64, _, _ int)                  {}
func (*counting) Rotate(uncounted, *kernel.Rotary, []int32, int, int)                            {}
func (*counting) RotateGrad(uncounted, *kernel.Rotary, []int32, int, int)                        {}
func (*counting) AttendCausal(_, _, _, _, _ uncounted, _, _ int, _ kernel.Heads)                 {}
func (*counting) AttendCausalGrad(_, _, _, _, _, _, _, _, _ uncounted, _, _ int, _ kernel.Heads) {}
func (*counting) GLU(_, _, _ uncounted, _ kernel.Act)                                            {}
func (*counting) GLUGrad(_, _, _, _, _, _ uncounted, _ kernel.Act)                               {}
func (*counting) Activate(_, _ uncounted, _ kernel.Act)                                          {}
func (*counting) ActivateGrad(_, _, _, _ uncounted, _ kernel.Act)                                {}
func (*counting) Add(_, _ uncounted)                                                             {}
func (*counting) Scale(uncounted, float64)                                                       {}
func (*counting) Shift(_, _ uncounted, _ float64)                                                {}
func (*counting) Dropout(uncounted, kernel.Dropout, int, int)                                    {}
func (*counting) Softcap(uncounted, float64)                                                     {}
func (*counting) SoftcapGrad(_, _ uncounted, _ float64)                                          {}
func (*counting) ClampedGate(_, _, _, _ uncounted, _, _ float64)                                 {}
func (*counting) ClampedGateGrad(_, _, _, _ uncounted, _, _ float64)                             {}
func (*counting) Sink(_, _, _ uncounted, _, _ int)                                               {}
func (*counting) SinkGrad(_, _, _, _, _ uncounted, _, _ int)                                     {}
func (*counting) CrossEntropy([]float64, uncounted, uncounted, []int32, float64, int, int)       {}

// Route chooses no expert for any row, so that experts compute nothing.
func (*counting) Route(weight, logits uncounted, t, e, topK int, _ bool) kernel.Routing[float32] {
	return kernel.Routing[float32]{Bounds: make([]int, e+1), Rows: make([]int, t*topK), Probs: logits, Weight: weight}
}

func (*counting) RouteGrad(uncounted, *kernel.Routing[float32], int, int, bool)  {}
func (*counting) Dispatch(_, _ uncounted, _ *kernel.Routing[float32], _ int)     {}
func (*counting) DispatchGrad(_, _ uncounted, _ *kernel.Routing[float32], _ int) {}
