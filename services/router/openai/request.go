package openai

import (
	"encoding/json"
	"net/http"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

const (
	maxChoices = 128      // limit of n and best_of; the backend also limits them by its memory
	maxJobs    = 256      // prompts times choices
	maxPrompts = 32 << 20 // bytes of the prompts of all choices
)

// decode reads a body; an error names the field or the byte.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	return httpapi.Decode(w, r, v, embedded()...)
}

// embedded are the names of structs that requests embed.
func embedded() []string { return []string{"common", "templateFields", "shapes", "rules", "serving"} }

// given reports whether an optional field is present and not null.
func given(raw json.RawMessage) bool { return httpapi.Given(raw) }

// texts is a string or a list of strings. Empty strings count as absent.
type texts []string

// UnmarshalJSON reads either form.
func (t *texts) UnmarshalJSON(raw []byte) error {
	*t = nil
	var one *string
	var list []string
	if json.Unmarshal(raw, &one) == nil {
		if one != nil {
			list = []string{*one}
		}
	} else if err := json.Unmarshal(raw, &list); err != nil {
		return err
	}
	for _, text := range list {
		if text != "" {
			*t = append(*t, text)
		}
	}
	return nil
}

// common holds the fields that both endpoints share.
type common struct {
	Model             string             `json:"model"`
	MaxTokens         *int64             `json:"max_tokens"`
	Temperature       *float32           `json:"temperature"`
	TopP              *float32           `json:"top_p"`
	TopK              *int64             `json:"top_k"`
	MinP              *float32           `json:"min_p"`
	Seed              *int64             `json:"seed"`
	N                 *int               `json:"n"`
	Stop              texts              `json:"stop"`
	Stream            bool               `json:"stream"`
	StreamOptions     *streamOptions     `json:"stream_options"`
	PresencePenalty   float32            `json:"presence_penalty"`
	FrequencyPenalty  float32            `json:"frequency_penalty"`
	RepetitionPenalty *float32           `json:"repetition_penalty"`
	LogitBias         map[string]float32 `json:"logit_bias"`
	IgnoreEnd         bool               `json:"ignore_end"`
	ResponseFormat    json.RawMessage    `json:"response_format"`
	Resumable         bool               `json:"resumable"`
	shapes
	rules
	serving

	created int64              // seconds since 1970
	base    *routerv1.Sampling // what the choices share; nil before the first one
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

// check validates the fields that both endpoints share, and returns n.
func (c *common) check() (int, error) {
	if _, _, err := c.grammar(); err != nil {
		return 0, err
	}
	if c.N == nil {
		return 1, nil
	}
	if *c.N < 1 || *c.N > maxChoices {
		return 0, fault.Field("n", "%d is not within 1..%d", *c.N, maxChoices)
	}
	return *c.N, nil
}

// limit returns a number of tokens for the backend, where 0 means as many as possible.
func limit(field string, v *int64) (uint32, error) {
	if v == nil {
		return 0, nil
	}
	if *v < 1 || *v > httpapi.MaxInteger {
		return 0, fault.Field(field, "%d is not within 1..%d", *v, httpapi.MaxInteger)
	}
	return uint32(*v), nil
}

// sampling returns the sampling parameters of choice i of n. All choices share the seed:
// the choice's number keys the randomness too, and choice 0 is what a request for one
// choice gets. They share the lists as well, since a request may have long ones and many choices.
func (c *common) sampling(i, n int) (*routerv1.Sampling, error) {
	if c.base == nil {
		base, err := c.shared()
		if err != nil {
			return nil, err
		}
		c.base = base
	}
	out := shallow(c.base)
	out.Choice = uint32(i)
	if n > 1 {
		out.Choices = uint32(n)
	}
	return out, nil
}

// shallow returns a message with the fields of m, whose lists, maps and messages are those of m. Nobody changes them.
func shallow[M proto.Message](m M) M {
	out := m.ProtoReflect().New()
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		out.Set(f, v)
		return true
	})
	return out.Interface().(M)
}

// checkSize refuses a prompt of a size in bytes that is too long for so many choices: each of them encodes it.
func checkSize(size, choices int) error {
	if choices > 1 && size > maxPrompts/choices {
		return fault.Field("n", "%d choices of a prompt of %d bytes are more than %d bytes", choices, size, maxPrompts)
	}
	return nil
}

// shared returns the sampling parameters that all choices have.
func (c *common) shared() (*routerv1.Sampling, error) {
	if n := len(c.LogitBias); n > samplerules.MaxBiases {
		return nil, fault.Field("logit_bias", "%d is more than %d", n, samplerules.MaxBiases)
	}
	out := &routerv1.Sampling{
		Temperature: c.Temperature, TopP: c.TopP, MinP: c.MinP, RepetitionPenalty: c.RepetitionPenalty,
		PresencePenalty: c.PresencePenalty, FrequencyPenalty: c.FrequencyPenalty, BadWords: c.badTexts(),
	}
	var err error
	if out.Grammar, _, err = c.grammar(); err != nil {
		return nil, err
	}
	if out.Advanced, err = c.advanced(); err != nil {
		return nil, err
	}
	if out.RepetitionPenalty == nil {
		out.RepetitionPenalty = c.RepeatPenalty
	}
	if c.RepeatLastN != nil && *c.RepeatLastN == 0 { // a window of 0 tokens turns the penalty off
		out.RepetitionPenalty = proto.Float32(1)
	}
	if c.TopK != nil {
		if *c.TopK < -1 || *c.TopK > httpapi.MaxInteger { // -1 is a common spelling of "all"
			return nil, fault.Field("top_k", "%d is not within 0..%d", *c.TopK, httpapi.MaxInteger)
		}
		out.TopK = proto.Uint32(uint32(max(0, *c.TopK)))
	}
	if c.Seed != nil {
		seed := uint64(*c.Seed)
		out.Seed = &seed
	}
	for key, bias := range c.LogitBias {
		id, err := strconv.ParseUint(key, 10, 31)
		if err != nil {
			return nil, fault.Field("logit_bias", "%q is not a token id", key)
		}
		if out.LogitBias == nil {
			out.LogitBias = make(map[uint32]float32, len(c.LogitBias))
		}
		out.LogitBias[uint32(id)] = bias
	}
	return out, nil
}

func (c *common) usageWanted() bool { return c.StreamOptions != nil && c.StreamOptions.IncludeUsage }
