package export_test

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/export"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// writeLayers writes a GGUF file of 8 layers with small matrices.
func writeLayers(t *testing.T, experts uint32) *weights.GGUF {
	t.Helper()
	var tensors []weights.Streamed
	add := func(name string) {
		raw := tensor.Bytes(make([]float32, 256))
		tensors = append(tensors, weights.Streamed{
			Info: weights.Info{Name: name + ".weight", DType: tensor.F32, Shape: []int{1, 256}, Bytes: int64(len(raw))},
			Write: func(w io.Writer) error {
				_, err := w.Write(raw)
				return err
			},
		})
	}
	add("token_embd")
	add("output")
	for layer := range 8 {
		for _, kind := range []string{"attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"} {
			add(fmt.Sprintf("blk.%d.%s", layer, kind))
		}
	}
	path := filepath.Join(t.TempDir(), "layers.gguf")
	fields := []weights.Field{{Key: "general.architecture", Value: "llama"},
		{Key: "llama.block_count", Value: uint32(8)}, {Key: "llama.expert_count", Value: experts}}
	if err := weights.WriteFile(path, func(w io.Writer) error {
		return weights.StreamGGUF(w, fields, tensors)
	}); err != nil {
		t.Fatal(err)
	}
	g, err := weights.OpenGGUF(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// TestRequantize_MixturesOfEightLayers compares the types of a file's matrices with those that llama-quantize chooses.
// A list names the layers whose matrices differ from the rest.
func TestRequantize_MixturesOfEightLayers(t *testing.T) {
	for _, c := range []struct {
		recipe, kind string
		experts      uint32
		weighed      bool
		layers       string // of other
		rest, other  tensor.DType
	}{
		{"Q4_K_M", "attn_v", 0, false, "0 3 6 7", tensor.Q4_K, tensor.Q6_K},
		{"Q4_K_M", "ffn_down", 0, false, "0 3 6 7", tensor.Q4_K, tensor.Q6_K},
		{"Q4_K_M", "ffn_up", 0, false, "", tensor.Q4_K, 0},
		{"Q5_K_M", "attn_v", 0, false, "0 3 6 7", tensor.Q5_K, tensor.Q6_K},
		{"Q5_K_M", "ffn_down", 0, false, "0 3 6 7", tensor.Q5_K, tensor.Q6_K},
		{"Q4_K_S", "attn_v", 0, false, "0 1 2 3", tensor.Q4_K, tensor.Q5_K},
		{"Q4_K_S", "ffn_down", 0, false, "0", tensor.Q4_K, tensor.Q5_K},
		{"Q5_K_S", "ffn_down", 0, false, "", tensor.Q5_K, 0},
		{"Q6_K", "ffn_down", 0, false, "", tensor.Q6_K, 0},
		{"Q4_K_M", "attn_v", 8, false, "", tensor.Q8_0, 0},
		{"Q4_K_M", "attn_k", 8, false, "", tensor.Q8_0, 0},
		{"Q4_K_M", "attn_output", 8, false, "", tensor.Q5_K, 0},
		{"Q4_0", "ffn_down", 0, false, "", tensor.Q4_0, 0},
		{"Q4_0", "ffn_down", 0, true, "0", tensor.Q4_0, tensor.Q4_1},
		{"Q5_0", "ffn_down", 0, true, "0", tensor.Q5_0, tensor.Q5_1},
		{"Q4_0", "ffn_up", 0, true, "", tensor.Q4_0, 0},
		{"Q4_1", "ffn_down", 0, true, "", tensor.Q4_1, 0},
	} {
		name := fmt.Sprintf("%s %s, %d experts, weighed %v", c.recipe, c.kind, c.experts, c.weighed)
		o := export.Options{Recipe: recipe(t, c.recipe)}
		if c.weighed {
			o.Importance = map[string][]float32{}
		}
		out := filepath.Join(t.TempDir(), "out.gguf")
		if _, err := export.Requantize(t.Context(), out, writeLayers(t, c.experts), o); err != nil {
			t.Fatal(err)
		}
		g, err := weights.OpenGGUF(out)
		if err != nil {
			t.Fatal(err)
		}
		for layer := range 8 {
			want := c.rest
			if strings.Contains(c.layers, fmt.Sprint(layer)) {
				want = c.other
			}
			info, _ := g.Info(fmt.Sprintf("blk.%d.%s.weight", layer, c.kind))
			if info.DType != want {
				t.Errorf("%s: layer %d has %v, want %v", name, layer, info.DType, want)
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}
