package adapter

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pyjson"
)

// ConfigFile is the name of the file of a Config.
const ConfigFile = "adapter_config.json"

// AllLinear is a pattern that stands for every matrix of the layers: all linear modules but the head.
const AllLinear = "all-linear"

// Limits of a config.
const (
	maxConfig = 1 << 20
	MaxRank   = 1 << 12
	maxList   = 1 << 12
)

// Config describes an adapter, as adapter_config.json does.
type Config struct {
	Base    string  // name or path of the base model
	Rank    int     // r
	Alpha   float64 // lora_alpha
	Dropout float64 // of the adapters' inputs, in training
	RSLoRA  bool
	DoRA    bool

	Targets Pattern // target_modules
	Exclude Pattern // exclude_modules
	Layers  []int   // layers_to_transform; nil for all
	// LayersPattern names the list of layers in modules' names; nil for any.
	LayersPattern []string
	Save          []string // modules_to_save

	Ranks  []Override // rank_pattern
	Alphas []Override // alpha_pattern

	FanInFanOut bool // GPT-2's matrices are stored transposed; adapters are not
}

// Override is a value for the modules that a pattern matches.
type Override struct {
	Match string // a regular expression for the end of a module's name
	Value float64
}

// Pattern chooses modules: by the ends of their names, or by one regular expression for whole names.
type Pattern struct {
	Names  []string
	Regexp string // or AllLinear
}

// Empty reports whether the pattern chooses nothing.
func (p *Pattern) Empty() bool { return len(p.Names) == 0 && p.Regexp == "" }

// FieldError reports a value that is missing or impossible.
type FieldError struct{ File, Field, Msg string }

// Error names the file and the field.
func (e *FieldError) Error() string { return fmt.Sprintf("read %s: %s: %s", e.File, e.Field, e.Msg) }

// FaultCode returns DataLoss, because the files are damaged.
func (e *FieldError) FaultCode() fault.Code { return fault.DataLoss }

// UnsupportedError reports an adapter that this build cannot use.
type UnsupportedError struct{ File, Field, Value, Supported string }

// Error names the file and the field.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("read %s: %s %s is not supported (supported: %s)", e.File, e.Field, e.Value, e.Supported)
}

// FaultCode returns Unimplemented.
func (e *UnsupportedError) FaultCode() fault.Code { return fault.Unimplemented }

// configJSON is the file. Members that PEFT has and this package does not use are not listed.
type configJSON struct {
	PeftType      *string         `json:"peft_type"`
	Base          *string         `json:"base_model_name_or_path"`
	Rank          *int            `json:"r"`
	Alpha         *float64        `json:"lora_alpha"`
	Dropout       *float64        `json:"lora_dropout"`
	Bias          *string         `json:"bias"`
	LoraBias      *bool           `json:"lora_bias"`
	RSLoRA        *bool           `json:"use_rslora"`
	DoRA          *bool           `json:"use_dora"`
	FanInFanOut   *bool           `json:"fan_in_fan_out"`
	Targets       json.RawMessage `json:"target_modules"`
	Exclude       json.RawMessage `json:"exclude_modules"`
	Parameters    json.RawMessage `json:"target_parameters"`
	Layers        json.RawMessage `json:"layers_to_transform"`
	LayersPattern json.RawMessage `json:"layers_pattern"`
	Save          []string        `json:"modules_to_save"`
	Ranks         json.RawMessage `json:"rank_pattern"`
	Alphas        json.RawMessage `json:"alpha_pattern"`
	Replication   json.RawMessage `json:"layer_replication"`
	TokenIndices  json.RawMessage `json:"trainable_token_indices"`
	ALoRA         json.RawMessage `json:"alora_invocation_tokens"`
	QALoRA        *bool           `json:"use_qalora"`
	Tying         *bool           `json:"ensure_weight_tying"` // the tied partner of what is trained changes with it
	Arrow         json.RawMessage `json:"arrow_config"`
}

// ParseConfig reads an adapter_config.json.
func ParseConfig(text []byte) (*Config, error) {
	if len(text) > maxConfig {
		return nil, bad("file", "want at most %d bytes, got %d", maxConfig, len(text))
	}
	var j configJSON
	if err := pyjson.Unmarshal(text, &j); err != nil {
		return nil, bad("file", "%v", err)
	}
	if err := j.unsupported(); err != nil {
		return nil, err
	}
	c := &Config{Base: or(j.Base, ""), Rank: or(j.Rank, 8), Alpha: or(j.Alpha, 8), Dropout: or(j.Dropout, 0),
		RSLoRA: or(j.RSLoRA, false), DoRA: or(j.DoRA, false), FanInFanOut: or(j.FanInFanOut, false), Save: j.Save}
	var err error
	if c.Targets, err = pattern("target_modules", j.Targets); err != nil {
		return nil, err
	}
	if c.Exclude, err = pattern("exclude_modules", j.Exclude); err != nil {
		return nil, err
	}
	if given(j.Layers) {
		var one int
		if json.Unmarshal(j.Layers, &one) == nil {
			c.Layers = []int{one}
		} else if json.Unmarshal(j.Layers, &c.Layers) != nil {
			return nil, bad("layers_to_transform", "want a number or a list of them")
		}
	}
	if given(j.LayersPattern) {
		p, err := pattern("layers_pattern", j.LayersPattern)
		if err != nil {
			return nil, err
		}
		if c.LayersPattern = p.Names; p.Regexp != "" {
			c.LayersPattern = []string{p.Regexp}
		}
	}
	if c.Ranks, err = overrides("rank_pattern", j.Ranks); err != nil {
		return nil, err
	}
	if c.Alphas, err = overrides("alpha_pattern", j.Alphas); err != nil {
		return nil, err
	}
	return c, c.Check()
}

func bad(field, format string, args ...any) *FieldError {
	return &FieldError{ConfigFile, field, fmt.Sprintf(format, args...)}
}

func or[T any](v *T, otherwise T) T {
	if v == nil {
		return otherwise
	}
	return *v
}

// given reports whether a member is there and not null.
func given(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// unsupported reports the first setting that this build cannot use.
func (j *configJSON) unsupported() error {
	no := func(field, value, supported string) error {
		return &UnsupportedError{ConfigFile, field, value, supported}
	}
	empty := func(raw json.RawMessage) bool {
		return !given(raw) || slices.Contains([]string{"[]", "{}"}, string(bytes.TrimSpace(raw)))
	}
	switch {
	case !strings.EqualFold(or(j.PeftType, "LORA"), "LORA"):
		return no("peft_type", strconv.Quote(*j.PeftType), "LORA")
	case or(j.Bias, "none") != "none":
		return no("bias", strconv.Quote(*j.Bias), "none")
	case or(j.LoraBias, false):
		return no("lora_bias", "true", "false")
	case or(j.QALoRA, false):
		return no("use_qalora", "true", "false")
	case or(j.Tying, false):
		return no("ensure_weight_tying", "true", "false")
	case !empty(j.Parameters):
		return no("target_parameters", string(j.Parameters), "target_modules")
	case !empty(j.Replication):
		return no("layer_replication", string(j.Replication), "null")
	case !empty(j.TokenIndices):
		return no("trainable_token_indices", string(j.TokenIndices), "null")
	case !empty(j.ALoRA):
		return no("alora_invocation_tokens", string(j.ALoRA), "null")
	case !empty(j.Arrow):
		return no("arrow_config", string(j.Arrow), "null")
	}
	return nil
}

// pattern reads a list of names or a regular expression.
func pattern(field string, raw json.RawMessage) (Pattern, error) {
	var p Pattern
	if !given(raw) {
		return p, nil
	}
	if json.Unmarshal(raw, &p.Names) == nil {
		return p, nil
	}
	if json.Unmarshal(raw, &p.Regexp) != nil {
		return p, bad(field, "want a list of names or a regular expression")
	}
	return p, nil
}

// overrides reads an object of numbers and keeps its order, since the first pattern that matches counts.
func overrides(field string, raw json.RawMessage) ([]Override, error) {
	if !given(raw) {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, bad(field, "want an object")
	}
	var out []Override
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, bad(field, "%v", err)
		}
		o := Override{Match: fmt.Sprint(name)}
		if err := d.Decode(&o.Value); err != nil {
			return nil, bad(field, "%q: want a number", o.Match)
		}
		if out = append(out, o); len(out) > maxList {
			return nil, bad(field, "want at most %d patterns", maxList)
		}
	}
	return out, nil
}

// Check reports the first setting that is out of bounds.
func (c *Config) Check() error {
	switch {
	case c.Rank < 1 || c.Rank > MaxRank:
		return bad("r", "want 1..%d, got %d", MaxRank, c.Rank)
	case !(c.Alpha > 0 && c.Alpha <= 1e6):
		return bad("lora_alpha", "want a positive number, got %v", c.Alpha)
	case !(c.Dropout >= 0 && c.Dropout < 1):
		return bad("lora_dropout", "want a number from 0 to below 1, got %v", c.Dropout)
	case c.Targets.Empty() && len(c.Save) == 0:
		return bad("target_modules", "is missing")
	}
	for _, l := range []struct {
		field string
		n     int
	}{
		{"target_modules", len(c.Targets.Names)}, {"exclude_modules", len(c.Exclude.Names)},
		{"layers_to_transform", len(c.Layers)}, {"modules_to_save", len(c.Save)},
	} {
		if l.n > maxList {
			return bad(l.field, "want at most %d elements, got %d", maxList, l.n)
		}
	}
	for _, p := range []struct{ field, text string }{
		{"target_modules", c.Targets.Regexp}, {"exclude_modules", c.Exclude.Regexp},
	} {
		if _, err := compile("^(?:" + p.text + ")$"); err != nil {
			return bad(p.field, "%v", err)
		}
	}
	for _, r := range c.Ranks {
		if r.Value != math.Trunc(r.Value) || r.Value < 1 || r.Value > MaxRank {
			return bad("rank_pattern", "%q: want 1..%d, got %v", r.Match, MaxRank, r.Value)
		}
	}
	for _, a := range c.Alphas {
		if !(a.Value > 0 && a.Value <= 1e6) {
			return bad("alpha_pattern", "%q: want a positive number, got %v", a.Match, a.Value)
		}
	}
	for _, list := range [][]Override{c.Ranks, c.Alphas} {
		for _, o := range list {
			if _, err := compile(endsWith(o.Match)); err != nil {
				return bad("rank_pattern", "%v", err)
			}
		}
	}
	for _, p := range c.LayersPattern {
		if _, err := compile(layerOf(p)); err != nil {
			return bad("layers_pattern", "%v", err)
		}
	}
	return nil
}

// compile compiles a regular expression of bounded size.
func compile(text string) (*regexp.Regexp, error) {
	if len(text) > 4096 {
		return nil, fmt.Errorf("a pattern of %d bytes is too long", len(text))
	}
	return regexp.Compile(text)
}

func endsWith(pattern string) string { return `^(?:.*\.)?(?:` + pattern + `)$` }

// JSON returns the config as PEFT reads it.
func (c *Config) JSON() ([]byte, error) {
	value := func(p Pattern) any {
		switch {
		case p.Regexp != "":
			return p.Regexp
		case len(p.Names) > 0:
			return p.Names
		}
		return nil
	}
	object := func(list []Override) json.RawMessage { // in order
		var b bytes.Buffer
		b.WriteByte('{')
		for i, o := range list {
			if i > 0 {
				b.WriteByte(',')
			}
			name, _ := json.Marshal(o.Match) // a text can always be written
			fmt.Fprintf(&b, "%s:%s", name, strconv.FormatFloat(o.Value, 'f', -1, 64))
		}
		b.WriteByte('}')
		return b.Bytes()
	}
	m := map[string]any{
		"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": c.Base, "inference_mode": true,
		"r": c.Rank, "lora_alpha": c.Alpha, "lora_dropout": c.Dropout, "bias": "none",
		"use_rslora": c.RSLoRA, "use_dora": c.DoRA, "fan_in_fan_out": c.FanInFanOut,
		"target_modules": value(c.Targets), "exclude_modules": value(c.Exclude),
		"layers_to_transform": nil, "layers_pattern": nil, "modules_to_save": nil,
		"rank_pattern": object(c.Ranks), "alpha_pattern": object(c.Alphas),
		"init_lora_weights": true, "revision": nil,
	}
	if c.Layers != nil {
		m["layers_to_transform"] = c.Layers
	}
	if c.LayersPattern != nil {
		m["layers_pattern"] = c.LayersPattern
	}
	if c.Save != nil {
		m["modules_to_save"] = c.Save
	}
	return json.MarshalIndent(m, "", "  ")
}
