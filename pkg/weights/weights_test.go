package weights_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// shared finds the folder of test models, or skips.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	dir := os.Getenv("LAMINA_SHARED")
	if dir == "" {
		dir = "../../../shared"
	}
	path := filepath.Join(append([]string{dir}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no %s: set LAMINA_SHARED", path)
	}
	return path
}

func TestDequantize_EveryTypeBitForBit(t *testing.T) {
	var expected struct {
		Files map[string]map[string]struct {
			Type   string `json:"type"`
			N      int    `json:"n"`
			SHA256 string `json:"sha256_f32le"`
		} `json:"files"`
	}
	text, err := os.ReadFile(shared(t, "models/quant-types/expected-dequant.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &expected); err != nil {
		t.Fatal(err)
	}
	if len(expected.Files) < 16 {
		t.Fatalf("only %d files are expected", len(expected.Files))
	}
	for file, tensors := range expected.Files {
		g, err := weights.OpenGGUF(shared(t, "models/quant-types", file))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range tensors {
			info, ok := g.Info(name)
			if !ok || info.DType.String() != want.Type || info.Elements() != want.N {
				t.Errorf("%s: %s is %+v, want %s of %d", file, name, info, want.Type, want.N)
				continue
			}
			data, err := g.Data(name)
			if err != nil {
				t.Fatal(err)
			}
			values := make([]float32, want.N)
			tensor.Dequantize(values, data, info.DType)
			h := sha256.New()
			if err := binary.Write(h, binary.LittleEndian, values); err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(h.Sum(nil)); got != want.SHA256 {
				t.Errorf("%s: %s (%s) dequantises to %s, want %s", file, name, want.Type, got, want.SHA256)
			}
			wide := make([]float64, want.N)
			tensor.Dequantize(wide, data, info.DType)
			for i, v := range values {
				if wide[i] != float64(v) {
					t.Fatalf("%s: %s element %d is %v in float64, %v in float32", file, name, i, wide[i], v)
				}
			}
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpen_EverySharedModel(t *testing.T) {
	opened := 0
	err := filepath.WalkDir(shared(t, "models"), func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var source weights.Source
		switch filepath.Ext(path) {
		case ".gguf":
			source, err = weights.OpenGGUF(path)
		case ".safetensors":
			source, err = weights.OpenSafetensors(path)
		default:
			return nil
		}
		if err != nil {
			t.Errorf("open %s: %v", path, err)
			return nil
		}
		opened++
		for _, name := range source.Names() {
			info, _ := source.Info(name)
			if data, err := source.Data(name); err != nil || int64(len(data)) != info.Bytes {
				t.Errorf("%s: %s has %d bytes, want %d (%v)", path, name, len(data), info.Bytes, err)
			}
		}
		return source.Close()
	})
	if err != nil || opened < 40 {
		t.Errorf("opened %d models: %v", opened, err)
	}
}

func TestFloat16_RoundTripsAndRoundsToNearestEven(t *testing.T) {
	for bits := range 1 << 16 {
		v := tensor.Float16(uint16(bits))
		if v == v && tensor.Float16bits(v) != uint16(bits) {
			t.Fatalf("binary16 %#04x is %v and comes back as %#04x", bits, v, tensor.Float16bits(v))
		}
		// The middle between two neighbours goes to the even one.
		next := tensor.Float16(uint16(bits + 1))
		if bits&0x7fff < 0x7bff && v == v {
			middle := float32((float64(v) + float64(next)) / 2)
			if got := tensor.Float16bits(middle); got != uint16(bits+bits&1) {
				t.Fatalf("the middle of %#04x and its neighbour rounds to %#04x", bits, got)
			}
		}
	}
	for _, c := range []struct {
		in   float32
		want uint16
	}{{1, 0x3f80}, {1 + 0x1p-8, 0x3f80}, {1 + 0x3p-8, 0x3f82}, {float32(math.Inf(-1)), 0xff80}} {
		if got := tensor.BFloat16bits(c.in); got != c.want {
			t.Errorf("bfloat16 of %v is %#04x, want %#04x", c.in, got, c.want)
		}
	}
}

func sample(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	err := weights.EncodeSafetensors(&b, []weights.Named{
		{Name: "b", DType: tensor.F32, Shape: []int{2, 3}, Data: make([]byte, 24)},
		{Name: "a", DType: tensor.BF16, Shape: []int{4}, Data: []byte{1, 2, 3, 4, 5, 6, 7, 8}},
	}, map[string]string{"format": "pt"})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSafetensors_ReadsWhatItWrites(t *testing.T) {
	s, err := weights.ParseSafetensors("sample", sample(t))
	if err != nil {
		t.Fatal(err)
	}
	info, _ := s.Info("a")
	data, err := s.Data("a")
	if err != nil || info.DType != tensor.BF16 || !bytes.Equal(data, []byte{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("a is %+v %v (%v)", info, data, err)
	}
	if s.Metadata()["format"] != "pt" || len(s.Names()) != 2 {
		t.Errorf("metadata %v, names %v", s.Metadata(), s.Names())
	}
}

func TestSafetensors_IndexKeepsInsideItsFolder(t *testing.T) {
	for _, file := range []string{"../outside.safetensors", "/etc/passwd", "a/b.safetensors", ".."} {
		dir := t.TempDir()
		text, _ := json.Marshal(map[string]any{"weight_map": map[string]string{"x": file}})
		if err := os.WriteFile(filepath.Join(dir, "model.safetensors.index.json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := weights.OpenSafetensors(dir)
		var format *weights.FormatError
		if !errors.As(err, &format) || format.Field != "weight_map.x" {
			t.Errorf("index that names %q: %v", file, err)
		}
	}
}

// mutate damages some fields of a file: the way of hostile and of torn files.
func mutate(r *rand.Rand, file []byte) []byte {
	out := bytes.Clone(file)
	for range 1 + r.IntN(4) {
		at := r.IntN(min(len(out), 4096))
		switch r.IntN(4) {
		case 0:
			out[at] ^= 1 << r.IntN(8)
		case 1:
			out[at] = byte(r.Uint32())
		case 2:
			if at+8 <= len(out) {
				binary.LittleEndian.PutUint64(out[at:], []uint64{0, 1, math.MaxUint64, 1 << 62, uint64(len(out)), r.Uint64()}[r.IntN(6)])
			}
		case 3:
			out = out[:at+1]
		}
	}
	return out
}

func TestParse_MutantsGetTypedErrors(t *testing.T) {
	gguf, err := os.ReadFile(shared(t, "models/tiny/gpt2/model-bf16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	safe := sample(t)
	r := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for range 5000 {
		for _, parse := range []func() (weights.Source, error){
			func() (weights.Source, error) { return weights.ParseGGUF("mutant", mutate(r, gguf)) },
			func() (weights.Source, error) { return weights.ParseSafetensors("mutant", mutate(r, safe)) },
		} {
			source, err := parse()
			if err != nil {
				refused++
				var format *weights.FormatError
				if !errors.As(err, &format) {
					t.Fatalf("a mutant got an untyped error: %v", err)
				}
				continue
			}
			for _, name := range source.Names() {
				if _, err := source.Data(name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if refused < 2000 {
		t.Errorf("only %d of 10000 mutants were refused", refused)
	}
}

func FuzzGGUF(f *testing.F) {
	f.Add([]byte("GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if g, err := weights.ParseGGUF("fuzz", data); err == nil {
			for _, name := range g.Names() {
				if _, err := g.Data(name); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func FuzzSafetensors(f *testing.F) {
	f.Add(sample(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := weights.ParseSafetensors("fuzz", data); err == nil {
			for _, name := range s.Names() {
				if _, err := s.Data(name); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
