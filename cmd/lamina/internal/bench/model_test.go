package bench

import (
	"math"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

func TestBench_Model(t *testing.T) {
	path := sharedPath(t, "models/stories260K/stories260K-Q8_0.gguf")
	for _, kernels := range kernelSets() {
		got := verbJSON[benchResult](t, "", "bench", "-m", path, "--kernels", kernels, "--threads", "2", "--batch", "3",
			"--stages", "2",
			"--prompt-tokens", "20", "--gen-tokens", "5", "--format", "json")
		for name, v := range map[string]float64{
			"prefill_tps": got.PrefillTPS, "decode_tps": got.DecodeTPS, "decode_gbps": got.DecodeGBps,
			"read_gbps": got.ReadGBps, "cores": float64(got.Machine.Cores),
		} {
			if !(v > 0) || math.IsInf(v, 0) {
				t.Errorf("%s: %s is %g", kernels, name, v)
			}
		}
		if got.Kernels != kernels || got.KernelClass == "" || got.Threads != 2 || got.Batch != 3 ||
			got.PromptTokens != 20 {
			t.Errorf("%s: %+v", kernels, got)
		}
		// A step of three sequences reads the weights once.
		if want := got.DecodeTPS / 3 * float64(got.WeightBytes) / 1e9; !(math.Abs(got.DecodeGBps-want) < 1e-6*want) {
			t.Errorf("%s: %g GB/s, want %g", kernels, got.DecodeGBps, want)
		}
		if got.PeakRSSBytes != nil && *got.PeakRSSBytes < 1<<20 {
			t.Errorf("%s: peak RSS of %d bytes", kernels, *got.PeakRSSBytes)
		}
	}
}

func TestBench_BadInput(t *testing.T) {
	for words, args := range map[string][]string{
		"--shape NAME":          {},
		"unknown shape":         {"--shape", "tiny"},
		"split into Q4_K":       {"--shape", "smollm2-135m", "--quant", "q4_k"},
		"quant":                 {"--shape", "smollm2-135m", "--quant", "Q9"},
		"cannot have type":      {"--shape", "smollm2-135m", "--quant", "I32"},
		"threads":               {"--shape", "gpt2-124m", "--threads", "-1"},
		"prompt-tokens: 0":      {"--shape", "gpt2-124m", "--prompt-tokens", "0"},
		"gen-tokens":            {"--shape", "gpt2-124m", "--gen-tokens", "0"},
		"batch":                 {"--shape", "gpt2-124m", "--batch", "0"},
		"used together":         {"--shape", "gpt2-124m", "-m", "x"},
		"context length of gpt": {"--shape", "gpt2-124m", "--quant", "TQ2_0", "--prompt-tokens", "2000"},
	} {
		verbFails(t, 2, words, "", append([]string{"bench", "--kernels", "ref"}, args...)...)
	}
}

// quants are the element types that matrices of a GGUF file may have.
func quants() []tensor.DType {
	var out []tensor.DType
	for d := tensor.F32; d.Valid(); d++ {
		if _, ok := ggufType(d); ok {
			out = append(out, d)
		}
	}
	return out
}

// TestShape_EveryQuantAgreesWithTheReference compares the logits of random models of each type, on
// the processor's kernels with every family of instructions, with those of the reference kernels. The
// models are wide enough for quantised products.
func TestShape_EveryQuantAgreesWithTheReference(t *testing.T) {
	s := shape{arch: "llama", layers: 1, width: 768, heads: 12, kvHeads: 4, ff: 1024, vocab: 64, context: 32,
		ropeBase: 1e4}
	for _, d := range quants() {
		t.Run(d.String(), func(t *testing.T) {
			f, err := s.open("random", d)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			run := func(set kernel.Set[float32]) []float32 {
				chain, err := verb.LoadChain(f, 1, 1, 4, set, model.LoadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				logits, err := chain.Forward(
					verb.Entry{Seq: chain.NewSequence(), IDs: []int32{1, 2, 3, 60, 5}, Logits: 5})
				if err != nil {
					t.Fatal(err)
				}
				return slices.Clone(logits)
			}
			want := run(ref.New[float32]())
			var first []float32
			for _, instructions := range cpu.Instructions() {
				set, err := cpu.Open(2, instructions)
				if err != nil {
					t.Fatal(err)
				}
				got := run(set)
				set.Close()
				if first == nil {
					first = got
				}
				if !slices.Equal(got, first) {
					t.Errorf("%s has other bits than %s", instructions, cpu.Instructions()[0])
				}
				var off, size float64
				for i := range want {
					off += math.Pow(float64(got[i]-want[i]), 2)
					size += math.Pow(float64(want[i]), 2)
				}
				// Five products in sequence round activations to 8-bit integers or bfloat16.
				if ratio := math.Sqrt(off / size); !(ratio < 0.03) {
					t.Errorf("%s: logits are off by %.3g of their size", instructions, ratio)
				}
			}
		})
	}
}

func TestShape_EveryQuantRuns(t *testing.T) {
	shapes := []shape{
		{arch: "llama", layers: 2, width: 256, heads: 4, kvHeads: 2, ff: 512, vocab: 64, context: 32, ropeBase: 1e4},
		{arch: "gpt2", layers: 2, width: 256, heads: 4, kvHeads: 4, ff: 512, vocab: 64, context: 32},
	}
	for _, d := range quants() {
		for _, s := range shapes {
			t.Run(s.arch+"/"+d.String(), func(t *testing.T) {
				f, err := s.open("random", d)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				checkSpread(t, f)
				chain, err := verb.LoadChain(f, 2, 1, 4, ref.New[float32](), model.LoadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				logits, err := chain.Forward(verb.Entry{Seq: chain.NewSequence(), IDs: []int32{1, 2, 3}, Logits: 1})
				if err != nil {
					t.Fatal(err)
				}
				for i, v := range logits {
					if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
						t.Fatalf("logit %d is %g", i, v)
					}
				}
			})
		}
	}
}

// checkSpread checks that the values of one matrix are about as large as those of a real model.
func checkSpread(t *testing.T, f *model.Files) {
	t.Helper()
	const name = "blk.1.ffn_up.weight"
	info, _ := f.Source.Info(name)
	data, err := f.Source.Data(name)
	if err != nil {
		t.Fatal(err)
	}
	values := make([]float64, info.Elements())
	tensor.Dequantize(values, data, info.DType)
	var sum, squares float64
	for _, v := range values {
		sum, squares = sum+v, squares+v*v
	}
	n := float64(len(values))
	if mean, rms := sum/n, math.Sqrt(squares/n); !(rms > 0.03 && rms < 0.07) || !(math.Abs(mean) < 0.01) {
		t.Errorf("mean %g, root mean square %g", mean, rms)
	}
}

func TestShape_NamedOnesHaveTheirSize(t *testing.T) {
	for name, want := range map[string]int64{"smollm2-135m": 134515008, "gpt2-124m": 124439808} {
		s, err := shapeNamed(name)
		if err != nil {
			t.Fatal(err)
		}
		g := &ggufBuilder{}
		if err := s.tensors(g, tensor.BF16); err != nil {
			t.Fatal(err)
		}
		var elements int64
		for _, p := range g.parts {
			elements += int64(p.size / p.d.BlockBytes() * p.d.BlockLen())
		}
		if elements != want {
			t.Errorf("%s has %d parameters, want %d", name, elements, want)
		}
	}
}

func TestStepBytes_CountsWhatIsRead(t *testing.T) {
	s := shape{arch: "gpt2", layers: 1, width: 32, heads: 1, kvHeads: 1, ff: 32, vocab: 10, context: 8}
	f, err := s.open("random", tensor.Q8_0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	matrices := (10 + 96 + 32 + 32 + 32) * 34 // rows of one block
	vectors := 4 * (96 + 3*32 + 3*2*32)       // biases and norms
	if got := stepBytes(f); got != int64(matrices+vectors) {
		t.Errorf("%d bytes, want %d", got, matrices+vectors)
	}
}

func TestReadGBps_Measures(t *testing.T) {
	got, err := readGBps(t.Context(), 2, 4<<20)
	if err != nil || !(got > 0) {
		t.Errorf("%g GB/s: %v", got, err)
	}
	if n := probeSize(); n < probeMin || n > probeMax {
		t.Errorf("a buffer of %d bytes", n)
	}
}
