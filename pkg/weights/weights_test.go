package weights_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
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

func TestDequantize_MXFP4AsHuggingFace(t *testing.T) {
	g, err := weights.OpenGGUF(shared(t, "models/tiny/gpt-oss-mxfp4/model-bf16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	s, err := weights.OpenSafetensors(shared(t, "models/tiny/gpt-oss-mxfp4"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const name = "blk.1.ffn_down_exps.weight"
	info, _ := g.Info(name)
	data, err := g.Data(name)
	if err != nil || info.DType != tensor.MXFP4 {
		t.Fatalf("%s is %v: %v", name, info.DType, err)
	}
	got := make([]float32, info.Elements())
	tensor.Dequantize(got, data, info.DType)
	blocks, err1 := s.Data("model.layers.1.mlp.experts.down_proj_blocks")
	scales, err2 := s.Data("model.layers.1.mlp.experts.down_proj_scales")
	if err1 != nil || err2 != nil || len(got) != 2*len(blocks) {
		t.Fatalf("%d values, %d blocks: %v %v", len(got), len(blocks), err1, err2)
	}
	// There a byte holds neighbours, the first in the low nibble.
	levels := []float64{0, 0.5, 1, 1.5, 2, 3, 4, 6}
	for i, v := range got {
		nibble := blocks[i/2] >> (4 * (i % 2)) & 15
		want := math.Ldexp(levels[nibble&7], int(scales[i/32])-127)
		if nibble > 7 {
			want = -want
		}
		if float64(v) != want {
			t.Fatalf("element %d is %v, want %v", i, v, want)
		}
	}
}

func TestOpenGGUF_LargeVocabularyIsFast(t *testing.T) {
	path := shared(t, "vectors/tokenizer/ggml-vocab-qwen2.gguf")
	best := time.Hour // of processor time, which a busy machine hardly stretches
	for range 3 {
		start := cputime.Process()
		g, err := weights.OpenGGUF(path)
		if err != nil {
			t.Fatal(err)
		}
		best = min(best, cputime.Process()-start)
		if tokens, _ := g.Meta().Strings("tokenizer.ggml.tokens"); len(tokens) < 150_000 {
			t.Errorf("only %d tokens", len(tokens))
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if best > time.Second && !raceEnabled {
		t.Errorf("opening takes %v", best)
	}
}

func TestDigest_DependsOnContent(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	digest := func(path string) string {
		d, err := weights.Digest(path)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d, err := weights.Digest(dir); err == nil {
		t.Errorf("an empty folder has digest %s", d)
	}
	put("model.gguf", "abc")
	if got := digest(filepath.Join(dir,
		"model.gguf")); got != "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("a file's digest is %s", got)
	}
	put("config.json", "{}")
	put("model.safetensors", "x")
	first := digest(dir)
	put("README.md", "does not count")
	if digest(dir) != first {
		t.Error("a readme changes the digest")
	}
	put("model.safetensors", "y")
	second := digest(dir)
	put("config.json", "{}y")
	put("model.safetensors", "")
	if third := digest(dir); first == second || second == third || first == third {
		t.Errorf("contents share a digest: %s %s %s", first, second, third)
	}
}
