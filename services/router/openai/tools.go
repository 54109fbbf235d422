package openai

import (
	"encoding/json"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// templateFields holds the input of the chat template besides the messages.
type templateFields struct {
	Tools             json.RawMessage `json:"tools"`
	WebSearch         json.RawMessage `json:"web_search_options"`
	ToolChoice        json.RawMessage `json:"tool_choice"`
	ParallelToolCalls *bool           `json:"parallel_tool_calls"`
	Documents         json.RawMessage `json:"documents"`
	Kwargs            json.RawMessage `json:"chat_template_kwargs"`
	ReasoningEffort   *string         `json:"reasoning_effort"`
	GenerationPrompt  *bool           `json:"add_generation_prompt"`
	ContinueFinal     bool            `json:"continue_final_message"`
	ReasoningFormat   *string         `json:"reasoning_format"`
}

// toolChoice reads tool_choice; nil stands for "auto".
func (f *templateFields) toolChoice() (*routerv1.ToolChoice, error) {
	if !given(f.ToolChoice) {
		return nil, nil
	}
	var mode string
	if json.Unmarshal(f.ToolChoice, &mode) == nil {
		switch mode {
		case "none":
			return &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE}, nil
		case "auto":
			return nil, nil
		case "required":
			return &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED}, nil
		}
		return nil, fault.Field("tool_choice", "%q is not supported: want none, auto, required or a function", mode)
	}
	var choice struct {
		Type     string `json:"type"`
		Function *struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	switch {
	case json.Unmarshal(f.ToolChoice, &choice) != nil:
		return nil, fault.Field("tool_choice", "want none, auto, required or an object with a type and a function")
	case choice.Type != "function":
		return nil, fault.Field("tool_choice", "type %q is not supported, only function is", choice.Type)
	case choice.Function == nil || choice.Function.Name == "":
		return nil, fault.Field("tool_choice", "function.name is missing")
	}
	return &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION,
		Function: choice.Function.Name}, nil
}

// readTools sets the tools of a request and how they may be used.
func (f *templateFields) readTools(out *routerv1.ChatRequest) (err error) {
	if out.ToolChoice, err = f.toolChoice(); err != nil {
		return err
	}
	if out.ToolsJson, err = f.toolsJSON(); err != nil {
		return err
	}
	out.ParallelToolCalls = f.ParallelToolCalls
	choice := out.GetToolChoice()
	switch mode := choice.GetMode(); {
	case mode == routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE:
		out.ToolsJson = ""
	case mode != routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED &&
		mode != routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION:
	case out.GetToolsJson() == "":
		return fault.Field("tool_choice", "%s requires tools", f.ToolChoice)
	case mode == routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION &&
		!toolcall.Names([]byte(out.GetToolsJson()))[choice.GetFunction()]:
		return fault.Field("tool_choice", "no tool is named %q", choice.GetFunction())
	}
	return nil
}

// toolsJSON returns the offered tools; empty for none. Tools that the server runs have been replaced by their
// definitions before (splitTools).
func (f *templateFields) toolsJSON() (string, error) {
	if !given(f.Tools) {
		return "", nil
	}
	var tools []toolHead
	if json.Unmarshal(f.Tools, &tools) != nil {
		return "", fault.Field("tools", "want a list of tools")
	}
	for i, t := range tools {
		switch {
		case t.Type != "function":
			return "", fault.Field(fmt.Sprintf("tools[%d].type", i), "%q is not supported, only function is", t.Type)
		case t.Function == nil || t.Function.Name == "":
			return "", fault.Field(fmt.Sprintf("tools[%d].function.name", i), "is missing")
		}
	}
	if len(tools) == 0 {
		return "", nil
	}
	return string(f.Tools), nil
}

// toolHead is the part of a tool that this package reads.
type toolHead struct {
	Type     string `json:"type"`
	Function *struct {
		Name string `json:"name"`
	} `json:"function"`
}

// documentsJSON returns the list of documents; empty for none.
func (f *templateFields) documentsJSON() (string, error) {
	if !given(f.Documents) {
		return "", nil
	}
	var documents []map[string]any
	if json.Unmarshal(f.Documents, &documents) != nil {
		return "", fault.Field("documents", "want a list of objects")
	}
	return string(f.Documents), nil
}

// variablesJSON returns the additional template variables; empty for none.
func (f *templateFields) variablesJSON() (string, error) {
	vars := map[string]json.RawMessage{}
	if given(f.Kwargs) {
		if json.Unmarshal(f.Kwargs, &vars) != nil {
			return "", fault.Field("chat_template_kwargs", "want an object")
		}
	}
	if _, own := vars["reasoning_effort"]; !own && f.ReasoningEffort != nil {
		text, err := json.Marshal(*f.ReasoningEffort)
		if err != nil {
			return "", fault.Field("reasoning_effort", "%v", err)
		}
		vars["reasoning_effort"] = text
	}
	if len(vars) == 0 {
		return "", nil
	}
	text, err := json.Marshal(vars)
	if err != nil {
		return "", fault.Field("chat_template_kwargs", "%v", err)
	}
	return string(text), nil
}

// parsesReasoning reports whether reasoning is separated from content.
func (f *templateFields) parsesReasoning() (bool, error) {
	if f.ReasoningFormat == nil {
		return true, nil
	}
	switch *f.ReasoningFormat {
	case "auto", "deepseek":
		return true, nil
	case "none":
		return false, nil
	}
	return false, fault.Field("reasoning_format", "%q is not supported: want auto, deepseek or none",
		*f.ReasoningFormat)
}
