package model

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// The architectures of config.json's model_type.
const supported = "llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, smollm3, mixtral, qwen3_moe, gpt-oss and gpt2 are"

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
	Activation    string          `json:"hidden_activation"`
	QueryScalar   *float64        `json:"query_pre_attn_scalar"`
	AttnCap       json.RawMessage `json:"attn_logit_softcapping"`
	LogitCap      json.RawMessage `json:"final_logit_softcapping"`
	LocalTheta    *float64        `json:"rope_local_base_freq"`
	Pattern       *int            `json:"sliding_window_pattern"`
	Bidirectional *bool           `json:"use_bidirectional_attention"`
	BOS           json.RawMessage `json:"bos_token_id"`
	EOS           json.RawMessage `json:"eos_token_id"`

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
	c.BOS, c.EOS = readIDs(h.BOS, c.Vocab), readIDs(h.EOS, c.Vocab)
	return c, c.Validate()
}

// readIDs reads a token id or a list of token ids. Ids outside the vocabulary are left out.
func readIDs(raw json.RawMessage, vocab int) []int32 {
	var id *int32
	var ids []int32
	if json.Unmarshal(raw, &id) == nil && id != nil {
		ids = []int32{*id}
	} else if json.Unmarshal(raw, &ids) != nil {
		return nil
	}
	ids = slices.DeleteFunc(ids, func(id int32) bool { return id < 0 || int(id) >= vocab })
	if len(ids) == 0 {
		return nil
	}
	return ids
}

// generationIDs takes the ids that generation_config.json gives in place of those of
// config.json, as transformers does. A folder may lack the file.
func (c *Config) generationIDs(folder string) error {
	text, err := os.ReadFile(filepath.Join(folder, "generation_config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var g struct {
		BOS json.RawMessage `json:"bos_token_id"`
		EOS json.RawMessage `json:"eos_token_id"`
	}
	if err := json.Unmarshal(text, &g); err != nil {
		return &FieldError{"generation_config.json", err.Error()}
	}
	if ids := readIDs(g.BOS, c.Vocab); ids != nil {
		c.BOS = ids
	}
	if ids := readIDs(g.EOS, c.Vocab); ids != nil {
		c.EOS = ids
	}
	return nil
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
	case "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate":
		return kernel.GELUTanh, nil
	case "gelu", "gelu_python":
		return kernel.GELU, nil
	}
	return 0, &UnsupportedError{"activation", name, "silu, gelu, gelu_new and gelu_pytorch_tanh are"}
}

// activationName is activation's inverse.
func activationName(a kernel.Act) string {
	return map[kernel.Act]string{kernel.SiLU: "silu", kernel.GELUTanh: "gelu_pytorch_tanh", kernel.GELU: "gelu"}[a]
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
			if c.Architecture == "mixtral" && !has(name) {
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
