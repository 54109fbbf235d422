package main

import (
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// toolFlags are the flags for tool calls.
type toolFlags struct {
	Tools             string `help:"File with tool definitions in OpenAI's format, for --messages."`
	ToolChoice        string `help:"none, auto, required (at least one call), or the name of a tool that must be called." default:"auto"`
	ParallelToolCalls bool   `help:"Allow several calls in one answer." default:"true" negatable:""`

	tools []byte // content of the file
}

// offer adds the tools to a request.
func (f *toolFlags) offer(e *verb.Env, r *routerv1.ChatRequest) error {
	switch f.ToolChoice {
	case "auto":
	case "none":
		r.ToolChoice = &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE}
	case "required":
		r.ToolChoice = &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED}
	default:
		r.ToolChoice = &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION,
			Function: f.ToolChoice}
	}
	if f.Tools == "" {
		return nil
	}
	var err error
	if f.tools, err = readInput(e, f.Tools); err != nil {
		return fault.Wrap(fault.NotFound, err, "read tools")
	}
	r.ToolsJson, r.KeepMarkers, r.ParallelToolCalls = string(f.tools), true, &f.ParallelToolCalls
	return nil
}

// called is a tool call in an answer.
type called struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

// calls parses the tool calls in the text of an answer. cut says that the answer is incomplete.
func (f *toolFlags) calls(s *routerv1.Started, text string, cut bool) []called {
	if len(f.tools) == 0 || f.ToolChoice == "none" {
		return nil
	}
	p := toolcall.New(toolcall.Format{Calls: s.GetFormat().GetCalls(), Reasoning: s.GetFormat().GetReasoning()},
		toolcall.Options{Tools: f.tools, Prompt: s.GetPromptEnd()})
	var out []called
	for _, d := range []toolcall.Delta{p.Push(text), p.Flush(cut)} {
		for _, c := range d.Calls {
			if c.Index == len(out) {
				out = append(out, called{Name: c.Name})
			}
			out[c.Index].Arguments += c.Arguments
		}
	}
	return out
}
