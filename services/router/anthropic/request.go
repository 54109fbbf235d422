package anthropic

import (
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// request is the body of both endpoints.
type request struct {
	Model         string            `json:"model"`
	Messages      []json.RawMessage `json:"messages"`
	System        json.RawMessage   `json:"system"`
	MaxTokens     *int64            `json:"max_tokens"`
	StopSequences []string          `json:"stop_sequences"`
	Stream        bool              `json:"stream"`
	Temperature   *float32          `json:"temperature"`
	TopP          *float32          `json:"top_p"`
	TopK          *int64            `json:"top_k"`
	Tools         []json.RawMessage `json:"tools"`
	ToolChoice    *toolChoice       `json:"tool_choice"`
	Thinking      *thinking         `json:"thinking"`
	OutputConfig  *outputConfig     `json:"output_config"`
	OutputFormat  *outputFormat     `json:"output_format"` // the name in the beta of structured outputs

	Container  json.RawMessage `json:"container"`
	Servers    json.RawMessage `json:"mcp_servers"`
	Management json.RawMessage `json:"context_management"`

	// What tools reads of Tools: the entries that the server runs with their kinds, how many calls they allow, and the
	// names of the client's own.
	entries   []agent.Entry
	kinds     map[string]bool
	uses      int
	unlimited bool // an entry has no limit of its own
	names     map[string]bool
}

type toolChoice struct {
	Type            string `json:"type"`
	Name            string `json:"name"`
	DisableParallel bool   `json:"disable_parallel_tool_use"`
}

type thinking struct {
	Type   string `json:"type"`
	Budget *int64 `json:"budget_tokens"`
}

type outputConfig struct {
	Effort *string       `json:"effort"`
	Format *outputFormat `json:"format"`
}

type outputFormat struct {
	Type   string          `json:"type"`
	Schema json.RawMessage `json:"schema"`
}

// thinks reports whether the reasoning is part of the answer.
func (c *request) thinks() bool { return c.Thinking != nil && c.Thinking.Type != "disabled" }

// chat returns the request for the backend and how its text is parsed. Without whole, max_tokens may be missing.
func (c *request) chat(whole bool) (*routerv1.ChatRequest, httpapi.Parsing, error) {
	out := &routerv1.ChatRequest{Model: c.Model, KeepMarkers: true}
	for _, step := range []func(*routerv1.ChatRequest) error{
		c.supported, func(r *routerv1.ChatRequest) error { return c.limits(r, whole) }, c.sampling, c.think,
		c.tools, c.turns,
	} {
		if err := step(out); err != nil {
			return nil, httpapi.Parsing{}, err
		}
	}
	parsing := httpapi.Parsing{
		Tools: out.GetToolsJson(), Reasoning: true,
		Single: out.ParallelToolCalls != nil && !out.GetParallelToolCalls(),
	}
	return out, parsing, nil
}

// supported refuses fields that would change the answer and are not supported.
func (c *request) supported(*routerv1.ChatRequest) error {
	for _, f := range []struct {
		name string
		raw  json.RawMessage
	}{{"container", c.Container}, {"mcp_servers", c.Servers}, {"context_management", c.Management}} {
		if httpapi.Given(f.raw) && string(f.raw) != "[]" {
			return fault.Field(f.name, "is not supported")
		}
	}
	return nil
}

func (c *request) limits(out *routerv1.ChatRequest, whole bool) error {
	switch {
	case c.MaxTokens == nil && whole:
		return fault.Field("max_tokens", "is missing")
	case c.MaxTokens != nil && (*c.MaxTokens < 1 || *c.MaxTokens > httpapi.MaxInteger):
		return fault.Field("max_tokens", "%d is not within 1..%d", *c.MaxTokens, httpapi.MaxInteger)
	case c.MaxTokens != nil:
		out.MaxTokens = uint32(*c.MaxTokens)
	}
	for i, text := range c.StopSequences {
		if strings.TrimSpace(text) == "" {
			return fault.Field(fmt.Sprintf("stop_sequences[%d]", i), "want text that is not only white space")
		}
	}
	out.Stop = c.StopSequences
	return nil
}

func (c *request) sampling(out *routerv1.ChatRequest) error {
	out.Sampling = &routerv1.Sampling{Temperature: c.Temperature, TopP: c.TopP}
	if c.TopK != nil {
		if *c.TopK < 0 || *c.TopK > httpapi.MaxInteger {
			return fault.Field("top_k", "%d is not within 0..%d", *c.TopK, httpapi.MaxInteger)
		}
		out.Sampling.TopK = proto.Uint32(uint32(*c.TopK))
	}
	field, format := "output_format", c.OutputFormat
	if c.OutputConfig != nil && c.OutputConfig.Format != nil {
		field, format = "output_config.format", c.OutputConfig.Format
	}
	switch {
	case format == nil:
		return nil
	case format.Type != "json_schema":
		return fault.Field(field+".type", "%q is not supported, only json_schema is", format.Type)
	case !httpapi.Given(format.Schema):
		return fault.Field(field+".schema", "is missing")
	}
	var err error
	out.Sampling.Grammar, err = httpapi.Schema(field+".schema", string(format.Schema))
	return err
}

// think sets the variables of the chat template that turn reasoning on and off.
func (c *request) think(out *routerv1.ChatRequest) error {
	on := false
	if t := c.Thinking; t != nil {
		switch t.Type {
		case "disabled":
		case "adaptive":
			on = true
		case "enabled":
			on = true
			switch {
			case t.Budget == nil:
				return fault.Field("thinking.budget_tokens", "is missing")
			case *t.Budget < 1, c.MaxTokens != nil && *t.Budget >= *c.MaxTokens:
				return fault.Field("thinking.budget_tokens", "want at least 1 and less than max_tokens, got %d", *t.Budget)
			}
		default:
			return fault.Field("thinking.type", "%q is not supported: want enabled, adaptive or disabled", t.Type)
		}
	}
	vars := map[string]any{"enable_thinking": on, "thinking": on}
	if c.OutputConfig != nil && c.OutputConfig.Effort != nil {
		vars["reasoning_effort"] = *c.OutputConfig.Effort
	}
	text, err := json.Marshal(vars)
	if err != nil {
		return fault.Field("output_config.effort", "%v", err)
	}
	out.VariablesJson = string(text)
	return nil
}

// tools reads tools and tool_choice.
func (c *request) tools(out *routerv1.ChatRequest) error {
	var tools []httpapi.Tool
	names := map[string]bool{}
	c.names, c.kinds = names, map[string]bool{}
	for i, raw := range c.Tools {
		field := func(rest string) string { return fmt.Sprintf("tools[%d]%s", i, rest) }
		var t struct {
			Type        string          `json:"type"`
			Name        string          `json:"name"`
			Description string          `json:"description"`
			Schema      json.RawMessage `json:"input_schema"`
			Strict      bool            `json:"strict"`
		}
		switch {
		case json.Unmarshal(raw, &t) != nil:
			return fault.Field(field(""), "want a tool with name and input_schema")
		case kindOf(t.Type) != "":
			if err := c.hosted(field(""), kindOf(t.Type), raw); err != nil {
				return err
			}
			continue
		case t.Type != "" && t.Type != "custom":
			return fault.Field(field(".type"), "%q is not supported, only custom is", t.Type)
		case t.Name == "":
			return fault.Field(field(".name"), "is missing")
		case names[t.Name]:
			return fault.Field(field(".name"), "%q is given twice", t.Name)
		case !httpapi.Given(t.Schema):
			return fault.Field(field(".input_schema"), "is missing")
		}
		names[t.Name] = true
		tools = append(tools, httpapi.Tool{
			Name: t.Name, Description: t.Description, Parameters: t.Schema, Strict: t.Strict,
		})
	}
	var err error
	if out.ToolsJson, err = httpapi.ToolsJSON(tools); err != nil || c.ToolChoice == nil {
		return err
	}
	choice := &routerv1.ToolChoice{}
	switch c.ToolChoice.Type {
	case "auto":
		choice.Mode = routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_AUTO
	case "any":
		choice.Mode = routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED
	case "tool":
		choice.Mode, choice.Function = routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION, c.ToolChoice.Name
		switch name := c.ToolChoice.Name; {
		case names[name]:
		case name == searchName && c.kinds[agent.KindSearch]:
		case name == fetchName && c.kinds[agent.KindPage]:
			choice.Function = agent.KindPage
		default:
			return fault.Field("tool_choice.name", "no tool is named %q", c.ToolChoice.Name)
		}
	case "none":
		out.ToolsJson = ""
		return nil
	default:
		return fault.Field("tool_choice.type", "%q is not supported: want auto, any, tool or none", c.ToolChoice.Type)
	}
	if len(tools) == 0 && len(c.entries) == 0 {
		return fault.Field("tool_choice", "requires tools")
	}
	if c.ToolChoice.DisableParallel {
		out.ParallelToolCalls = proto.Bool(false)
	}
	out.ToolChoice = choice
	return nil
}
