package cuda_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

var acts = map[string]kernel.Act{"silu": kernel.SiLU, "gelu_tanh": kernel.GELUTanh, "gelu": kernel.GELU}

// sweep returns values of all sizes and of both signs, and the special ones.
func sweep() []float32 {
	x := []float32{0, float32(math.Copysign(0, -1)), 1e-40, -1e-40, 87, 88, -86, -87, -104, 40, -40}
	for v := float32(1e-6); v < 12; v *= 1.05 {
		x = append(x, v, -v)
	}
	return append(x, normal(1, 301)...)
}

func TestFunctions_AreAccurate(t *testing.T) {
	r, set := newRig(t), ref.New[float32]()
	x := sweep()
	up := normal(2, len(x))
	processor := cpu.New(1)
	defer processor.Close()
	for name, act := range acts {
		want, y := make([]float32, len(x)), r.alloc(4*len(x))
		check := func(kind string, want []float32) {
			t.Helper()
			for i, v := range r.read(y, len(x)) {
				if d := math.Abs(float64(v - want[i])); !(d <= 1e-6*math.Abs(float64(want[i]))+2e-7) {
					t.Errorf("%s %s of %v is %v, want %v", kind, name, x[i], v, want[i])
				}
			}
		}
		set.Activate(want, x, act)
		r.launch("activate_"+name, over(len(x)), 0, y, r.floats(x), uint32(len(x)))
		check("activation", want)
		if act == kernel.SiLU { // its exponential has the operations of the CPU set's
			processor.Activate(want, x, act)
			equal(t, "silu on the processor", r.read(y, len(x)), want)
		}
		set.GLU(want, x, up, act)
		r.launch("glu_"+name, over(len(x)), 0, y, r.floats(x), r.floats(up), uint32(len(x)))
		check("gated activation", want)
	}
	const limit = 1.5
	y := r.floats(x)
	r.launch("softcap", over(len(x)), 0, y, float32(limit), uint32(len(x)))
	for i, v := range r.read(y, len(x)) {
		want := limit * math.Tanh(float64(x[i])/limit)
		if math.Abs(float64(v)-want) > 3e-7*math.Abs(want) {
			t.Errorf("softcap of %v is %v, want %v", x[i], v, want)
		}
	}
	nan := r.floats([]float32{float32(math.NaN())})
	for _, name := range []string{"activate_silu", "activate_gelu_tanh", "activate_gelu"} {
		r.launch(name, over(1), 0, y, nan, uint32(1))
		if v := r.read(y, 1)[0]; v == v {
			t.Errorf("%s of NaN is %v", name, v)
		}
	}
}

func TestElementwise_EqualsTheReference(t *testing.T) {
	r, set := newRig(t), ref.New[float32]()
	const n = 773
	count := uint32(n)
	x, z, w := normal(1, n), normal(2, n), normal(3, n)
	type buffer = kernel.Buffer[float32]
	in := func(x []float32) (uint64, buffer) { return r.floats(x), append(buffer(nil), x...) }
	dx, hx := in(x)
	dz, hz := in(z)
	both := func(name string, at uint64, want []float32) { t.Helper(); equal(t, name, r.read(at, len(want)), want) }

	set.Add(hx, hz)
	r.launch("add", over(n), 0, dx, dz, count)
	both("add", dx, hx)
	set.Scale(hx, 0.75)
	r.launch("scale", over(n), 0, dx, float32(0.75), count)
	both("scale", dx, hx)
	set.Shift(hz, hx, 1)
	r.launch("shift", over(n), 0, dz, dx, float32(1), count)
	both("shift", dz, hz)
	r.launch("copy", over(n), 0, dx, dz, count)
	both("copy", dx, hz)
	r.launch("fill", over(5), 0, dx, float32(3), uint32(5))
	both("fill", dx, append([]float32{3, 3, 3, 3, 3}, hz[5:]...))

	dx, hx = in(x)
	dz, hz = in(z)
	set.SoftcapGrad(hx, hz, 1.5)
	r.launch("softcap_grad", over(n), 0, dx, dz, float32(1.5), count)
	near(t, "softcap grad", r.read(dx, n), hx, 1e-7)
	g, u := make(buffer, n), make(buffer, n)
	dg, du := r.alloc(4*n), r.alloc(4*n)
	set.ClampedGate(g, u, x, z, 1.7, 0.5)
	r.launch("clamped_gate", over(n), 0, dg, du, r.floats(x), r.floats(z), float32(1.7), float32(0.5), count)
	both("clamped gate", dg, g)
	both("clamped gate", du, u)
	dg, g = in(w)
	du, u = in(x)
	set.ClampedGateGrad(g, u, x, z, 1.7, 0.5)
	r.launch("clamped_gate_grad", over(n), 0, dg, du, r.floats(x), r.floats(z), float32(1.7), float32(0.5), count)
	both("clamped gate grad", dg, g)
	both("clamped gate grad", du, u)

	const h, d, rows = 3, 5, 4
	dx, hx = in(x[:rows*h*d])
	set.Sink(hx, buffer(z[:rows*h]), buffer(w[:h]), h, d)
	r.launch("sink", over(rows*h*d), 0, dx, r.floats(z[:rows*h]), r.floats(w[:h]), uint32(h), uint32(d),
		uint32(rows*h*d))
	near(t, "sink", r.read(dx, rows*h*d), hx, 2e-7)

	special := append([]float32{1 + 1.0/256, 1 + 3.0/256, -3e38, 1e-40, float32(math.NaN())}, x...)
	dx, hx = in(special)
	codes, dc := make([]uint16, len(hx)), r.alloc(2*len(hx))
	set.RoundBF16(codes, hx)
	r.launch("round_bf16", over(len(hx)), 0, dc, dx, uint32(len(hx)))
	for i, want := range codes {
		if got := binary.LittleEndian.Uint16(r.bytes(dc+uint64(2*i), 2)); got != want {
			t.Errorf("round bfloat16 of %v gives %#x, want %#x", special[i], got, want)
		}
	}
	both("round bfloat16", dx, hx)
	r.launch("fill", over(len(hx)), 0, dx, float32(0), uint32(len(hx)))
	r.launch("widen_bf16", over(len(hx)), 0, dx, dc, uint32(len(hx)))
	both("widen bfloat16", dx, hx)
}

func TestRotate_EqualsTheReference(t *testing.T) {
	r, set := newRig(t), ref.New[float32]()
	const h, d, half = 3, 10, 3
	pos := []int32{0, 5, 300, 7}
	for i, name := range []string{"rotate_halves", "rotate_pairs"} {
		rot := &kernel.Rotary{Dims: 2 * half, Interleaved: i == 1, Freq: []float64{1, 0.1, 0.01}, Scale: 1.2}
		var sin, cos []float32
		for _, p := range pos {
			for j := range half {
				s, c := math.Sincos(float64(p) * rot.At(int(p), j))
				sin, cos = append(sin, float32(s*rot.Scale)), append(cos, float32(c*rot.Scale))
			}
		}
		for _, direction := range []float32{1, -1} {
			x := kernel.Buffer[float32](normal(4, len(pos)*h*d))
			at := r.floats(x)
			n := len(pos) * h * half
			r.launch(name, over(n), 0, at, r.floats(sin), r.floats(cos), uint32(h), uint32(d), uint32(half), direction,
				uint32(n))
			if direction > 0 {
				set.Rotate(x, rot, pos, h, d)
			} else {
				set.RotateGrad(x, rot, pos, h, d)
			}
			near(t, name, r.read(at, len(x)), x, 1e-7)
		}
	}
}

func TestNorms_EqualTheReferenceAndRowsStandAlone(t *testing.T) {
	r, set := newRig(t), ref.New[float32]()
	const rows, eps = 3, 1e-5
	for _, c := range []int{1, 45, 700} {
		x, g, b := normal(1, rows*c), normal(2, c), normal(3, c)
		want, y, one := make(kernel.Buffer[float32], rows*c), r.alloc(4*rows*c), r.alloc(4*c)
		grid := [3]int{rows, 1, 1}
		for _, name := range []string{"rmsnorm", "layernorm", "layernorm without bias"} {
			args := []any{r.floats(g)}
			switch name {
			case "rmsnorm":
				set.RMSNorm(want, x, g, eps, rows, c)
			case "layernorm":
				args = append(args, r.floats(b))
				set.LayerNorm(want, x, g, b, eps, rows, c)
			default:
				args = append(args, uint64(0))
				set.LayerNorm(want, x, g, nil, eps, rows, c)
			}
			args = append(args, uint32(c), float32(eps))
			kernelName := strings.Fields(name)[0]
			r.launch(kernelName, grid, 0, append([]any{y, r.floats(x)}, args...)...)
			got := r.read(y, rows*c)
			near(t, fmt.Sprintf("%s of %d", name, c), got, want, 1e-6)
			r.launch(kernelName, [3]int{1, 1, 1}, 0, append([]any{one, r.floats(x[2*c:])}, args...)...)
			equal(t, name+" of a row alone", r.read(one, c), got[2*c:])
		}
	}
}

func TestEmbed_DecodesAsPackageTensor(t *testing.T) {
	r := newRig(t)
	const rows, c = 5, 512
	types := map[string]tensor.DType{"f32": tensor.F32, "q5_0": tensor.Q5_0, "q5_1": tensor.Q5_1}
	for name, d := range files {
		types[name] = d
	}
	for name, d := range types {
		raw := weightsOf(d, rows, c)
		if d == tensor.F32 {
			x := normal(1, rows*c)
			raw = unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), 4*rows*c)
		}
		if d == tensor.MXFP4 {
			raw[0], raw[17], raw[34] = 0, 1, 2 // scales of subnormal numbers
		}
		want := make([]float32, rows*c)
		tensor.Dequantize(want, raw, d)
		w, y := r.raw(raw), r.alloc(4*3*c)
		r.launch("embed_"+name, [3]int{(c + 255) / 256, 3, 1}, 0, y, w, r.ints([]int32{4, 0, 4}), uint32(0), uint32(c),
			uint32(d.RowBytes(c)))
		equal(t, name, r.read(y, 3*c), slices.Concat(want[4*c:], want[:c], want[4*c:]))
		r.launch("embed_"+name, [3]int{(c + 255) / 256, 3, 1}, 0, y, w, uint64(0), uint32(1), uint32(c),
			uint32(d.RowBytes(c)))
		equal(t, name+" in order", r.read(y, 3*c), want[c:4*c])
	}
}
