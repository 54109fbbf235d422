package quant_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/quant"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// words returns a SplitMix64 generator. testdata/reference.py has the same one.
func words(seed uint64) func() uint64 {
	return func() uint64 {
		seed += 0x9e3779b97f4a7c15
		z := seed
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
}

// row returns the row of a kind and a seed that testdata/reference.py generates.
func row(kind string, seed uint64, n int) []float32 {
	next := words(seed)
	unit := func() float64 { return float64(next()>>40)/(1<<23) - 1 }
	out := make([]float32, n)
	for i := range out {
		var v float64
		switch kind {
		case "uniform":
			v = unit()
		case "tailed":
			v = unit() * unit() * unit() * 3
		case "small":
			v = unit() * 0x1p-30
		case "large":
			v = unit() * 60000
		case "positive":
			v = unit() + 1.5
		case "steps":
			v = float64(next()>>60)*0.5 - 4
		case "sparse":
			if v = math.Copysign(0, -1); next()>>61 == 0 {
				v = unit()
			}
		case "constant":
			v = 0.1 * float64(i/32%5-2)
		case "normal": // a sum of twelve uniform numbers
			for range 12 {
				v += unit() / 2
			}
		}
		out[i] = float32(v)
	}
	return out
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func quantized(x []float32, d tensor.DType, importance []float32) []byte {
	out := make([]byte, d.RowBytes(len(x)))
	quant.Quantize(out, x, d, importance)
	return out
}

// squares returns the weighted squared error of x in type d, and the weighted squares of x.
func squares(x []float32, d tensor.DType, importance, weight []float32) (off, all float64) {
	back := make([]float32, len(x))
	tensor.Dequantize(back, quantized(x, d, importance), d)
	for i, v := range x {
		w := 1.0
		if weight != nil {
			w = float64(weight[i])
		}
		off += w * (float64(v) - float64(back[i])) * (float64(v) - float64(back[i]))
		all += w * float64(v) * float64(v)
	}
	return off, all
}

// TestQuantize_EqualsTheReference compares with the digests that testdata/reference.py made with the Python package.
func TestQuantize_EqualsTheReference(t *testing.T) {
	text, err := os.ReadFile("testdata/reference.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Kind    string            `json:"kind"`
		Seed    uint64            `json:"seed"`
		Input   string            `json:"input"`
		Digests map[string]string `json:"digests"`
	}
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, r := range rows {
		x := row(r.Kind, r.Seed, 4096)
		if digest(tensor.Bytes(x)) != r.Input {
			t.Fatalf("%s: the generated row is another one", r.Kind)
		}
		for name, want := range r.Digests {
			d, err := tensor.Parse(name)
			if err != nil {
				t.Fatal(err)
			}
			if digest(quantized(x, d, nil)) != want {
				t.Errorf("%s: %s differs from the reference", r.Kind, name)
			}
			compared++
		}
	}
	if compared != 64 {
		t.Errorf("compared %d digests, want 64", compared)
	}
}

// TestQuantize_ErrorOfTheKTypes holds the relative error below that of llama.cpp's own quantiser, measured on the same
// rows with version 11434 (ggml_quantize_chunk).
func TestQuantize_ErrorOfTheKTypes(t *testing.T) {
	for d, limits := range map[tensor.DType]map[string]float64{
		tensor.Q4_K: {"normal": 0.07068, "uniform": 0.05469, "tailed": 0.08612},
		tensor.Q5_K: {"normal": 0.03580, "uniform": 0.02770, "tailed": 0.04376},
		tensor.Q6_K: {"normal": 0.01748, "uniform": 0.01324, "tailed": 0.02181},
	} {
		for kind, limit := range limits {
			off, all := squares(row(kind, 7, 65536), d, nil, nil)
			got := math.Sqrt(off / all)
			t.Logf("%v %s: %.5f, llama.cpp %.5f", d, kind, got, limit)
			if !(got <= 0.99*limit) {
				t.Errorf("%v of a %s row: relative error %.5f, llama.cpp has %.5f", d, kind, got, limit)
			}
		}
	}
}

// TestQuantize_ImportanceLowersTheErrorThatItWeighs compares with the quantiser that ignores the importance.
func TestQuantize_ImportanceLowersTheErrorThatItWeighs(t *testing.T) {
	x := row("normal", 3, 16384)
	importance := row("uniform", 4, len(x))
	for i, v := range importance {
		importance[i] = v * v * v * v * 20
	}
	for _, d := range []tensor.DType{tensor.Q4_0, tensor.Q4_1, tensor.Q5_0, tensor.Q5_1, tensor.Q4_K, tensor.Q5_K,
		tensor.Q6_K} {
		without, _ := squares(x, d, nil, importance)
		with, _ := squares(x, d, importance, importance)
		if !(with < 0.98*without) {
			t.Errorf("%v: weighted error %.5g with the importance, %.5g without", d, with, without)
		}
		if useless := make([]float32, len(x)); digest(quantized(x, d, useless)) != digest(quantized(x, d, nil)) {
			t.Errorf("%v: an importance of zeros changes the bytes", d)
		}
	}
	if digest(quantized(x, tensor.Q8_0, importance)) != digest(quantized(x, tensor.Q8_0, nil)) {
		t.Error("Q8_0 uses the importance")
	}
}

// TestQuantize_Extremes quantises rows in which scales vanish or exceed float16.
func TestQuantize_Extremes(t *testing.T) {
	for name, v := range map[string]float32{"zero": 0, "negative zero": float32(math.Copysign(0, -1)), "tiny": 1e-42,
		"small": 3e-9, "one": 1, "negative": -2.5, "largest": math.MaxFloat32} {
		x := make([]float32, 512)
		for i := range x {
			x[i] = v
		}
		x[300] = -v
		for _, d := range quant.Types() {
			back := make([]float32, len(x))
			tensor.Dequantize(back, quantized(x, d, nil), d)
			for i, b := range back {
				if math.IsNaN(float64(b)) && name != "largest" { // whose scale is infinite in the reference, too
					t.Fatalf("%v of %s: element %d is NaN", d, name, i)
				}
				if limit := 0.15 * math.Abs(float64(v)); (name == "one" || name == "negative") &&
					math.Abs(float64(b-x[i])) > limit {
					t.Fatalf("%v of %s: element %d is %g, want %g", d, name, i, b, x[i])
				}
			}
		}
	}
}

func TestQuantize_PanicsOnMisuse(t *testing.T) {
	for name, call := range map[string]func(){
		"length":     func() { quant.Quantize(make([]byte, 18), make([]float32, 31), tensor.Q4_0, nil) },
		"bytes":      func() { quant.Quantize(make([]byte, 17), make([]float32, 32), tensor.Q4_0, nil) },
		"importance": func() { quant.Quantize(make([]byte, 18), make([]float32, 32), tensor.Q4_0, make([]float32, 1)) },
		"type":       func() { quant.Quantize(make([]byte, 84), make([]float32, 256), tensor.Q2_K, nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			call()
		}()
	}
}

// FuzzQuantize checks that no finite input panics and that plain types round to the nearest value.
func FuzzQuantize(f *testing.F) {
	f.Add(uint64(1), uint8(3))
	f.Add(uint64(77), uint8(9))
	f.Fuzz(func(t *testing.T, seed uint64, kind uint8) {
		next := words(seed)
		x := make([]float32, 256)
		for i := range x {
			if x[i] = math.Float32frombits(uint32(next())); x[i] != x[i] || math.IsInf(float64(x[i]), 0) {
				x[i] = 0
			}
			if kind&1 == 1 {
				x[i] = float32(int32(next())) * 0x1p-31
			}
		}
		for _, d := range quant.Types() {
			raw := quantized(x, d, nil)
			back := make([]float32, len(x))
			tensor.Dequantize(back, raw, d)
			if d == tensor.F32 {
				for i := range x {
					if math.Float32bits(x[i]) != math.Float32bits(back[i]) {
						t.Fatalf("element %d is %g, want %g", i, back[i], x[i])
					}
				}
			}
		}
		quantized(x, tensor.Q4_K, x[:256:256])
	})
}

func BenchmarkQuantize(b *testing.B) {
	x := row("normal", 1, 4096)
	for _, d := range quant.Types() {
		out := make([]byte, d.RowBytes(len(x)))
		b.Run(d.String(), func(b *testing.B) {
			b.SetBytes(int64(4 * len(x)))
			for b.Loop() {
				quant.Quantize(out, x, d, nil)
			}
		})
	}
}
