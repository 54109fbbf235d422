package anthropic

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// inBlock is a content block of a request.
type inBlock struct {
	Type      string          `json:"type"`
	Text      *string         `json:"text"`
	Thinking  string          `json:"thinking"`
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`
	ToolUseID string          `json:"tool_use_id"`
	Content   json.RawMessage `json:"content"`
	IsError   bool            `json:"is_error"`
	Title     string          `json:"title"`
	Source    *struct {
		Type string `json:"type"`
		Data string `json:"data"`
	} `json:"source"`
}

// turns sets the messages, and has the last one continued if it is the assistant's.
func (c *request) turns(out *routerv1.ChatRequest) error {
	if httpapi.Given(c.System) {
		blocks, err := readBlocks("system", c.System)
		if err != nil {
			return err
		}
		text, err := joinTexts("system", blocks)
		if err != nil {
			return err
		}
		if text != "" {
			if err := add(out, httpapi.Turn{Role: "system", Content: text}); err != nil {
				return err
			}
		}
	}
	if len(c.Messages) == 0 {
		return fault.Field("messages", "want at least one message")
	}
	names := map[string]string{} // of the tools of earlier calls, by the id of the call
	for i, raw := range c.Messages {
		field := fmt.Sprintf("messages[%d]", i)
		var m struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		}
		if json.Unmarshal(raw, &m) != nil {
			return fault.Field(field, "want an object with role and content")
		}
		if !httpapi.Given(m.Content) {
			return fault.Field(field+".content", "want a string or a list of blocks")
		}
		blocks, err := readBlocks(field+".content", m.Content)
		if err != nil {
			return err
		}
		switch m.Role {
		case "user":
			err = userTurn(out, field+".content", blocks, names)
		case "assistant":
			err = assistantTurn(out, field+".content", blocks, names, i == len(c.Messages)-1)
		default:
			err = fault.Field(field+".role", "%q is not supported: want user or assistant", m.Role)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func add(out *routerv1.ChatRequest, t httpapi.Turn) error {
	m, err := t.Message()
	if err != nil {
		return err
	}
	out.Messages = append(out.Messages, m)
	return nil
}

// readBlocks reads content: a string counts as one block of text.
func readBlocks(field string, raw json.RawMessage) ([]inBlock, error) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return []inBlock{{Type: textBlock, Text: &text}}, nil
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil, fault.Field(field, "want a string or a list of blocks")
	}
	out := make([]inBlock, len(list))
	for i, one := range list {
		if err := json.Unmarshal(one, &out[i]); err != nil {
			return nil, fault.Field(fmt.Sprintf("%s[%d]", field, i), "want a content block: %v", err)
		}
	}
	return out, nil
}

// blockText returns the text of a block of text or of a document.
func blockText(field string, b inBlock) (string, error) {
	switch b.Type {
	case textBlock:
		if b.Text == nil {
			return "", fault.Field(field+".text", "want a string")
		}
		return *b.Text, nil
	case "document":
		if b.Source == nil || b.Source.Type != "text" {
			return "", fault.Field(field+".source.type", "only documents of type text are supported")
		}
		if b.Title != "" {
			return b.Title + "\n\n" + b.Source.Data, nil
		}
		return b.Source.Data, nil
	}
	return "", fault.Field(field+".type", "%q is not supported here", b.Type)
}

// joinTexts joins the texts of blocks with line breaks.
func joinTexts(field string, blocks []inBlock) (string, error) {
	texts := make([]string, len(blocks))
	for i, b := range blocks {
		text, err := blockText(fmt.Sprintf("%s[%d]", field, i), b)
		if err != nil {
			return "", err
		}
		texts[i] = text
	}
	return strings.Join(texts, "\n"), nil
}

// userTurn adds the blocks of a user's message. Results of tools are messages of their own.
func userTurn(out *routerv1.ChatRequest, field string, blocks []inBlock, names map[string]string) error {
	var texts []string
	flush := func() error {
		if len(texts) == 0 {
			return nil
		}
		t := httpapi.Turn{Role: "user", Content: strings.Join(texts, "\n")}
		texts = nil
		return add(out, t)
	}
	if len(blocks) == 0 {
		return fault.Field(field, "want at least one block")
	}
	for i, b := range blocks {
		at := fmt.Sprintf("%s[%d]", field, i)
		if b.Type != "tool_result" {
			text, err := blockText(at, b)
			if err != nil {
				return err
			}
			texts = append(texts, text)
			continue
		}
		name, known := names[b.ToolUseID]
		if !known {
			return fault.Field(at+".tool_use_id", "no earlier tool_use has the id %q", b.ToolUseID)
		}
		if err := flush(); err != nil {
			return err
		}
		text := ""
		if httpapi.Given(b.Content) {
			parts, err := readBlocks(at+".content", b.Content)
			if err != nil {
				return err
			}
			if text, err = joinTexts(at+".content", parts); err != nil {
				return err
			}
		}
		if b.IsError {
			text = "Error: " + text
		}
		if err := add(
			out,
			httpapi.Turn{Role: "tool", Content: text, CallID: callID(b.ToolUseID), Name: name},
		); err != nil {
			return err
		}
	}
	return flush()
}

// callID returns the id of a call as the chat template gets it.
func callID(id string) string { return strings.TrimPrefix(id, "toolu_") }

// assistantTurn adds the blocks of an assistant's message.
func assistantTurn(
	out *routerv1.ChatRequest, field string, blocks []inBlock, names map[string]string, last bool,
) error {
	t := httpapi.Turn{Role: "assistant"}
	var texts, thoughts []string
	for i, b := range blocks {
		at := fmt.Sprintf("%s[%d]", field, i)
		switch b.Type {
		case thinkingBlock:
			thoughts = append(thoughts, b.Thinking)
		case "redacted_thinking":
		case serverBlock, mcpBlock, searchName + "_tool_result", fetchName + "_tool_result", "mcp_tool_result":
			// What the server has run is not run again, and the model does not see it again.
		case toolBlock:
			input := strings.TrimSpace(string(b.Input))
			switch {
			case b.ID == "":
				return fault.Field(at+".id", "is missing")
			case b.Name == "":
				return fault.Field(at+".name", "is missing")
			case !strings.HasPrefix(input, "{"):
				return fault.Field(at+".input", "want an object")
			}
			names[b.ID] = b.Name
			t.Calls = append(t.Calls, toolcall.Call{ID: callID(b.ID), Name: b.Name, Arguments: input})
		default:
			text, err := blockText(at, b)
			if err != nil {
				return err
			}
			texts = append(texts, text)
		}
	}
	t.Content, t.Reasoning = strings.Join(texts, "\n"), strings.Join(thoughts, "\n")
	if last {
		if len(t.Calls) > 0 {
			return fault.Field(field, "the results of the tool calls are missing")
		}
		if t.Content == "" {
			return fault.Field(field, "the last message has no text to continue")
		}
		out.NoGenerationPrompt, out.ContinueFinalMessage = true, true
	}
	return add(out, t)
}
