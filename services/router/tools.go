package router

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// plainCalls is the format of required calls for a model whose template does not support tools.
const plainCalls = "hermes"

// toolUse is a chat's tools and tool choice.
type toolUse struct {
	tools    string // OpenAI's definitions; empty if there are none or none may be called
	function string // the only function that may be called; empty for any
	forced   bool   // a call is required
	single   bool   // at most one call
	begun    bool   // the prompt does not start the assistant's turn, so the text may begin in any state
}

// readToolUse reads and checks a chat's tools and tool choice.
func readToolUse(r *routerv1.ChatRequest) (*toolUse, error) {
	u := &toolUse{
		tools: r.GetToolsJson(), single: r.ParallelToolCalls != nil && !r.GetParallelToolCalls(),
		begun: r.GetNoGenerationPrompt(),
	}
	choice := r.GetToolChoice()
	switch choice.GetMode() {
	case routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_UNSPECIFIED, routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_AUTO:
	case routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE:
		u.tools = ""
	case routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED:
		u.forced = true
	case routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_FUNCTION:
		u.forced = true
		if u.function = choice.GetFunction(); u.function == "" {
			return nil, fault.Field("tool_choice.function", "name one of tools_json")
		}
	default:
		return nil, fault.Field("tool_choice.mode", "unknown mode %v", choice.GetMode())
	}
	if choice.GetFunction() != "" && u.function == "" {
		return nil, fault.Field("tool_choice.function", "requires TOOL_CHOICE_MODE_FUNCTION")
	}
	var list []json.RawMessage
	if u.tools != "" && json.Unmarshal([]byte(u.tools), &list) != nil {
		return nil, fault.Field("tools_json", "want a JSON array of tools")
	}
	if len(list) > samplerules.MaxTools {
		return nil, fault.Field("tools_json", "%d tools are more than %d", len(list), samplerules.MaxTools)
	}
	if len(list) == 0 {
		if u.forced {
			return nil, fault.Field("tool_choice", "requires tools, but tools_json lists none")
		}
		u.tools = ""
	}
	if names := toolcall.Names([]byte(u.tools)); u.function != "" && !names[u.function] {
		return nil, fault.Field("tool_choice.function", "no tool of tools_json is named %q", u.function)
	}
	return u, nil
}

// describeTools describes the tools at the beginning of the last user message, if calls are
// required and the model's template does not support tools.
func (q *request) describeTools(u *toolUse, messages []*tokenizerv1.Message) []*tokenizerv1.Message {
	q.service.mu.Lock()
	info := q.service.models[q.digest]
	q.service.mu.Unlock()
	if !u.forced || info == nil || info.vocabulary.GetFormat().GetCalls() != "" {
		return messages
	}
	var tools []json.RawMessage
	if json.Unmarshal([]byte(u.tools), &tools) != nil {
		return messages
	}
	var b strings.Builder
	b.WriteString("You can call these tools, one a line:\n")
	for _, tool := range tools {
		var line bytes.Buffer
		if json.Compact(&line, tool) == nil {
			b.WriteString(line.String() + "\n")
		}
	}
	b.WriteString(
		"To call one, write <tool_call>\n{\"name\": its name, \"arguments\": {its arguments}}\n</tool_call>\n\n",
	)
	for i, m := range slices.Backward(messages) {
		if m.GetRole() == "user" && m.GetJson() == "" {
			told := slices.Clone(messages)
			told[i] = &tokenizerv1.Message{Role: m.GetRole(), Content: b.String() + m.GetContent()}
			return told
		}
	}
	return messages
}

// constrainCalls constrains a chat's text to calls of its tools, once its prompt is known.
func (q *request) constrainCalls(
	ctx context.Context, u *toolUse, info *modelInfo, from []tokenizerv1.TokenizerServiceClient,
) error {
	if u.tools == "" || u.begun && !u.forced {
		return nil
	}
	if q.format.GetCalls() == "" {
		if !u.forced {
			return nil // this model has no tool call format
		}
		q.format = &tokenizerv1.ChatFormat{Calls: plainCalls, Reasoning: q.format.GetReasoning()}
	}
	v, err := q.service.vocabulary(ctx, q.digest, from)
	if err != nil {
		return err
	}
	control, ends := controlTokens(v.tokens, info.vocabulary.GetEndIds())
	content, err := contentPart(q.sampling.GetGrammar())
	if err != nil {
		return err
	}
	offer := toolcall.Offer{
		Tools: []byte(u.tools), Function: u.function, Required: u.forced, Single: u.single, Prompt: q.promptEnd,
		Content: content,
		Control: func(s string) bool { return control[s] }, Ends: func(s string) bool { return ends[s] },
		Honours: func(schema []byte) error {
			return q.service.grammars.bounded(ctx, func() error { _, err := grammar.Schema(schema); return err })
		},
	}
	compiles := func(source []byte) error {
		return q.service.grammars.check(
			ctx, "tools_json", &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_TAGS,
				Source: string(source)},
		)
	}
	format := toolcall.Format{Calls: q.format.GetCalls(), Reasoning: q.format.GetReasoning()}
	source, err := format.Structure(offer)
	if err != nil {
		return err
	}
	if err = compiles(source); err != nil { // the grammar is too large: constrain only the arguments of strict tools
		offer.Honours = func([]byte) error { return err }
		if source, err = format.Structure(offer); err == nil {
			err = compiles(source)
		}
		if err != nil {
			return fault.Field("tools_json", "%v", err)
		}
	}
	held := &routerv1.Sampling{}
	if q.sampling != nil {
		held = proto.CloneOf(q.sampling)
	}
	held.Grammar = &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_TAGS, Source: string(source)}
	q.sampling, q.toolGrammar = held, true
	return nil
}

// controlTokens returns the texts of a vocabulary's control tokens and of its end-of-text ids.
func controlTokens(tokens [][]byte, endIDs []uint32) (control, ends map[string]bool) {
	control, ends = map[string]bool{}, map[string]bool{}
	for _, token := range tokens {
		if spelling, ok := grammar.ControlSpelling(token); ok {
			control[spelling] = true
		}
	}
	for _, id := range endIDs {
		if int(id) < len(tokens) {
			if spelling, ok := grammar.ControlSpelling(tokens[id]); ok {
				ends[spelling] = true
			}
		}
	}
	return control, ends
}

// contentPart returns the grammar of an answer without calls as a part of a structural tag; nil for
// none.
func contentPart(g *samplerv1.Grammar) ([]byte, error) {
	part := map[string]any{}
	switch g.GetKind() {
	case samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA:
		part["type"], part["json_schema"] = "json_schema", json.RawMessage(g.GetSource())
	case samplerv1.GrammarKind_GRAMMAR_KIND_GBNF:
		part["type"], part["grammar"] = "grammar", g.GetSource()
	case samplerv1.GrammarKind_GRAMMAR_KIND_REGEX:
		part["type"], part["pattern"] = "regex", g.GetSource()
	case samplerv1.GrammarKind_GRAMMAR_KIND_TAGS:
		part["type"], part["structure"] = "structure", json.RawMessage(g.GetSource())
	default:
		return nil, nil
	}
	text, err := json.Marshal(part)
	if err != nil {
		return nil, errors.Join(fault.Field("sampling.grammar.source", "read JSON"), err)
	}
	return text, nil
}
