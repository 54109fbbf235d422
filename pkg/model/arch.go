package model

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// architecture holds what the file of an architecture defines.
type architecture struct {
	name       string         // Spec.Architecture
	modelTypes []string       // model_type in config.json
	gguf       []string       // general.architecture in GGUF files
	class      string         // its class in transformers
	usual      map[string]int // see hfFields

	// init is the initialization that the architecture is usually trained from. config.json may have
	// another deviation.
	init Initialization

	readHF   func(h *hfFields) (Spec, error)
	readGGUF func(g *ggufFields) (Spec, error) // nil if gguf is empty
	writeHF  func(s *Spec) map[string]any      // config.json; nil if it cannot be written

	// How GGUF files differ from Hugging Face's.
	interleavedGGUF bool // rows of queries and keys are ordered for rotating pairs (2i, 2i+1)
	addedGGUF       bool // gains of norms with OnePlus are stored as 1 + gain
}

// architectures lists all architectures. A new one is a new file and an entry here.
func architectures() []architecture {
	return []architecture{
		llama(), mistral(), mixtral(), qwen2(), qwen3(), qwen3MoE(), gemma2(), gemma3(), phi3(), smolLM3(), gptOSS(),
		gpt2(), bert(), xlmRoberta(),
	}
}

// supported lists the names of the architectures.
func supported() string {
	var names []string
	for _, a := range architectures() {
		names = append(names, a.name)
	}
	return strings.Join(names, ", ")
}

func architectureOf(name string) (architecture, bool) {
	all := architectures()
	i := slices.IndexFunc(all, func(a architecture) bool { return a.name == name })
	if i < 0 {
		return architecture{}, false
	}
	return all[i], true
}

// languageOf maps the model_type of multimodal models to that of their language model, for
// a text_config without a model_type. Models whose attention over text is not causal are
// left out.
func languageOf() map[string]string {
	return map[string]string{
		"gemma3": "gemma3_text", "mistral3": "mistral", "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3",
		"llava": "llama", "llava_next": "llama", "llava_onevision": "qwen2", "internvl": "qwen2", "idefics3": "llama",
		"smolvlm": "llama",
		"voxtral": "llama",
	}
}

// language returns the settings and the model_type of the language model: those of
// text_config for multimodal models that have one.
func (h *hfFields) language() (*hfFields, string) {
	kind := h.text("model_type", "")
	otherwise, multimodal := languageOf()[kind]
	if !multimodal {
		return h, kind
	}
	if text := h.object("text_config"); text != nil {
		text.outer = h
		return text, text.text("model_type", otherwise)
	}
	return h, otherwise
}

// ParseHF reads a config.json, with the rope settings in either form. For a multimodal model
// it describes the language model.
func ParseHF(text []byte) (Spec, error) {
	top, err := readHF("config.json", text)
	if err != nil {
		return Spec{}, err
	}
	h, kind := top.language()
	all := architectures()
	i := slices.IndexFunc(all, func(a architecture) bool { return slices.Contains(a.modelTypes, kind) })
	if i < 0 {
		return Spec{}, &UnsupportedError{"model_type", kind, supported()}
	}
	h.usual = all[i].usual
	s, err := all[i].readHF(h)
	if err != nil {
		return Spec{}, err
	}
	s.Init = all[i].init
	if s.Init.Std = h.float("initializer_range", s.Init.Std); !(s.Init.Std >= 0 && s.Init.Std <= 1) {
		h.fail("initializer_range", "want a number from 0 to 1, got %g", s.Init.Std)
	}
	for name, ids := range map[string]*[]int32{"bos_token_id": &s.BOS, "eos_token_id": &s.EOS} {
		if *ids = h.ids(name, s.Vocab); *ids == nil && h.outer != nil {
			*ids = h.outer.ids(name, s.Vocab)
		}
	}
	for _, name := range []string{"vision_config", "audio_config"} {
		if top.values[name] != nil {
			s.Unused = append(s.Unused, name)
		}
	}
	if h.err() != nil {
		return Spec{}, h.err()
	}
	return s, s.Validate()
}

// ConfigJSON returns a config.json that ParseHF reads back as an equal model. If the
// architecture's config.json cannot express the model, the error is an *UnsupportedError.
func ConfigJSON(s Spec) ([]byte, error) {
	if s.Architecture == "llama" && s.Window() > 0 {
		s.Architecture, s.Init = "mistral", mistral().init // GGUF files call it llama
	}
	a, ok := architectureOf(s.Architecture)
	if !ok || a.writeHF == nil {
		return nil, &UnsupportedError{"architecture to write", s.Architecture, supported()}
	}
	out := a.writeHF(&s)
	out["architectures"], out["torch_dtype"] = []string{a.class}, "float32"
	out["initializer_range"] = s.Init.Std
	// Without an explicit null, transformers assumes the ids of the published model.
	for name, ids := range map[string][]int32{"bos_token_id": s.BOS, "eos_token_id": s.EOS, "pad_token_id": nil} {
		switch len(ids) {
		case 0:
			out[name] = nil
		case 1:
			out[name] = ids[0]
		default:
			out[name] = ids
		}
	}
	text, err := json.MarshalIndent(spelled(out), "", "  ")
	if err != nil {
		return nil, err
	}
	if again, err := ParseHF(text); err != nil || !again.Same(&s) {
		return nil, &UnsupportedError{"model to write", s.Architecture, "settings that its config.json can express"}
	}
	return text, nil
}

// spelled returns settings in which every float64 has a decimal point or an exponent, since transformers
// refuses an integer where it wants a float.
func spelled(settings map[string]any) map[string]any {
	out := make(map[string]any, len(settings))
	for name, v := range settings {
		switch v := v.(type) {
		case map[string]any:
			out[name] = spelled(v)
			continue
		case float64:
			text := strconv.FormatFloat(v, 'g', -1, 64)
			if !strings.ContainsAny(text, ".e") {
				text += ".0"
			}
			out[name] = json.Number(text)
			continue
		}
		out[name] = v
	}
	return out
}

// Same reports whether two specs compute the same results from the same weights.
func (s *Spec) Same(t *Spec) bool {
	if len(s.Layers) != len(t.Layers) {
		return false
	}
	for l := range s.Layers {
		a, b := s.Layers[l].Attention.Rope, t.Layers[l].Attention.Rope
		if (a == nil) != (b == nil) {
			return false
		}
		if a != nil && ((a.Type == "dynamic") != (b.Type == "dynamic") || !reflect.DeepEqual(a.rotary(), b.rotary())) {
			return false
		}
	}
	plain := func(s *Spec) Spec {
		out := s.clone(func(l *Layer, _ *Rope) { l.Attention.Rope, l.Attention.Scale = nil, l.Attention.heads().Scale })
		out.Unused = nil
		return out
	}
	return reflect.DeepEqual(plain(s), plain(t))
}

// decoderJSON returns the settings of config.json that the llama family shares.
func (s *Spec) decoderJSON(modelType string) map[string]any {
	first := &s.Layers[0]
	a, f := &first.Attention, &first.FFN
	out := map[string]any{
		"model_type":  modelType,
		"hidden_size": s.Width, "num_hidden_layers": len(s.Layers), "num_attention_heads": a.Heads,
		"num_key_value_heads": a.KVHeads,
		"head_dim":            a.HeadDim, "intermediate_size": f.Width, "vocab_size": s.Vocab,
		"max_position_embeddings": s.Context,
		"rms_norm_eps":            s.Norm.Eps, "hidden_act": activationName(f.Act), "tie_word_embeddings": s.Head.Tied,
	}
	if r := s.Rope(); r != nil {
		out["rope_theta"] = r.Base
		if r.Dims != a.HeadDim {
			out["partial_rotary_factor"] = float64(r.Dims) / float64(a.HeadDim)
		}
		if r.Type != "" {
			out["rope_scaling"] = r.json()
		}
	}
	return out
}

// NewLlama describes a llama to train from scratch. Sizes that are 0 in d are derived from
// the others.
func NewLlama(d Shape) Spec {
	if d.HeadDim == 0 && d.Heads > 0 {
		d.HeadDim = d.Width / d.Heads
	}
	if d.KVHeads == 0 {
		d.KVHeads = d.Heads
	}
	if d.NormEps == 0 {
		d.NormEps = 1e-5
	}
	if d.Rope.Base == 0 {
		d.Rope.Base = 10000
	}
	d.Rope.Dims = d.HeadDim
	s := decoder("llama", d)
	s.Init = llama().init
	return s
}
