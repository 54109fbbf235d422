package compress_test

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/compress"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func codecs() []compress.Codec {
	return []compress.Codec{{}, {Wire: compress.F32}, {Wire: compress.BF16}, {Wire: compress.Int8},
		{Wire: compress.TopK, Density: 0.01}, {Wire: compress.TopK, Density: 1}}
}

func gradient(r *rand.Rand, n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(r.NormFloat64() * math.Exp(r.NormFloat64()*3))
	}
	return out
}

func TestCodec_DecodeReturnsWhatEncodeLeaves(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range codecs() {
		for _, n := range []int{0, 1, 2, 255, 256, 257, 1000, 4096} {
			x := gradient(r, n)
			if n > 2 {
				x[0], x[1], x[2] = 0, float32(math.Copysign(0, -1)), 1e-45
			}
			if n == 1000 {
				clear(x[256:512])
				x[600], x[601] = math.MaxFloat32, -math.MaxFloat32
			}
			sent, residual := slices.Clone(x), make([]float32, n)
			data := c.Encode(nil, sent, residual)
			if len(data) != c.Size(n) {
				t.Fatalf("%+v: %d bytes for %d values, Size says %d", c, len(data), n, c.Size(n))
			}
			got := make([]float32, n)
			if err := c.Decode(got, data); err != nil {
				t.Fatalf("%+v, %d values: %v", c, n, err)
			}
			for i := range got {
				if math.Float32bits(got[i]) != math.Float32bits(sent[i]) {
					t.Fatalf("%+v: value %d of %d decodes to %v, Encode left %v", c, i, n, got[i], sent[i])
				}
				if c.Exact() && math.Float32bits(got[i]) != math.Float32bits(x[i]) {
					t.Fatalf("%+v: value %d of %d decodes to %v, it was %v", c, i, n, got[i], x[i])
				}
				if c.Feedback() && math.Abs(float64(residual[i])+float64(got[i])-float64(x[i])) >
					1e-7*math.Abs(float64(x[i])) {
					t.Fatalf("%+v: %v becomes %v and leaves %v", c, x[i], got[i], residual[i])
				}
			}
		}
	}
}

// TestCodec_TopKKeepsTheLargest compares with sorting.
func TestCodec_TopKKeepsTheLargest(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		n := 1 + r.IntN(400)
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.IntN(7) - 3) // many ties
		}
		c := compress.Codec{Wire: compress.TopK, Density: r.Float64()*0.99 + 0.005}
		order := make([]int, n)
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			return cmp.Compare(math.Abs(float64(x[b])), math.Abs(float64(x[a])))
		})
		want := make([]float32, n)
		for _, i := range order[:c.Size(n)/8] {
			want[i] = x[i]
		}
		c.Encode(nil, x, make([]float32, n))
		if !slices.Equal(x, want) {
			t.Fatalf("density %v of %d values: got %v, want %v", c.Density, n, x, want)
		}
	}
}

// TestCodec_NothingIsLostInTheEnd encodes a constant gradient again and again. With error feedback the mean
// of what is sent is the gradient.
func TestCodec_NothingIsLostInTheEnd(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	const n, rounds = 512, 2000
	for _, c := range []compress.Codec{{Wire: compress.Int8}, {Wire: compress.TopK, Density: 0.05}} {
		g, residual, sum := make([]float32, n), make([]float32, n), make([]float64, n)
		for i := range g {
			g[i] = float32(r.NormFloat64())
		}
		x := make([]float32, n)
		for range rounds {
			for i := range x {
				x[i] = g[i] + residual[i]
			}
			c.Encode(nil, x, residual)
			for i, v := range x {
				sum[i] += float64(v)
			}
		}
		for i := range g {
			if d := math.Abs(sum[i]/rounds - float64(g[i])); d > 0.02 {
				t.Errorf("%s: the mean of value %d is off by %v", c.Wire, i, d)
			}
		}
	}
}

func TestCodec_SizesOnTheWire(t *testing.T) {
	const n = 1 << 20
	for wire, most := range map[string]float64{compress.BF16: 2, compress.Int8: 3.93, compress.TopK: 49.9} {
		c := compress.Codec{Wire: wire, Density: 0.01}
		if got := 4 * float64(n) / float64(c.Size(n)); got < most {
			t.Errorf("%s is %.2f times smaller than float32, want %v", wire, got, most)
		}
	}
}

func TestCodec_DamageIsFound(t *testing.T) {
	put := func(at int, v uint32) func([]byte) {
		return func(d []byte) { binary.LittleEndian.PutUint32(d[at:], v) }
	}
	nan, inf := math.Float32bits(float32(math.NaN())), math.Float32bits(float32(math.Inf(1)))
	for name, d := range map[string]struct {
		codec  compress.Codec
		damage func([]byte)
	}{
		"nan":                  {compress.Codec{}, put(40, nan)},
		"infinite":             {compress.Codec{}, put(40, inf)},
		"bf16 infinite":        {compress.Codec{Wire: compress.BF16}, put(40, inf)},
		"nan scale":            {compress.Codec{Wire: compress.Int8}, put(0, nan)},
		"infinite scale":       {compress.Codec{Wire: compress.Int8}, put(260, inf)},
		"negative scale":       {compress.Codec{Wire: compress.Int8}, put(0, math.Float32bits(-1))},
		"-128":                 {compress.Codec{Wire: compress.Int8}, func(d []byte) { d[9] = 128 }},
		"index out of bounds":  {compress.Codec{Wire: compress.TopK, Density: 0.1}, put(8*29, 300)},
		"indices out of order": {compress.Codec{Wire: compress.TopK, Density: 0.1}, put(8, 0)},
		"nan value":            {compress.Codec{Wire: compress.TopK, Density: 0.1}, put(12, nan)},
	} {
		r := rand.New(rand.NewPCG(7, 8))
		x := gradient(r, 300)
		data := d.codec.Encode(nil, x, make([]float32, 300))
		d.damage(data)
		if err := d.codec.Decode(x, data); fault.CodeOf(err) != fault.DataLoss {
			t.Errorf("%s: got %v, want data loss", name, err)
		}
		if err := d.codec.Decode(x, data[1:]); fault.CodeOf(err) != fault.DataLoss {
			t.Errorf("%s, too short: got %v, want data loss", name, err)
		}
	}
	for _, c := range []compress.Codec{{Wire: "f16"}, {Wire: compress.TopK}, {Wire: compress.TopK, Density: 1.1},
		{Wire: compress.TopK, Density: math.NaN()}} {
		if fault.CodeOf(c.Check()) != fault.Invalid {
			t.Errorf("%+v passes its check", c)
		}
	}
}

// FuzzCodec_Decode checks that any bytes are refused or decode to finite values, which encode again.
func FuzzCodec_Decode(f *testing.F) {
	f.Add(uint8(3), uint16(300), []byte{0, 0, 128, 63, 1, 2, 3})
	f.Add(uint8(4), uint16(9), []byte{1, 0, 0, 0, 0, 0, 128, 63})
	f.Fuzz(func(t *testing.T, which uint8, n uint16, data []byte) {
		c := codecs()[int(which)%len(codecs())]
		values := make([]float32, n)
		if len(data) > 0 { // of the right length, so that the contents are read
			for size := c.Size(int(n)); len(data) < size; {
				data = append(data, data[:min(len(data), size-len(data))]...)
			}
		}
		if c.Decode(values, data) != nil {
			return
		}
		for i, v := range values {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				t.Fatalf("%+v: value %d of %d is %v", c, i, n, v)
			}
		}
		again := slices.Clone(values)
		c.Encode(nil, again, make([]float32, n))
	})
}

func BenchmarkCodec_Encode(b *testing.B) {
	r := rand.New(rand.NewPCG(9, 9))
	g := gradient(r, 1<<20)
	x, residual := make([]float32, len(g)), make([]float32, len(g))
	for _, c := range codecs()[1:5] {
		b.Run(c.Wire, func(b *testing.B) {
			b.SetBytes(int64(4 * len(g)))
			dst := make([]byte, 0, c.Size(len(g)))
			for b.Loop() {
				copy(x, g)
				dst = c.Encode(dst[:0], x, residual)
			}
		})
	}
}
