package model

import (
	"cmp"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// BERT and XLM-RoBERTa: encoders with learned positions, a token type and a LayerNorm in the embedding,
// bidirectional attention, and a LayerNorm after each addition to the residual. They have no head; the
// pooler and the heads that files may hold are not read.
func bert() architecture {
	return architecture{
		name: "bert", modelTypes: []string{"bert"}, gguf: []string{"bert"}, class: "BertModel",
		init:   Initialization{Std: 0.02},
		readHF: func(h *hfFields) (Spec, error) { return h.encoder("bert", "bert.", 0) },
		readGGUF: func(g *ggufFields) (Spec, error) {
			d, err := g.shape()
			if err != nil {
				return Spec{}, err
			}
			d.NormEps = g.float("attention.layer_norm_epsilon", 1e-12)
			types := 0
			if info, ok := g.file.Info("token_types.weight"); ok && len(info.Shape) == 2 {
				types = info.Shape[0]
			}
			// Files of XLM-RoBERTa have this name too. llama.cpp's converter cuts off the rows that it
			// never uses, so that the first row is that of position 0.
			return bertSpec("bert", "", d, types, 0), d.check()
		},
	}
}

func xlmRoberta() architecture {
	return architecture{
		name: "xlm-roberta", modelTypes: []string{"xlm-roberta", "roberta"}, class: "XLMRobertaModel",
		init: Initialization{Std: 0.02},
		// Positions begin after the id of padding.
		readHF: func(h *hfFields) (Spec, error) {
			return h.encoder("xlm-roberta", "roberta.", h.int("pad_token_id", 1)+1)
		},
	}
}

// encoder reads the settings of BERT. Files of models with a head put a prefix before the names of tensors.
func (h *hfFields) encoder(architecture, prefix string, offset int) (Spec, error) {
	d := Shape{
		Layers: h.need("num_hidden_layers"), Width: h.need("hidden_size"), Heads: h.need("num_attention_heads"),
		FF: h.need("intermediate_size"), Vocab: h.need("vocab_size"),
		Context: h.need("max_position_embeddings") - offset, NormEps: h.float("layer_norm_eps", 1e-12),
	}
	if kind := h.text("position_embedding_type", "absolute"); kind != "absolute" {
		return Spec{}, &UnsupportedError{"position_embedding_type", kind, "absolute"}
	}
	if h.bool("is_decoder", false) {
		return Spec{}, &UnsupportedError{"is_decoder", "true", "encoders"}
	}
	if d.Heads < 1 || d.Width%d.Heads != 0 {
		h.fail("num_attention_heads", "%d does not divide hidden_size %d", d.Heads, d.Width)
		return Spec{}, h.err()
	}
	d.KVHeads, d.HeadDim = d.Heads, d.Width/d.Heads
	if err := cmp.Or(h.err(), d.check()); err != nil {
		return Spec{}, err
	}
	s := bertSpec(architecture, prefix, d, h.int("type_vocab_size", 2), offset)
	s.setAct(h.act("hidden_act", "gelu"))
	return s, h.err()
}

// bertSpec describes an encoder with the given number of token types. offset is the row of position 0 in
// the table of positions.
func bertSpec(architecture, prefix string, d Shape, types, offset int) Spec {
	named := func(name, gguf string) Name { return Name{Param: name, HF: prefix + name, GGUF: gguf} }
	norm := func(n Name) Norm { return Norm{Name: n, Kind: LayerNorm, Eps: d.NormEps} }
	s := Spec{
		Architecture: architecture, Width: d.Width, Vocab: d.Vocab, Context: d.Context,
		Embedding: Embedding{
			Tokens:    named("embeddings.word_embeddings", "token_embd"),
			Positions: named("embeddings.position_embeddings", "position_embd"), Offset: offset,
			Norm: norm(named("embeddings.LayerNorm", "token_embd_norm")),
		},
	}
	if types > 0 {
		s.Embedding.Types, s.Embedding.TypeCount = named("embeddings.token_type_embeddings", "token_types"), types
	}
	for l := range min(d.Layers, maxLayers+1) { // Validate refuses more
		name := func(hf, gguf string) Name {
			n := layerNames("encoder.layer", l)(hf, gguf)
			n.HF = prefix + n.Param
			return n
		}
		linear := func(hf, gguf string) Linear { return Linear{Name: name(hf, gguf), Bias: true} }
		s.Layers = append(s.Layers, Layer{
			Attention: Attention{
				Heads: d.Heads, KVHeads: d.KVHeads, HeadDim: d.HeadDim, Bidirectional: true,
				Q: linear("attention.self.query", "attn_q"), K: linear("attention.self.key", "attn_k"),
				V: linear("attention.self.value", "attn_v"), O: linear("attention.output.dense", "attn_output"),
				AddNorm: norm(name("attention.output.LayerNorm", "attn_output_norm")),
			},
			FFN: FeedForward{
				Width: d.FF, Act: kernel.GELU,
				Up: linear("intermediate.dense", "ffn_up"), Down: linear("output.dense", "ffn_down"),
				AddNorm: norm(name("output.LayerNorm", "layer_output_norm")),
			},
		})
	}
	return s
}
