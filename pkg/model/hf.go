package model

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// The architectures of config.json's model_type.
const supported = "llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, smollm3, mixtral, qwen3_moe, gpt-oss and gpt2 are"

// hfRope is rope_scaling, or rope_parameters with rope_theta inside.
type hfRope struct {
	Type       string    `json:"rope_type"`
	OldType    string    `json:"type"`
	Theta      *float64  `json:"rope_theta"`
	Factor     float64   `json:"factor"`
	LowFreq    float64   `json:"low_freq_factor"`
	HighFreq   float64   `json:"high_freq_factor"`
	Original   int       `json:"original_max_position_embeddings"`
	BetaFast   *float64  `json:"beta_fast"`
	BetaSlow   *float64  `json:"beta_slow"`
	Attention  *float64  `json:"attention_factor"`
	MScale     *float64  `json:"mscale"`
	MScaleAll  *float64  `json:"mscale_all_dim"`
	Truncate   *bool     `json:"truncate"`
	PartialDim *float64  `json:"partial_rotary_factor"`
	Short      []float32 `json:"short_factor"`
	Long       []float32 `json:"long_factor"`
	Full       *hfRope   `json:"full_attention"` // by kind of layer
	Sliding    *hfRope   `json:"sliding_attention"`
}

// hfConfig is what Lamina reads of config.json.
type hfConfig struct {
	ModelType  string          `json:"model_type"`
	Width      int             `json:"hidden_size"`
	Layers     int             `json:"num_hidden_layers"`
	Heads      int             `json:"num_attention_heads"`
	KVHeads    *int            `json:"num_key_value_heads"`
	HeadDim    *int            `json:"head_dim"`
	FF         int             `json:"intermediate_size"`
	Vocab      int             `json:"vocab_size"`
	Context    int             `json:"max_position_embeddings"`
	RMSEps     *float64        `json:"rms_norm_eps"`
	Act        string          `json:"hidden_act"`
	AttnBias   *bool           `json:"attention_bias"`
	MLPBias    bool            `json:"mlp_bias"`
	Tied       *bool           `json:"tie_word_embeddings"`
	Theta      *float64        `json:"rope_theta"`
	Scaling    *hfRope         `json:"rope_scaling"`
	Parameters *hfRope         `json:"rope_parameters"`
	Partial    *float64        `json:"partial_rotary_factor"`
	Window     json.RawMessage `json:"sliding_window"` // missing and null differ
	MaxWindow  *int            `json:"max_window_layers"`
	LayerTypes []string        `json:"layer_types"`
	UseWindow  *bool           `json:"use_sliding_window"`
	Original   int             `json:"original_max_position_embeddings"` // phi3

	NoRope      []int `json:"no_rope_layers"` // smollm3: 0 where there is none
	NoRopeEvery *int  `json:"no_rope_layer_interval"`

	// Of mixtures.
	Experts    *int     `json:"num_local_experts"`
	OldExperts *int     `json:"num_experts"`
	TopK       *int     `json:"num_experts_per_tok"`
	ExpertFF   *int     `json:"moe_intermediate_size"`
	NormTopK   *bool    `json:"norm_topk_prob"`
	SparseStep *int     `json:"decoder_sparse_step"`
	MLPOnly    []int    `json:"mlp_only_layers"`
	GLUAlpha   *float64 `json:"swiglu_alpha"`
	GLULimit   *float64 `json:"swiglu_limit"`

	// Gemma's.
	Activation  string          `json:"hidden_activation"`
	QueryScalar *float64        `json:"query_pre_attn_scalar"`
	AttnCap     json.RawMessage `json:"attn_logit_softcapping"`
	LogitCap    json.RawMessage `json:"final_logit_softcapping"`
	LocalTheta  *float64        `json:"rope_local_base_freq"`
	Pattern     *int            `json:"sliding_window_pattern"`
	OldPattern  *int            `json:"_sliding_window_pattern"`
	BOS         *int            `json:"bos_token_id"`
	EOS         json.RawMessage `json:"eos_token_id"`

	// GPT-2's names.
	NEmbd    int      `json:"n_embd"`
	NLayer   int      `json:"n_layer"`
	NHead    int      `json:"n_head"`
	NInner   *int     `json:"n_inner"`
	NPos     int      `json:"n_positions"`
	LNEps    *float64 `json:"layer_norm_epsilon"`
	Function string   `json:"activation_function"`
	Scaled   *bool    `json:"scale_attn_weights"`
	ByLayer  bool     `json:"scale_attn_by_inverse_layer_idx"`
}

// ParseHF reads the hyper-parameters of a config.json, with either spelling of the
// rope settings.
func ParseHF(text []byte) (Config, error) {
	var h hfConfig
	if err := json.Unmarshal(text, &h); err != nil {
		return Config{}, &FieldError{"config.json", err.Error()}
	}
	var c Config
	var err error
	switch h.ModelType {
	case "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "mixtral", "qwen3_moe", "gpt_oss":
		c, err = h.llama()
	case "gpt2":
		c, err = h.gpt2()
	default:
		return Config{}, &UnsupportedError{"model_type", h.ModelType, supported}
	}
	if err != nil {
		return Config{}, err
	}
	c.Architecture = strings.TrimSuffix(h.ModelType, "_text")
	if c.Architecture == "gpt_oss" {
		c.Architecture = "gpt-oss"
	}
	c.BOS, c.EOS = or(h.BOS, -1), firstID(h.EOS)
	return c, c.Validate()
}

// firstID reads an id, or the first of a list of ids.
func firstID(raw json.RawMessage) int {
	var id *int
	var list []int
	switch {
	case json.Unmarshal(raw, &id) == nil && id != nil:
		return *id
	case json.Unmarshal(raw, &list) == nil && len(list) > 0:
		return list[0]
	}
	return -1
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// activation maps Hugging Face's names.
func activation(name string) (kernel.Act, error) {
	switch name {
	case "", "silu", "swish":
		return kernel.SiLU, nil
	case "gelu_new", "gelu_pytorch_tanh", "gelu_fast":
		return kernel.GELUTanh, nil
	case "gelu":
		return kernel.GELU, nil
	}
	return 0, &UnsupportedError{"activation", name, "silu, gelu, gelu_new and gelu_pytorch_tanh are"}
}

// activationName is activation's inverse.
func activationName(a kernel.Act) string {
	return map[kernel.Act]string{kernel.SiLU: "silu", kernel.GELUTanh: "gelu_pytorch_tanh", kernel.GELU: "gelu"}[a]
}

// rope reads the rope settings, old and new.
func (h *hfConfig) rope(headDim int, p *hfRope) (Rope, error) {
	r := Rope{Base: 10000, Dims: headDim}
	if h.gemma3() {
		r.Base = 1e6
	}
	if h.Theta != nil {
		r.Base = *h.Theta
	}
	partial := h.Partial
	if p != nil {
		if p.Theta != nil {
			r.Base = *p.Theta
		}
		if p.PartialDim != nil {
			partial = p.PartialDim
		}
		if p.Original == 0 {
			p.Original = h.Original
		}
		if err := r.scaling(p, h.Context); err != nil {
			return r, err
		}
	}
	if partial != nil {
		r.Dims = int(float64(headDim) * *partial)
	}
	return r, nil
}

func (r *Rope) scaling(p *hfRope, context int) error {
	r.Type = p.Type
	if r.Type == "" {
		r.Type = p.OldType
	}
	if r.Type == "default" {
		r.Type = ""
	}
	if r.Type == "" {
		return nil
	}
	r.Factor, r.Original = p.Factor, p.Original
	if r.Type == "yarn" && r.Factor == 0 && r.Original > 0 {
		r.Factor = float64(context) / float64(r.Original)
	}
	if r.Type == "su" {
		r.Type = "longrope"
	}
	if r.Type == "longrope" {
		return r.longrope(p, context)
	}
	if !(r.Factor > 0) {
		return &FieldError{"rope factor", fmt.Sprintf("%g is not positive", r.Factor)}
	}
	switch r.Type {
	case "linear":
		return nil
	case "llama3":
		r.LowFreq, r.HighFreq = p.LowFreq, p.HighFreq
		if !(r.LowFreq > 0 && r.HighFreq > r.LowFreq && r.Original > 0) {
			return &FieldError{"rope scaling", "llama3 needs low_freq_factor < high_freq_factor and original_max_position_embeddings"}
		}
		return nil
	case "yarn":
		r.BetaFast, r.BetaSlow = or(p.BetaFast, 32), or(p.BetaSlow, 1)
		r.KeepRamp = !or(p.Truncate, true)
		if r.Original == 0 {
			r.Original = context
		}
		switch {
		case p.Attention != nil:
			r.Attention = *p.Attention
		case p.MScale != nil && p.MScaleAll != nil && *p.MScale != 0 && *p.MScaleAll != 0:
			r.Attention = yarnScale(r.Factor, *p.MScale) / yarnScale(r.Factor, *p.MScaleAll)
		}
		return nil
	}
	return &UnsupportedError{"rope type", r.Type, "default, linear, llama3 and yarn are"}
}

// longrope is Phi-3's (LongRoPE, arXiv 2402.13753): frequencies are divided by one list
// of factors within the original context and by another beyond, and magnitudes grow with
// the logarithm of the extension.
func (r *Rope) longrope(p *hfRope, context int) error {
	if r.Original < 1 {
		return &FieldError{"original_max_position_embeddings", "is missing, which longrope needs"}
	}
	r.Factors, r.Far = p.Short, p.Long
	if r.Factors == nil || r.Far == nil {
		return &FieldError{"rope scaling", "longrope needs short_factor and long_factor"}
	}
	r.Factor = float64(context) / float64(r.Original)
	r.Attention = or(p.Attention, 1)
	if p.Attention == nil && r.Factor > 1 {
		r.Attention = math.Sqrt(1 + math.Log(r.Factor)/math.Log(float64(r.Original)))
	}
	return nil
}

// mixtralNames are the names that Mixtral's files have for mixtures' tensors.
var mixtralNames = strings.NewReplacer(".mlp.gate.", ".block_sparse_moe.gate.", ".mlp.experts.", ".block_sparse_moe.experts.",
	".gate_proj.", ".w1.", ".up_proj.", ".w3.", ".down_proj.", ".w2.")

// hfNaming finds a parameter under its own name, with or without the prefix that
// the file's author may have left out.
func hfNaming(c Config, source weights.Source) naming {
	has := func(name string) bool {
		_, ok := source.Info(name)
		return ok
	}
	prefix := "model."
	if c.Architecture == "gpt2" {
		prefix = "transformer."
	}
	return naming{
		file: func(name string) string {
			if c.Architecture == "mixtral" {
				name = mixtralNames.Replace(name)
			}
			if bare := strings.TrimPrefix(name, prefix); !has(name) && has(bare) {
				return bare
			}
			return name
		},
		interleaved: c.Architecture == "gpt-oss",
		transposed:  func(name string) bool { return c.Architecture == "gpt2" && conv1D(name) },
	}
}
