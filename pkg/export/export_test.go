package export_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/export"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

func open(t testing.TB, path string) *model.Files {
	t.Helper()
	f, err := model.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func recipe(t testing.TB, name string) export.Recipe {
	t.Helper()
	r, err := export.ParseRecipe(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// logits returns those of the last of a few ids, computed by the reference kernels.
func logits(t testing.TB, f *model.Files, ids []int32) []float32 {
	t.Helper()
	set := ref.New[float32]()
	s, err := model.Load(f, model.Range{Hi: len(f.Spec.Layers)}, set, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cache := kvcache.New(s.CacheConfig(16), set)
	seq := cache.NewSequence()
	defer seq.Free()
	out, err := s.Forward(&model.Batch[float32]{IDs: ids,
		Entries: []model.Entry[float32]{{Seq: seq, Rows: len(ids), Logits: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(out)
}

var ids = []int32{1, 5, 9, 40, 7, 7, 3, 60, 11, 100, 42, 8, 2, 19, 77, 31, 200, 4, 90, 21, 33}

// distance returns the largest difference, divided by the largest of want.
func distance(got, want []float32) float64 {
	var off, most float64
	for i := range want {
		off = max(off, math.Abs(float64(got[i]-want[i])))
		most = max(most, math.Abs(float64(want[i])))
	}
	return off / most
}

var tiny = []string{"llama", "llama3-rope", "llama-yarn", "llama-linear-bias", "mistral", "qwen2", "qwen3", "phi3",
	"smollm3", "gemma2", "gemma3", "mixtral", "qwen3-moe", "gpt-oss", "gpt-oss-mxfp4", "gpt2"}

// sameBits compares all parameters of two models in their canonical form, decoded to float32.
func sameBits(t *testing.T, got, want *model.Files) {
	t.Helper()
	a, b := parameters(t, got), parameters(t, want)
	if len(a) == 0 || len(a) != len(b) {
		t.Fatalf("%d parameters, want %d", len(a), len(b))
	}
	for name, x := range b {
		if !bytes.Equal(a[name], x) {
			t.Errorf("%s differs", name)
		}
	}
}

func parameters(t *testing.T, f *model.Files) map[string][]byte {
	t.Helper()
	_, all, err := f.Exported()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, p := range all {
		v, err := p.Open()
		if err != nil {
			t.Fatal(err)
		}
		x := make([]byte, 4*weights.Info{Shape: p.Shape}.Elements())
		if n, err := v.ReadAt(x, 0); n < len(x) {
			t.Fatal(err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		out[p.Name] = x
	}
	return out
}

// TestToGGUF_TinyModelsKeepTheirBits writes every tiny model as F32 and BF16 and compares weights, logits and ids.
func TestToGGUF_TinyModelsKeepTheirBits(t *testing.T) {
	for _, name := range tiny {
		t.Run(name, func(t *testing.T) {
			folder := shared(t, "models/tiny", name)
			f := open(t, folder)
			v, err := vocab.FromHF(folder)
			if err != nil {
				t.Fatal(err)
			}
			want := logits(t, f, ids)
			for _, kind := range []string{"F32", "BF16"} {
				path := filepath.Join(t.TempDir(), "out.gguf")
				r, err := export.ToGGUF(t.Context(), path, f, v, export.Options{Recipe: recipe(t, kind)})
				if err != nil {
					t.Fatal(err)
				}
				if r.Total.RMSE != 0 || r.Total.Tensors < 20 {
					t.Errorf("%s: %d tensors differ by %g", kind, r.Total.Tensors, r.Total.RMSE)
				}
				g := open(t, path)
				sameBits(t, g, f)
				if off := distance(logits(t, g, ids), want); off > 2e-6 {
					t.Errorf("%s: logits differ by %g", kind, off)
				}
				again, err := vocab.FromGGUF(g.GGUF().Meta())
				if err != nil {
					t.Fatal(err)
				}
				text := "Once upon a time, there were 1234 little girls'\n\n  who didn't know."
				a, errA := v.Encode(text, vocab.Options{BOS: true})
				b, errB := again.Encode(text, vocab.Options{BOS: true})
				if errA != nil || errB != nil || !slices.Equal(a, b) {
					t.Errorf("%s: ids %v %v, want %v %v", kind, b, errB, a, errA)
				}
			}
		})
	}
}

// TestRequantize_AgainstLlamaCpp quantises a model that llama-quantize has quantised, too. Every tensor has the
// same type. Blocks with a defined result have the same bytes, and the others are at least as near to the source.
func TestRequantize_AgainstLlamaCpp(t *testing.T) {
	dir := shared(t, "models", "quant-types")
	base, err := weights.OpenGGUF(filepath.Join(dir, "base-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	for _, name := range []string{"F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K"} {
		theirs, err := weights.OpenGGUF(filepath.Join(dir, "q-"+name+".gguf"))
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		path := filepath.Join(t.TempDir(), "out.gguf")
		pure := recipe(t, name) // as the files were made
		pure.Pure = true
		if _, err := export.Requantize(t.Context(), path, base, export.Options{Recipe: pure}); err != nil {
			t.Fatal(err)
		}
		ours, err := weights.OpenGGUF(path)
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		var off, theirOff float64
		for _, tensorName := range base.Names() {
			a, _ := ours.Info(tensorName)
			b, _ := theirs.Info(tensorName)
			if a.DType != b.DType || !slices.Equal(a.Shape, b.Shape) {
				t.Errorf(
					"%s: %s is %v of %v, llama-quantize makes it %v of %v",
					name,
					tensorName,
					a.DType,
					a.Shape,
					b.DType,
					b.Shape,
				)
				continue
			}
			x, y := data(t, ours, tensorName), data(t, theirs, tensorName)
			if !superBlocks(a.DType) {
				if !bytes.Equal(x, y) {
					t.Errorf("%s: %s has other bytes than llama-quantize's", name, tensorName)
				}
				continue
			}
			source := decoded(data(t, base, tensorName), tensor.F32)
			e, theirE := squareError(source, decoded(x, a.DType)), squareError(source, decoded(y, a.DType))
			off, theirOff = off+e, theirOff+theirE
			if !(e <= theirE) {
				t.Errorf("%s: %s: error %g, llama-quantize has %g", name, tensorName, e, theirE)
			}
		}
		if theirOff > 0 {
			t.Logf("%s: RMSE %.3f of llama-quantize's", name, math.Sqrt(off/theirOff))
		}
		for _, key := range base.Meta().Keys() {
			a, _ := base.Meta().Encoded(key)
			b, ok := ours.Meta().Encoded(key)
			if key != "general.file_type" && key != "general.quantization_version" && (!ok || !bytes.Equal(a, b)) {
				t.Errorf("%s: %s was not kept", name, key)
			}
		}
		a, _ := ours.Meta().Uint("general.file_type")
		if b, _ := theirs.Meta().Uint("general.file_type"); a != b {
			t.Errorf("%s: general.file_type is %d, llama-quantize writes %d", name, a, b)
		}
	}
}

func data(t *testing.T, g *weights.GGUF, name string) []byte {
	t.Helper()
	out, err := g.Data(name)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func superBlocks(d tensor.DType) bool { return d.BlockLen() == 256 }

func decoded(raw []byte, d tensor.DType) []float32 {
	out := make([]float32, len(raw)/d.BlockBytes()*d.BlockLen())
	tensor.Dequantize(out, raw, d)
	return out
}

func squareError(x, y []float32) (sum float64) {
	for i := range x {
		d := float64(x[i]) - float64(y[i])
		sum += d * d
	}
	return sum
}

// TestToHF_RoundTrip writes GGUF files as folders and back, and compares the bits.
func TestToHF_RoundTrip(t *testing.T) {
	for _, name := range []string{"llama-linear-bias", "smollm3", "gemma3", "mixtral", "gpt-oss-mxfp4", "gpt2",
		"phi3"} {
		t.Run(name, func(t *testing.T) {
			folder := shared(t, "models/tiny", name)
			g := open(t, filepath.Join(folder, "model-bf16.gguf"))
			dir := filepath.Join(t.TempDir(), "hf")
			err := export.ToHF(dir, g, tensor.F32, func(dir string) error {
				return vocab.WriteGGUFAsHF(g.GGUF().Meta(), dir)
			})
			if err != nil {
				t.Fatal(err)
			}
			f := open(t, dir)
			sameBits(t, f, g)
			if off := distance(logits(t, f, ids), logits(t, open(t, folder), ids)); off > 2e-6 {
				t.Errorf("logits differ by %g", off)
			}
			v, err := vocab.FromHF(dir)
			if err != nil {
				t.Fatal(err)
			}
			back := filepath.Join(t.TempDir(), "back.gguf")
			if _, err := export.ToGGUF(t.Context(), back, f, v, export.Options{Recipe: recipe(t, "F32")}); err != nil {
				t.Fatal(err)
			}
			sameBits(t, open(t, back), g)
		})
	}
}

// TestToGGUF_RefusesWhatTheMetadataCannotExpress changes settings for which GGUF has no field.
func TestToGGUF_RefusesWhatTheMetadataCannotExpress(t *testing.T) {
	for name, change := range map[string]func(s *model.Spec){
		"llama": func(s *model.Spec) {
			r := s.Layers[0].Attention.Rope
			r.Type, r.Factor = "dynamic", 2
		},
		"qwen2":     func(s *model.Spec) { s.Layers[1].Attention.Window = 8 },
		"gemma2":    func(s *model.Spec) { s.Layers[0].Attention.Scale = 0.5 },
		"qwen3-moe": func(s *model.Spec) { s.Layers[0].FFN.Experts.Normalize = false },
		"smollm3":   func(s *model.Spec) { s.Layers[3].Attention.Rope = s.Layers[0].Attention.Rope },
	} {
		f := open(t, shared(t, "models/tiny", name))
		change(&f.Spec)
		path := filepath.Join(t.TempDir(), "out.gguf")
		_, err := export.ToGGUF(t.Context(), path, f, nil, export.Options{Recipe: recipe(t, "F32")})
		var unsupported *model.UnsupportedError
		if !errors.As(err, &unsupported) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
			t.Errorf("%s: %s was left", name, left[0].Name())
		}
	}
}

// TestRequantize_DoesNotDependOnWorkers compares bytes and statistics.
func TestRequantize_DoesNotDependOnWorkers(t *testing.T) {
	g, err := weights.OpenGGUF(shared(t, "models/quant-types/base-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var files [][]byte
	var results []export.Result
	for _, workers := range []int{1, 5} {
		path := filepath.Join(t.TempDir(), "out.gguf")
		r, err := export.Requantize(t.Context(), path, g, export.Options{Recipe: recipe(t, "Q4_0"), Workers: workers})
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files, results = append(files, text), append(results, r)
	}
	if !bytes.Equal(files[0], files[1]) || !reflect.DeepEqual(results[0], results[1]) {
		t.Error("the number of workers changes the result")
	}
}

// TestRequantize_NamesAWeightThatIsNotFinite puts a NaN into a matrix.
func TestRequantize_NamesAWeightThatIsNotFinite(t *testing.T) {
	text, err := os.ReadFile(shared(t, "models/quant-types/base-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	copy(text[len(text)-400:], []byte{0, 0, 0xc0, 0x7f})
	g, err := weights.ParseGGUF("damaged", text)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "out.gguf")
	_, err = export.Requantize(t.Context(), path, g, export.Options{Recipe: recipe(t, "Q8_0")})
	if fault.CodeOf(err) != fault.DataLoss || !strings.Contains(err.Error(), ".weight: element") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file was written")
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := export.Requantize(stopped, path, g, export.Options{Recipe: recipe(t, "Q8_0")}); !errors.Is(err,
		context.Canceled) {
		t.Errorf("after a cancel: %v", err)
	}
}

// TestReadImportance reads a matrix and quantises with it.
func TestReadImportance(t *testing.T) {
	g, err := weights.OpenGGUF(shared(t, "models/quant-types/base-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	const name = "blk.0.ffn_up.weight"
	info, ok := g.Info(name)
	if !ok {
		t.Fatal("no such tensor")
	}
	columns := info.Shape[1]
	sums := make([]float32, columns)
	for i := range sums {
		sums[i] = float32(i%7*i%5) * 10
	}
	named := func(name string, x []float32) weights.Streamed {
		raw := tensor.Bytes(x)
		return weights.Streamed{
			Info: weights.Info{Name: name, DType: tensor.F32, Shape: []int{1, len(x)}, Bytes: int64(len(raw))},
			Write: func(w io.Writer) error {
				_, err := w.Write(raw)
				return err
			},
		}
	}
	path := filepath.Join(t.TempDir(), "imatrix.gguf")
	write := func(tensors ...weights.Streamed) {
		err := weights.WriteFile(path, func(w io.Writer) error { return weights.StreamGGUF(w, nil, tensors) })
		if err != nil {
			t.Fatal(err)
		}
	}
	write(named(name+".in_sum2", sums), named(name+".counts", []float32{10}))
	importance, err := export.ReadImportance(path)
	if err != nil || len(importance[name]) != columns || importance[name][8] != sums[8]/10 {
		t.Fatalf("%d tensors, %v", len(importance), err)
	}
	digests := map[string]bool{}
	for _, m := range []map[string][]float32{nil, importance} {
		out := filepath.Join(t.TempDir(), "out.gguf")
		if _, err := export.Requantize(
			t.Context(),
			out,
			g,
			export.Options{Recipe: recipe(t, "Q4_K_S"), Importance: m},
		); err != nil {
			t.Fatal(err)
		}
		made, err := weights.OpenGGUF(out)
		if err != nil {
			t.Fatal(err)
		}
		digests[string(data(t, made, name))] = true
		if err := made.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(digests) != 2 {
		t.Error("the importance changes nothing")
	}
	wrong := map[string][]float32{name: make([]float32, columns-1)}
	_, err = export.Requantize(t.Context(), filepath.Join(t.TempDir(), "out.gguf"), g,
		export.Options{Recipe: recipe(t, "Q4_K_S"), Importance: wrong})
	if fault.CodeOf(err) != fault.Invalid {
		t.Errorf("an importance of another width: %v", err)
	}
	write(named(name+".in_sum2", sums), named(name+".counts", []float32{10, 10, 10, 10, 10, 10, 10}))
	if _, err := export.ReadImportance(path); fault.CodeOf(err) != fault.DataLoss {
		t.Errorf("counts that do not fit: %v", err)
	}
	write()
	if _, err := export.ReadImportance(path); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a file without sums: %v", err)
	}
}
