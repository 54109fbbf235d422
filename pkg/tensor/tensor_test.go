package tensor_test

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

func TestFloat16_RoundTripsAndRoundsToNearestEven(t *testing.T) {
	for bits := range 1 << 16 {
		v := tensor.Float16(uint16(bits))
		if v == v && tensor.Float16bits(v) != uint16(bits) {
			t.Fatalf("binary16 %#04x is %v and comes back as %#04x", bits, v, tensor.Float16bits(v))
		}
		// The number halfway between two neighbours is rounded to the even one.
		next := tensor.Float16(uint16(bits + 1))
		if bits&0x7fff < 0x7bff && v == v {
			middle := float32((float64(v) + float64(next)) / 2)
			if got := tensor.Float16bits(middle); got != uint16(bits+bits&1) {
				t.Fatalf("the number halfway between %#04x and the next one is rounded to %#04x", bits, got)
			}
		}
	}
	for _, c := range []struct {
		in   float32
		want uint16
	}{{65519.996, 0x7bff}, {65520, 0x7c00}, {float32(math.Inf(-1)), 0xfc00}, {0x1p-25, 0}, {0x1.8p-25, 1},
		{float32(math.Copysign(0, -1)), 0x8000}} {
		if got := tensor.Float16bits(c.in); got != c.want {
			t.Errorf("binary16 of %v is %#04x, want %#04x", c.in, got, c.want)
		}
	}
	if v := tensor.Float16(tensor.Float16bits(float32(math.NaN()))); v == v {
		t.Errorf("NaN comes back as %v", v)
	}
}

func TestBFloat16_RoundsToNearestEven(t *testing.T) {
	for bits := range 1 << 16 {
		if v := tensor.BFloat16(uint16(bits)); v == v && tensor.BFloat16bits(v) != uint16(bits) {
			t.Fatalf("bfloat16 %#04x comes back as %#04x", bits, tensor.BFloat16bits(v))
		}
	}
	for _, c := range []struct {
		in   float32
		want uint16
	}{{1, 0x3f80}, {1 + 0x1p-8, 0x3f80}, {1 + 0x3p-8, 0x3f82}, {1 + 0x1.1p-8, 0x3f81}, {float32(math.Inf(-1)), 0xff80},
		{math.MaxFloat32, 0x7f80}} {
		if got := tensor.BFloat16bits(c.in); got != c.want {
			t.Errorf("bfloat16 of %v is %#04x, want %#04x", c.in, got, c.want)
		}
	}
	// A NaN whose payload is only in the bits that are cut off must stay NaN.
	if v := tensor.BFloat16(tensor.BFloat16bits(math.Float32frombits(0x7f800001))); v == v {
		t.Errorf("NaN comes back as %v", v)
	}
}

func TestEncode_RoundTrips(t *testing.T) {
	values := []float32{0, 1, -2, 0.5, 96, -0.015625} // exact in every type
	for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.F64} {
		raw := make([]byte, d.RowBytes(len(values)))
		tensor.Encode(raw, values, d)
		back := make([]float32, len(values))
		tensor.Dequantize(back, raw, d)
		for i := range values {
			if back[i] != values[i] {
				t.Errorf("%v: element %d is %v, want %v", d, i, back[i], values[i])
			}
		}
	}
	raw, back := make([]byte, 4*len(values)), make([]float32, len(values))
	tensor.PutF32LE(raw, values)
	if got := binary.LittleEndian.Uint32(raw[4:]); got != 0x3f800000 {
		t.Errorf("1 is written as %#08x", got)
	}
	tensor.F32LE(back, raw)
	if back[5] != values[5] {
		t.Errorf("element 5 comes back as %v", back[5])
	}
}

func TestDequantize_UnquantisedTypes(t *testing.T) {
	for _, c := range []struct {
		d    tensor.DType
		raw  []byte
		want []float64
	}{
		{tensor.I8, []byte{0xff, 3}, []float64{-1, 3}},
		{tensor.U8, []byte{0xff, 3}, []float64{255, 3}},
		{tensor.Bool, []byte{1, 0}, []float64{1, 0}},
		{tensor.I16, []byte{0xfe, 0xff, 1, 0}, []float64{-2, 1}},
		{tensor.I32, []byte{0xfe, 0xff, 0xff, 0xff, 0, 0, 1, 0}, []float64{-2, 65536}},
		{tensor.I64, []byte{1, 0, 0, 0, 0, 0, 0, 0x80}, []float64{math.MinInt64 + 1}},
		{tensor.F64, binary.LittleEndian.AppendUint64(nil, math.Float64bits(math.Pi)), []float64{math.Pi}},
	} {
		got := make([]float64, len(c.want))
		tensor.Dequantize(got, c.raw, c.d)
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%v: element %d is %v, want %v", c.d, i, got[i], c.want[i])
			}
		}
	}
}

func TestDequantize_WrongSizesPanic(t *testing.T) {
	for name, call := range map[string]func(){
		"part of a block": func() { tensor.Dequantize(make([]float32, 16), make([]byte, 9), tensor.Q4_0) },
		"short bytes":     func() { tensor.Dequantize(make([]float32, 32), make([]byte, 17), tensor.Q4_0) },
		"long bytes":      func() { tensor.Dequantize(make([]float32, 1), make([]byte, 8), tensor.F32) },
		"invalid type":    func() { tensor.Dequantize(make([]float32, 0), nil, tensor.Invalid) },
		"encode a block":  func() { tensor.Encode(make([]byte, 18), make([]float32, 32), tensor.Q4_0) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("did not panic")
				}
			}()
			call()
		})
	}
}

func TestDType_NamesRoundTrip(t *testing.T) {
	count := 0
	for d := tensor.F32; d.Valid(); d++ {
		count++
		if back, err := tensor.Parse(d.String()); err != nil || back != d {
			t.Errorf("%v parses as %v: %v", d, back, err)
		}
		if d.RowBytes(3*d.BlockLen()) != 3*d.BlockBytes() || d.BlockBytes() == 0 {
			t.Errorf("%v: %d bytes in three blocks of %d", d, d.RowBytes(3*d.BlockLen()), d.BlockBytes())
		}
	}
	if count < 25 {
		t.Errorf("only %d types", count)
	}
	if _, err := tensor.Parse("Q9"); err == nil || tensor.DType(200).Valid() {
		t.Error("unknown types are accepted")
	}
}

func BenchmarkDequantize(b *testing.B) {
	for d := tensor.F32; d.Valid(); d++ {
		b.Run(d.String(), func(b *testing.B) {
			dst := make([]float32, 4096)
			src := make([]byte, d.RowBytes(len(dst)))
			b.SetBytes(int64(4 * len(dst)))
			for b.Loop() {
				tensor.Dequantize(dst, src, d)
			}
		})
	}
}
