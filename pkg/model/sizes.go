package model

import (
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Sizes says how many bytes a model's parts take. It is read from the files' headers.
type Sizes struct {
	// Layers holds the bytes of each layer's tensors, and Read those of them that one row reads, which are
	// fewer if the layer has experts.
	Layers, Read []int64
	// Embedding and Head are the bytes that the first and the last stage need in addition. A tied head has
	// those of the token embedding.
	Embedding, Head int64
}

// OpenHeader opens a model like Open, but a GGUF file may end anywhere behind its header. No stage can be
// loaded from such a file.
func OpenHeader(path string) (*Files, error) {
	at, err := weights.Locate(path)
	if err != nil {
		return nil, err
	}
	if at.Format != weights.FormatGGUF {
		return Open(path)
	}
	g, err := weights.OpenGGUFHeader(at.Path)
	if err != nil {
		return nil, err
	}
	f, err := FromGGUF(g, path)
	if err != nil {
		_ = g.Close()
		return nil, err
	}
	return f, nil
}

// Sizes adds up the sizes of the tensors. Tensors of parts that are not loaded, such as those of a vision
// model, do not count.
func (f *Files) Sizes() Sizes {
	out := Sizes{Layers: make([]int64, len(f.Spec.Layers)), Read: make([]int64, len(f.Spec.Layers))}
	tokens := f.tensor(f.Spec.Embedding.Tokens, ".weight")
	for _, name := range f.Source.Names() {
		info, _ := f.Source.Info(name)
		layer, kind := placeOf(name)
		switch {
		case kind == layerTensor && layer < len(out.Layers):
			read := info.Bytes
			if x := f.Spec.Layers[layer].FFN.Experts; x != nil && x.Count > 0 && strings.Contains(name, "exp") {
				read = read / int64(x.Count) * int64(x.TopK)
			}
			out.Layers[layer] += info.Bytes
			out.Read[layer] += read
		case kind == embeddingTensor:
			out.Embedding += info.Bytes
		case kind == headTensor && (!f.Spec.Head.Tied || name != f.tensor(f.Spec.Head.Name, ".weight")):
			out.Head += info.Bytes
		}
	}
	if info, ok := f.Source.Info(tokens); ok && f.Spec.Head.Tied {
		out.Head += info.Bytes
	}
	return out
}

// KVBytes returns the bytes of the keys and values of one position in one layer.
func (s *Spec) KVBytes(t kernel.KVType) int64 {
	a := &s.Layers[0].Attention // all have the same
	n := int64(2 * a.KVHeads)
	if s.Encoder() && t == kernel.KVAuto { // as in Stage.CacheConfig
		t = kernel.KVFull
	}
	switch t.For(s.Width) {
	case kernel.KVF16:
		return n * int64(a.HeadDim) * 2
	case kernel.KVQ8:
		return n * int64(a.HeadDim+4) // with a scale for each vector
	}
	return n * int64(a.HeadDim) * 4
}

// tensorPlace says to which part of a model a tensor belongs.
type tensorPlace int

const (
	otherTensor tensorPlace = iota
	layerTensor
	embeddingTensor
	headTensor
)

// placeOf returns the part of a model that a tensor belongs to, by its name in GGUF or Hugging Face files, and
// the number of its layer.
func placeOf(name string) (layer int, kind tensorPlace) {
	for again := true; again; {
		again = false
		for _, prefix := range []string{"model.", "transformer.", "language_model.", "text_model.", "bert.", "roberta.",
			"encoder."} {
			if rest, ok := strings.CutPrefix(name, prefix); ok {
				name, again = rest, true
			}
		}
	}
	for _, prefix := range []string{"blk.", "layers.", "h.", "layer."} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			number, _, _ := strings.Cut(rest, ".")
			if layer, err := strconv.Atoi(number); err == nil && layer >= 0 {
				return layer, layerTensor
			}
		}
	}
	first, _, _ := strings.Cut(name, ".")
	switch first {
	case "token_embd", "token_embd_norm", "embed_tokens", "embeddings", "wte", "position_embd", "wpe", "token_types",
		"rope_freqs":
		return 0, embeddingTensor
	case "output", "output_norm", "lm_head", "norm", "ln_f":
		return 0, headTensor
	}
	return 0, otherTensor
}
