package model_test

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// ggufText returns a GGUF file with metadata and F32 tensors of zeros. Shapes are outermost first.
func ggufText(meta map[string]any, tensors map[string][]int) []byte {
	le := binary.LittleEndian
	text := func(b []byte, s string) []byte { return append(le.AppendUint64(b, uint64(len(s))), s...) }
	b := le.AppendUint32([]byte("GGUF"), 3)
	b = le.AppendUint64(le.AppendUint64(b, uint64(len(tensors))), uint64(len(meta)))
	for _, key := range slices.Sorted(maps.Keys(meta)) {
		b = text(b, key)
		switch v := meta[key].(type) {
		case int:
			b = le.AppendUint32(le.AppendUint32(b, 4), uint32(v))
		case float64:
			b = le.AppendUint32(le.AppendUint32(b, 6), math.Float32bits(float32(v)))
		case string:
			b = text(le.AppendUint32(b, 8), v)
		case []bool:
			b = le.AppendUint64(le.AppendUint32(le.AppendUint32(b, 9), 7), uint64(len(v)))
			for _, x := range v {
				b = append(b, map[bool]byte{true: 1}[x])
			}
		}
	}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		shape := tensors[name]
		b = le.AppendUint32(text(b, name), uint32(len(shape)))
		n := 4
		for i := range shape {
			b = le.AppendUint64(b, uint64(shape[len(shape)-1-i]))
			n *= shape[i]
		}
		b = le.AppendUint64(le.AppendUint32(b, 0), uint64(size))
		size += (n + 31) / 32 * 32
	}
	return append(b, make([]byte, 32-len(b)%32+size)...)
}

// ggufConfig reads a small file of an architecture with additional metadata and tensors. The
// keys of more lack the architecture's prefix.
func ggufConfig(t *testing.T, arch string, more map[string]any, tensors map[string][]int) model.Spec {
	t.Helper()
	meta := map[string]any{"general.architecture": arch}
	for key, v := range map[string]any{"block_count": 3, "embedding_length": 32, "attention.head_count": 4,
		"feed_forward_length": 128, "context_length": 64} {
		meta[arch+"."+key] = v
	}
	for key, v := range more {
		meta[arch+"."+key] = v
	}
	all := map[string][]int{"token_embd.weight": {40, 32}}
	maps.Copy(all, tensors)
	g, err := weights.ParseGGUF(arch, ggufText(meta, all))
	if err != nil {
		t.Fatal(err)
	}
	f, err := model.FromGGUF(g, arch)
	if err != nil {
		t.Fatal(err)
	}
	return f.Spec
}

func TestFromGGUF_WindowsOfLayers(t *testing.T) {
	for _, c := range []struct {
		arch   string
		meta   map[string]any
		window int
		full   []bool
	}{
		{"gemma2", nil, 4096, []bool{false, true, false}},
		{"gemma2", map[string]any{"attention.sliding_window": 9}, 9, []bool{false, true, false}},
		{"gemma3", nil, 0, nil},
		{"gemma3", map[string]any{"attention.sliding_window": 9}, 9, []bool{false, false, false}},
		{"gemma3", map[string]any{"attention.sliding_window": 9, "attention.sliding_window_pattern": 3}, 9,
			[]bool{false, false, true}},
		{"gpt-oss", map[string]any{"attention.sliding_window": 9,
			"attention.sliding_window_pattern": []bool{false, true, true}}, 9, []bool{true, false, false}},
	} {
		meta := c.meta
		if c.arch == "gpt-oss" {
			meta = maps.Clone(meta)
			meta["expert_count"], meta["expert_used_count"] = 4, 2
		}
		if got, want := windows(ggufConfig(t, c.arch, meta, nil)),
			windowed(3, c.window, c.full); !slices.Equal(got, want) {
			t.Errorf("%s with %v has windows %v, want %v", c.arch, c.meta, got, want)
		}
	}
}

func TestFromGGUF_MagnitudesOfYaRN(t *testing.T) {
	paper := 0.1*math.Log(4) + 1
	for _, c := range []struct {
		more map[string]any
		want float64
	}{
		{nil, 0}, // the paper's
		{map[string]any{"rope.scaling.attn_factor": 0.5}, 0.5 * paper},
		{map[string]any{"rope.scaling.yarn_attn_factor": 0.75}, 0.75},
		{map[string]any{"rope.scaling.yarn_log_multiplier": 2.0}, paper / (0.2*math.Log(4) + 1)},
	} {
		meta := map[string]any{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
			"rope.scaling.original_context_length": 16}
		maps.Copy(meta, c.more)
		if r := new(ggufConfig(t, "qwen2", meta, nil)).Rope(); math.Abs(r.Attention-c.want) > 1e-9 || r.Original != 16 {
			t.Errorf("%v gives magnitude %g, want %g", c.more, r.Attention, c.want)
		}
	}
}

func TestFromGGUF_ReadsOtherMetadata(t *testing.T) {
	if c := ggufConfig(t, "gemma3", map[string]any{"final_logit_softcapping": 3.0}, nil); c.Head.Softcap != 3 ||
		c.Layers[0].Attention.Softcap != 0 {
		t.Errorf("gemma3 bounds logits by %g, scores by %g; want 3 and none", c.Head.Softcap,
			c.Layers[0].Attention.Softcap)
	}
	if c := ggufConfig(t, "gpt2", nil, map[string][]int{"blk.0.ffn_up.weight": {77, 32}}); c.Layers[2].FFN.Width != 77 {
		t.Errorf("gpt2's feed-forward is %d wide, its matrix 77", c.Layers[2].FFN.Width)
	}
	meta := map[string]any{"general.architecture": "phi3", "phi3.rope.scaling.type": "longrope", "phi3.block_count": 1,
		"phi3.embedding_length":     32,
		"phi3.attention.head_count": 4, "phi3.feed_forward_length": 8, "phi3.context_length": 8}
	g, err := weights.ParseGGUF("phi3",
		ggufText(meta, map[string][]int{"token_embd.weight": {4, 32}, "rope_factors_short.weight": {4},
			"rope_factors_long.weight": {4}}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := model.FromGGUF(g, "phi3"); err == nil ||
		err.Error() != "read model: rope factors: want positive numbers, got 0 at index 0" { // of zeros, but read
		t.Errorf("phi3's longrope: %v", err)
	}
}

func TestFromGGUF_ScalesOfNVFP4AreRefused(t *testing.T) {
	le := binary.LittleEndian
	text := func(b []byte, s string) []byte { return append(le.AppendUint64(b, uint64(len(s))), s...) }
	file := func(scaled string) []byte {
		b := le.AppendUint32([]byte("GGUF"), 3)
		b = le.AppendUint64(le.AppendUint64(b, 2), 1)
		b = text(le.AppendUint32(text(b, "general.architecture"), 8), "llama")
		b = le.AppendUint64(le.AppendUint32(text(b, "blk.0.attn_q.weight"), 1), 64)
		b = le.AppendUint64(le.AppendUint32(b, 40), 0) // NVFP4, at byte 0
		b = le.AppendUint64(le.AppendUint32(text(b, scaled), 1), 1)
		b = le.AppendUint64(le.AppendUint32(b, 0), 64) // F32, at byte 64
		return append(b, make([]byte, 32-len(b)%32+96)...)
	}
	refused := func(name string) bool {
		g, err := weights.ParseGGUF("nvfp4", file(name))
		if err != nil {
			t.Fatal(err)
		}
		_, err = model.FromGGUF(g, "nvfp4")
		return err != nil && strings.Contains(err.Error(), name)
	}
	if !refused("blk.0.attn_q.scale") {
		t.Error("a scale that would be ignored is taken")
	}
	if refused("blk.0.attn_k.scale") {
		t.Error("a tensor without an NVFP4 matrix is refused")
	}
}
