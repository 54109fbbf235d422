package cuda

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Set implements kernel.Set[float32] on a device. Its methods may be called from
// several goroutines: operations run in the order of the calls. An operation returns when it is in the device's
// queue. If the device fails, a later operation that needs a result panics with the driver's error.
type Set struct {
	*scope
	kv   kernel.KVType
	bf16 bool
}

// Open opens a device and returns a set on it. Close ends it.
func Open(d driver.Driver, c Config) (*Set, error) {
	dev, err := openDevice(d, c)
	if err != nil {
		return nil, err
	}
	return &Set{scope: dev.newScope(), kv: c.KV}, nil
}

// Close waits for the device and gives all of its memory back. The set must not be used after it.
func (s *Set) Close() error { return s.ctx.Close() }

// Name returns the device's name, such as cuda:0.
func (s *Set) Name() string { return s.name }

// Class names the revision of the summation order and the architecture, whose matrix instructions may sum
// otherwise than those of another one.
func (s *Set) Class() string {
	class := "cuda/2/" + s.properties.SM()
	if s.bf16 {
		class += "+bf16"
	}
	if s.kv != kernel.KVAuto {
		class += "+kv-" + s.kv.String()
	}
	return class
}

// KV returns the type of the set's KV caches.
func (s *Set) KV() kernel.KVType { return s.kv }

// Properties describe the device.
func (s *Set) Properties() driver.Properties { return s.properties }

// Usage returns how busy and warm the device is.
func (s *Set) Usage() (u driver.Usage, err error) {
	err = s.ctx.Do(func(d driver.Device) error {
		u = d.Usage()
		return nil
	})
	return u, err
}

// BFloat16 returns a set whose products over dense matrices round both operands to bfloat16.
func (s *Set) BFloat16() kernel.Set[float32] { return &Set{scope: s.scope, kv: s.kv, bf16: true} }

// UsesBFloat16 reports whether the set was made by BFloat16.
func (s *Set) UsesBFloat16() bool { return s.bf16 }

// RoundBF16 rounds x in place to bfloat16 and writes the bits to h.
func (s *Set) RoundBF16(h []uint16, x kernel.Buffer[float32]) {
	const op = "round bfloat16"
	must(op, "h", len(h), len(x))
	s.each(op, "round_bf16", len(x), address(s.device, op, h), address(s.device, op, x), uint32(len(x)))
}

// WidenBF16 converts the bfloat16 bits h to x.
func (s *Set) WidenBF16(x kernel.Buffer[float32], h []uint16) {
	const op = "widen bfloat16"
	must(op, "x", len(x), len(h))
	s.each(op, "widen_bf16", len(x), address(s.device, op, x), address(s.device, op, h), uint32(len(x)))
}

// RMSNorm normalizes rows.
func (s *Set) RMSNorm(y, x, g kernel.Buffer[float32], eps float64, t, c int) {
	const op = "rms norm"
	must(op, "x", len(x), t*c)
	must(op, "y", len(y), t*c)
	must(op, "g", len(g), c)
	k := s.need(op, "rmsnorm")
	s.rows(k, t, address(s.device, op, y), address(s.device, op, x), address(s.device, op, g), uint32(c), float32(eps))
}

// LayerNorm normalizes rows.
func (s *Set) LayerNorm(y, x, g, b kernel.Buffer[float32], eps float64, t, c int) {
	const op = "layer norm"
	must(op, "x", len(x), t*c)
	must(op, "y", len(y), t*c)
	must(op, "g", len(g), c)
	if b != nil {
		must(op, "b", len(b), c)
	}
	k := s.need(op, "layernorm")
	s.rows(k, t, address(s.device, op, y), address(s.device, op, x), address(s.device, op, g),
		address(s.device, op, b), uint32(c), float32(eps))
}

// rows launches a kernel with a block for each row.
func (s *Set) rows(k *Kernel, t int, args ...any) {
	if t > 0 {
		s.launch(k, driver.Dim{X: uint32(t), Y: 1, Z: 1}, 0, args...)
	}
}

// Rotate rotates heads by the angles of their positions.
func (s *Set) Rotate(x kernel.Buffer[float32], r *kernel.Rotary, pos []int32, h, d int) {
	s.rotate("rotate", x, r, pos, h, d, 1)
}

// RotateGrad rotates by the opposite angles.
func (s *Set) RotateGrad(dx kernel.Buffer[float32], r *kernel.Rotary, pos []int32, h, d int) {
	s.rotate("rotate grad", dx, r, pos, h, d, -1)
}

func (s *Set) rotate(op string, x kernel.Buffer[float32], r *kernel.Rotary, pos []int32, h, d int, direction float32) {
	must(op, "x", len(x), len(pos)*h*d)
	must(op, "freq", len(r.Freq), r.Dims/2)
	name := "rotate_halves"
	if r.Interleaved {
		name = "rotate_pairs"
	}
	k, a, half := s.need(op, name), address(s.device, op, x), r.Dims/2
	n := len(pos) * h * half
	if n == 0 {
		return
	}
	s.withRotation(r, pos, func(w *worker, sin, cos driver.Address) error {
		return w.launch(k, driver.Dim{X: blocks(n, k.Threads), Y: 1, Z: 1}, 0, a, sin, cos, uint32(h), uint32(d),
			uint32(half), direction, uint32(n))
	})
}

// activation returns the ending of a kernel's name.
func activation(op string, act kernel.Act) string {
	switch act {
	case kernel.SiLU:
		return "_silu"
	case kernel.GELUTanh:
		return "_gelu_tanh"
	case kernel.GELU:
		return "_gelu"
	}
	panic(fmt.Sprintf("%s: unknown activation %d", op, act))
}

// GLU computes y = act(gate)·up.
func (s *Set) GLU(y, gate, up kernel.Buffer[float32], act kernel.Act) {
	const op = "glu"
	must(op, "gate", len(gate), len(y))
	must(op, "up", len(up), len(y))
	s.each(op, "glu"+activation(op, act), len(y), address(s.device, op, y), address(s.device, op, gate),
		address(s.device, op, up), uint32(len(y)))
}

// Activate computes y = act(x).
func (s *Set) Activate(y, x kernel.Buffer[float32], act kernel.Act) {
	const op = "activate"
	must(op, "x", len(x), len(y))
	s.each(op, "activate"+activation(op, act), len(y), address(s.device, op, y), address(s.device, op, x),
		uint32(len(y)))
}

// Add computes y += x.
func (s *Set) Add(y, x kernel.Buffer[float32]) {
	const op = "add"
	must(op, "x", len(x), len(y))
	s.each(op, "add", len(y), address(s.device, op, y), address(s.device, op, x), uint32(len(y)))
}

// Scale computes x *= by.
func (s *Set) Scale(x kernel.Buffer[float32], by float64) {
	s.each("scale", "scale", len(x), address(s.device, "scale", x), float32(by), uint32(len(x)))
}

// Shift computes y = x + by.
func (s *Set) Shift(y, x kernel.Buffer[float32], by float64) {
	const op = "shift"
	must(op, "x", len(x), len(y))
	s.each(op, "shift", len(y), address(s.device, op, y), address(s.device, op, x), float32(by), uint32(len(y)))
}

// Softcap computes x = limit·tanh(x/limit).
func (s *Set) Softcap(x kernel.Buffer[float32], limit float64) {
	s.each("softcap", "softcap", len(x), address(s.device, "softcap", x), float32(limit), uint32(len(x)))
}

// SoftcapGrad takes dy in place to the gradient of Softcap's input.
func (s *Set) SoftcapGrad(dy, y kernel.Buffer[float32], limit float64) {
	const op = "softcap grad"
	must(op, "y", len(y), len(dy))
	s.each(op, "softcap_grad", len(y), address(s.device, op, dy), address(s.device, op, y), float32(limit),
		uint32(len(y)))
}

// ClampedGate computes the arguments of SiLU's GLU for the gate of GPT-OSS.
func (s *Set) ClampedGate(g, u, gate, up kernel.Buffer[float32], alpha, limit float64) {
	s.clamped("clamped gate", "clamped_gate", g, u, gate, up, alpha, limit)
}

// ClampedGateGrad takes the gradients of g and u in place to those of gate and up.
func (s *Set) ClampedGateGrad(dg, du, gate, up kernel.Buffer[float32], alpha, limit float64) {
	s.clamped("clamped gate grad", "clamped_gate_grad", dg, du, gate, up, alpha, limit)
}

func (s *Set) clamped(op, name string, g, u, gate, up kernel.Buffer[float32], alpha, limit float64) {
	for _, b := range []kernel.Buffer[float32]{u, gate, up} {
		must(op, "a buffer", len(b), len(g))
	}
	s.each(op, name, len(g), address(s.device, op, g), address(s.device, op, u), address(s.device, op, gate),
		address(s.device, op, up), float32(alpha), float32(limit), uint32(len(g)))
}

// Sink scales heads by their share of a softmax that the head's sink takes part in.
func (s *Set) Sink(att, lse, sinks kernel.Buffer[float32], h, d int) {
	const op = "sink"
	must(op, "att", len(att), len(lse)*d)
	must(op, "sinks", len(sinks), h)
	s.each(op, "sink", len(att), address(s.device, op, att), address(s.device, op, lse), address(s.device, op, sinks),
		uint32(h), uint32(d), uint32(len(att)))
}

// LogSumExp returns log Σ exp(x) of one row. The host computes it. It takes a row on the host too: the logits of a
// stage reach their users there.
func (s *Set) LogSumExp(x kernel.Buffer[float32]) float64 {
	row := []float32(x)
	if len(x) > 0 && s.owns(address0(x), 4*int64(len(x))) {
		row = s.Host(x)
	}
	best := math.Inf(-1)
	for _, v := range row {
		best = max(best, float64(v))
	}
	var sum float64
	for _, v := range row {
		sum += math.Exp(float64(v) - best)
	}
	return best + math.Log(sum)
}

// Route chooses experts. The router's few logits go through the host, which needs the choice to group the rows.
func (s *Set) Route(weight, logits kernel.Buffer[float32], t, e, topK int, normalize bool) kernel.Routing[float32] {
	host, chosen := s.Host(logits), make([]float32, len(weight))
	r := kernel.HostOps[float32]{}.Route(chosen, host, t, e, topK, normalize)
	s.Upload(logits, host)
	s.Upload(weight, chosen)
	r.Probs, r.Weight = logits, weight
	return r
}

// Dispatch copies rows of x to dst in grouped order.
func (s *Set) Dispatch(dst, x kernel.Buffer[float32], r *kernel.Routing[float32], c int) {
	const op = "dispatch"
	must(op, "dst", len(dst), len(r.Rows)*c)
	rows := s.listRows(op, "x", r.Rows, len(x)/c)
	s.gather(op, dst, address(s.device, op, x), "embed_f32", rows, c, 4*c)
}
