package responses

import (
	"encoding/json"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// request is the body of POST /v1/responses.
type request struct {
	Model             string            `json:"model"`
	Input             json.RawMessage   `json:"input"`
	Instructions      *string           `json:"instructions"`
	Previous          *string           `json:"previous_response_id"`
	MaxOutputTokens   *int64            `json:"max_output_tokens"`
	Temperature       *float32          `json:"temperature"`
	TopP              *float32          `json:"top_p"`
	Stream            bool              `json:"stream"`
	Store             *bool             `json:"store"`
	Tools             []json.RawMessage `json:"tools"`
	ToolChoice        json.RawMessage   `json:"tool_choice"`
	ParallelToolCalls *bool             `json:"parallel_tool_calls"`
	MaxToolCalls      *int64            `json:"max_tool_calls"`
	Text              *textConfig       `json:"text"`
	Reasoning         *reasoningConfig  `json:"reasoning"`
	Truncation        *string           `json:"truncation"`
	TopLogprobs       *int64            `json:"top_logprobs"`
	Include           []string          `json:"include"`
	PresencePenalty   float32           `json:"presence_penalty"`
	FrequencyPenalty  float32           `json:"frequency_penalty"`
	Background        *bool             `json:"background"`
	Conversation      json.RawMessage   `json:"conversation"`
	Prompt            json.RawMessage   `json:"prompt"`
	Metadata          json.RawMessage   `json:"metadata"`
	User              *string           `json:"user"`
	SafetyID          *string           `json:"safety_identifier"`
	CacheKey          *string           `json:"prompt_cache_key"`

	// What tools reads of Tools: the entries that the server runs, the names of the client's functions, and whether any
	// tool may be called.
	entries []agent.Entry
	names   []string
	offered bool
}

type textConfig struct {
	Format *formatConfig `json:"format"`
}

type formatConfig struct {
	Type        string          `json:"type"`
	Name        string          `json:"name"`
	Description *string         `json:"description"`
	Schema      json.RawMessage `json:"schema"`
	Strict      *bool           `json:"strict"`
}

// shown returns the format as the response shows it.
func (f *formatConfig) shown() object {
	if f.Type != "json_schema" {
		return object{"type": f.Type}
	}
	return object{"type": f.Type, "name": f.Name, "description": f.Description, "schema": f.Schema,
		"strict": f.Strict != nil && *f.Strict}
}

type reasoningConfig struct {
	Effort  *string `json:"effort"`
	Summary *string `json:"summary"`
}

// stores reports whether the response is stored, which is the default.
func (c *request) stores() bool { return c.Store == nil || *c.Store }

// chat returns the request for the backend without its messages.
func (c *request) chat() (*routerv1.ChatRequest, error) {
	out := &routerv1.ChatRequest{Model: c.Model, KeepMarkers: true}
	for _, step := range []func(*routerv1.ChatRequest) error{c.supported, c.top, c.limits, c.format,
		c.think, c.tools} {
		if err := step(out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// supported refuses fields that would change the answer and are not supported.
func (c *request) supported(*routerv1.ChatRequest) error {
	switch {
	case c.Background != nil && *c.Background:
		return fault.Field("background", "is not supported")
	case httpapi.Given(c.Conversation):
		return fault.Field("conversation", "is not supported: use previous_response_id")
	case httpapi.Given(c.Prompt):
		return fault.Field("prompt", "is not supported: use instructions and input")
	case c.MaxToolCalls != nil && (*c.MaxToolCalls < 1 || *c.MaxToolCalls > httpapi.MaxInteger):
		return fault.Field("max_tool_calls", "%d is not within 1..%d", *c.MaxToolCalls, httpapi.MaxInteger)
	}
	return nil
}

// includeLogprobs is the entry of include that asks for log-probabilities.
const includeLogprobs = "message.output_text.logprobs"

// logprobs reports whether the answer has log-probabilities.
func (c *request) logprobs() bool { return slices.Contains(c.Include, includeLogprobs) }

// top reads how many candidates are reported with a token.
func (c *request) top(out *routerv1.ChatRequest) error {
	switch top := c.TopLogprobs; {
	case top == nil || *top == 0:
	case *top < 0 || *top > httpapi.MaxTop:
		return fault.Field("top_logprobs", "%d is not within 0..%d", *top, httpapi.MaxTop)
	case !c.logprobs():
		return fault.Field("top_logprobs", "requires include to have %s", includeLogprobs)
	default:
		out.TopLogprobs = uint32(*top)
	}
	return nil
}

func (c *request) limits(out *routerv1.ChatRequest) error {
	if most := c.MaxOutputTokens; most != nil {
		if *most < 1 || *most > httpapi.MaxInteger {
			return fault.Field("max_output_tokens", "%d is not within 1..%d", *most, httpapi.MaxInteger)
		}
		out.MaxTokens = uint32(*most)
	}
	out.Sampling = &routerv1.Sampling{
		Temperature:      c.Temperature,
		TopP:             c.TopP,
		PresencePenalty:  c.PresencePenalty,
		FrequencyPenalty: c.FrequencyPenalty,
	}
	switch {
	case c.Truncation == nil, *c.Truncation == "disabled":
	case *c.Truncation == "auto":
		out.ContextPolicy = &routerv1.ContextPolicy{Mode: routerv1.ContextMode_CONTEXT_MODE_TRUNCATE_MIDDLE}
	default:
		return fault.Field("truncation", "%q is not supported: want auto or disabled", *c.Truncation)
	}
	return nil
}

// format sets the constraint that text.format asks for.
func (c *request) format(out *routerv1.ChatRequest) error {
	if c.Text == nil || c.Text.Format == nil {
		return nil
	}
	source := ""
	switch f := c.Text.Format; f.Type {
	case "text":
		return nil
	case "json_object":
		source = `{"type":"object"}`
	case "json_schema":
		if !httpapi.Given(f.Schema) {
			return fault.Field("text.format.schema", "is missing")
		}
		source = string(f.Schema)
	default:
		return fault.Field("text.format.type", "%q is not supported: want text, json_object or json_schema", f.Type)
	}
	var err error
	out.Sampling.Grammar, err = httpapi.Schema("text.format.schema", source)
	return err
}

// think sets the variables of the chat template that control reasoning.
func (c *request) think(out *routerv1.ChatRequest) error {
	if c.Reasoning == nil || c.Reasoning.Effort == nil {
		return nil
	}
	vars := map[string]any{"reasoning_effort": *c.Reasoning.Effort}
	if *c.Reasoning.Effort == "none" {
		vars = map[string]any{"enable_thinking": false, "thinking": false}
	}
	text, err := json.Marshal(vars)
	if err != nil {
		return fault.Field("reasoning.effort", "%v", err)
	}
	out.VariablesJson = string(text)
	return nil
}

// tools reads tools and tool_choice.
func (c *request) tools(out *routerv1.ChatRequest) error {
	var tools []httpapi.Tool
	var names, own []string // own are those of the server's tools that tool_choice can name
	for i, raw := range c.Tools {
		field := func(rest string) string { return fmt.Sprintf("tools[%d]%s", i, rest) }
		var t struct {
			Type        string          `json:"type"`
			Name        string          `json:"name"`
			Description string          `json:"description"`
			Parameters  json.RawMessage `json:"parameters"`
			Strict      *bool           `json:"strict"`
		}
		switch {
		case json.Unmarshal(raw, &t) != nil:
			return fault.Field(field(""), "want a tool")
		case agent.Kind(t.Type) != "":
			c.entries = append(c.entries, agent.Entry{Field: field(""), Raw: raw})
			own = append(own, agent.Kind(t.Type))
			continue
		case t.Type != "function":
			return fault.Field(field(".type"), "%q is not supported, only function is", t.Type)
		case t.Name == "":
			return fault.Field(field(".name"), "is missing")
		}
		names = append(names, t.Name)
		tools = append(tools, httpapi.Tool{Name: t.Name, Description: t.Description, Parameters: t.Parameters,
			Strict: t.Strict != nil && *t.Strict})
	}
	if c.ParallelToolCalls != nil && !*c.ParallelToolCalls {
		out.ParallelToolCalls = proto.Bool(false)
	}
	c.names = names
	mode, function, allowed, err := c.choice(names, own)
	if err != nil {
		return err
	}
	if allowed != nil {
		tools = slices.DeleteFunc(tools, func(t httpapi.Tool) bool { return !slices.Contains(allowed, t.Name) })
	}
	switch {
	case mode == routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE:
		return nil
	case len(tools) == 0 && len(c.entries) == 0 && mode != routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_AUTO:
		return fault.Field("tool_choice", "requires tools")
	}
	c.offered = true
	out.ToolChoice = &routerv1.ToolChoice{Mode: mode, Function: function}
	out.ToolsJson, err = httpapi.ToolsJSON(tools)
	return err
}

// choice reads tool_choice: the mode, the only function that may be called, and the names of the tools that are
// allowed if that are not all.
func (c *request) choice(
	names, own []string,
) (mode routerv1.ToolChoiceMode, function string, allowed []string, err error) {
	modes := map[string]routerv1.ToolChoiceMode{
		"none": routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE, "auto": routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_AUTO,
		"required": routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED,
	}
	if !httpapi.Given(c.ToolChoice) {
		return modes["auto"], "", nil, nil
	}
	var name string
	if json.Unmarshal(c.ToolChoice, &name) == nil {
		mode, ok := modes[name]
		if !ok {
			err = fault.Field("tool_choice", "%q is not supported: want none, auto, required or an object", name)
		}
		return mode, "", nil, err
	}
	var o struct {
		Type  string `json:"type"`
		Name  string `json:"name"`
		Mode  string `json:"mode"`
		Tools []struct {
			Type string `json:"type"`
			Name string `json:"name"`
		} `json:"tools"`
	}
	if json.Unmarshal(c.ToolChoice, &o) != nil {
		return 0, "", nil, fault.Field("tool_choice", "want none, auto, required or an object with a type")
	}
	if kind := agent.Kind(o.Type); kind != "" && kind != agent.KindMCP && slices.Contains(own, kind) {
		return routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION, kind, nil, nil
	}
	switch o.Type {
	case "function":
		if !slices.Contains(names, o.Name) {
			return 0, "", nil, fault.Field("tool_choice.name", "no tool is named %q", o.Name)
		}
		return routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION, o.Name, nil, nil
	case "allowed_tools":
		if len(own) > 0 {
			return 0, "", nil, fault.Field("tool_choice.type", "allowed_tools cannot be combined with tools that the server runs")
		}
		mode, ok := modes[o.Mode]
		if !ok || o.Mode == "none" {
			return 0, "", nil, fault.Field("tool_choice.mode", "%q is not supported: want auto or required", o.Mode)
		}
		allowed = []string{}
		for i, t := range o.Tools {
			if !slices.Contains(names, t.Name) {
				return 0, "", nil, fault.Field(
					fmt.Sprintf("tool_choice.tools[%d].name", i),
					"no tool is named %q",
					t.Name,
				)
			}
			allowed = append(allowed, t.Name)
		}
		return mode, "", allowed, nil
	}
	return 0, "", nil, fault.Field("tool_choice.type", "%q is not supported: want function or allowed_tools", o.Type)
}
