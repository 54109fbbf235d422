package ollama

import (
	"encoding/json"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// common holds the fields that chat and generate share.
type common struct {
	Model    string                     `json:"model"`
	Stream   *bool                      `json:"stream"`
	Format   json.RawMessage            `json:"format"`
	Think    json.RawMessage            `json:"think"`
	Options  map[string]json.RawMessage `json:"options"`
	Logprobs bool                       `json:"logprobs"`
	Top      int64                      `json:"top_logprobs"` // counts only with logprobs
}

// stream reports whether the answer is streamed, which is the default.
func (c *common) stream() bool { return c.Stream == nil || *c.Stream }

// options are the options that are applied.
type options struct {
	NumPredict       *int64   `json:"num_predict"`
	Temperature      *float32 `json:"temperature"`
	TopK             *int64   `json:"top_k"`
	TopP             *float32 `json:"top_p"`
	MinP             *float32 `json:"min_p"`
	TypicalP         float32  `json:"typical_p"`
	Seed             *int64   `json:"seed"`
	Stop             []string `json:"stop"`
	RepeatPenalty    *float32 `json:"repeat_penalty"`
	RepeatLastN      *int64   `json:"repeat_last_n"`
	PresencePenalty  float32  `json:"presence_penalty"`
	FrequencyPenalty float32  `json:"frequency_penalty"`
	Mirostat         *int64   `json:"mirostat"`
	MirostatTau      float32  `json:"mirostat_tau"`
	MirostatEta      float32  `json:"mirostat_eta"`
}

// applied and loading are the names of options that are applied, and of those that say how a model is loaded.
func applied() []string {
	return strings.Fields(
		"num_predict temperature top_k top_p min_p typical_p seed stop repeat_penalty repeat_last_n " +
			"presence_penalty frequency_penalty mirostat mirostat_tau mirostat_eta",
	)
}

func loading() []string {
	return strings.Fields(
		"num_ctx num_batch num_gpu main_gpu num_thread num_keep use_mmap use_mlock low_vram numa f16_kv " +
			"vocab_only logits_all draft_num_predict",
	)
}

// readOptions checks the names of the options and reads those that are applied.
func (c *common) readOptions() (*options, error) {
	kept := map[string]json.RawMessage{}
	for name, raw := range c.Options {
		switch {
		case slices.Contains(applied(), name):
			kept[name] = raw
		case !slices.Contains(loading(), name):
			return nil, fault.Field("options."+name, "is not supported")
		}
	}
	text, err := json.Marshal(kept)
	if err != nil {
		return nil, fault.Field("options", "%v", err)
	}
	o := &options{}
	if err := httpapi.Unmarshal(text, o); err != nil {
		p := httpapi.Explain(err)
		return nil, fault.Field("options."+p.Field, "%s", strings.TrimPrefix(p.Message, p.Field+": "))
	}
	return o, nil
}

// top returns how many candidates are reported with a token.
func (c *common) top() uint32 {
	if !c.Logprobs {
		return 0
	}
	return uint32(c.Top) // sampling has checked it
}

// count reads a number of tokens; values below 0 mean as many as possible, which is 0 on the wire.
func count(name string, v *int64) (uint32, error) {
	if v == nil {
		return 0, nil
	}
	if *v > httpapi.MaxInteger {
		return 0, fault.Field("options."+name, "%d is more than %d", *v, httpapi.MaxInteger)
	}
	return uint32(max(*v, 0)), nil
}

// sampling returns the sampling parameters of a request and its limit of tokens.
func (c *common) sampling() (out *routerv1.Sampling, stop []string, most uint32, err error) {
	o, err := c.readOptions()
	if err != nil {
		return nil, nil, 0, err
	}
	if c.Top < 0 || c.Top > httpapi.MaxTop {
		return nil, nil, 0, fault.Field("top_logprobs", "%d is not within 0..%d", c.Top, httpapi.MaxTop)
	}
	out = &routerv1.Sampling{
		Temperature: o.Temperature, TopP: o.TopP, MinP: o.MinP, RepetitionPenalty: o.RepeatPenalty,
		PresencePenalty: o.PresencePenalty, FrequencyPenalty: o.FrequencyPenalty,
	}
	if o.NumPredict != nil && *o.NumPredict == 0 {
		return nil, nil, 0, fault.Field("options.num_predict", "want at least 1, or -1 for as many as possible")
	}
	if most, err = count("num_predict", o.NumPredict); err != nil {
		return nil, nil, 0, err
	}
	if o.TopK != nil {
		k, err := count("top_k", o.TopK)
		if err != nil {
			return nil, nil, 0, err
		}
		out.TopK = proto.Uint32(k)
	}
	if o.Seed != nil {
		out.Seed = proto.Uint64(uint64(*o.Seed))
	}
	if o.RepeatLastN != nil && *o.RepeatLastN == 0 { // a window of 0 tokens turns the penalty off
		out.RepetitionPenalty = proto.Float32(1)
	}
	advanced := &samplerv1.Advanced{TypicalP: o.TypicalP}
	if advanced.PenaltyLastN, err = count("repeat_last_n", o.RepeatLastN); err != nil {
		return nil, nil, 0, err
	}
	if advanced.Mirostat, err = count("mirostat", o.Mirostat); err != nil {
		return nil, nil, 0, err
	}
	if advanced.GetMirostat() > 0 {
		advanced.MirostatTau, advanced.MirostatEta = o.MirostatTau, o.MirostatEta
	}
	if !proto.Equal(advanced, &samplerv1.Advanced{}) {
		out.Advanced = advanced
	}
	for _, text := range o.Stop {
		if text != "" {
			stop = append(stop, text)
		}
	}
	out.Grammar, err = c.grammar()
	return out, stop, most, err
}

// grammar returns the constraint that format stands for, or nil.
func (c *common) grammar() (*samplerv1.Grammar, error) {
	if !httpapi.Given(c.Format) || string(c.Format) == `""` {
		return nil, nil
	}
	source := string(c.Format)
	if source == `"json"` {
		source = `{"type":"object"}`
	} else if !strings.HasPrefix(strings.TrimSpace(source), "{") {
		return nil, fault.Field("format", `want "json" or a JSON schema`)
	}
	return httpapi.Schema("format", source)
}

// thinking returns the variables of the chat template that turn reasoning on and off, and whether the answer has
// the reasoning.
func (c *common) thinking() (variables string, shown bool, err error) {
	if !httpapi.Given(c.Think) {
		return "", true, nil
	}
	vars := map[string]any{}
	var on bool
	var effort string
	switch {
	case json.Unmarshal(c.Think, &on) == nil:
	case json.Unmarshal(c.Think, &effort) == nil && slices.Contains([]string{"low", "medium", "high"}, effort):
		on, vars["reasoning_effort"] = true, effort
	default:
		return "", false, fault.Field("think", "want true, false, low, medium or high")
	}
	vars["enable_thinking"], vars["thinking"] = on, on
	text, err := json.Marshal(vars)
	if err != nil {
		return "", false, fault.Field("think", "%v", err)
	}
	return string(text), on, nil
}
