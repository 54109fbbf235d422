package responses

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// inItem is an item of the input.
type inItem struct {
	Type      string          `json:"type"`
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	Summary   json.RawMessage `json:"summary"`
	CallID    string          `json:"call_id"`
	Name      string          `json:"name"`
	Arguments string          `json:"arguments"`
	Output    json.RawMessage `json:"output"`
}

// items returns the items of the input. A string is a message of the user.
func (c *request) items() ([]json.RawMessage, error) {
	if !httpapi.Given(c.Input) {
		if c.Previous != nil {
			return nil, nil
		}
		return nil, fault.Field("input", "is missing")
	}
	var text string
	if json.Unmarshal(c.Input, &text) == nil {
		item, err := json.Marshal(map[string]any{"type": itemMessage, "role": "user",
			"content": []any{map[string]string{"type": "input_text", "text": text}}})
		return []json.RawMessage{item}, err
	}
	var list []json.RawMessage
	if json.Unmarshal(c.Input, &list) != nil {
		return nil, fault.Field("input", "want a string or a list of items")
	}
	if len(list) == 0 && c.Previous == nil {
		return nil, fault.Field("input", "want at least one item")
	}
	return list, nil
}

// partsText joins the texts of a message's parts, or of a tool's output.
func partsText(field string, raw json.RawMessage) (string, error) {
	var text string
	if httpapi.Given(raw) && json.Unmarshal(raw, &text) == nil {
		return text, nil
	}
	var parts []struct {
		Type    string  `json:"type"`
		Text    *string `json:"text"`
		Refusal *string `json:"refusal"`
	}
	if !httpapi.Given(raw) || json.Unmarshal(raw, &parts) != nil {
		return "", fault.Field(field, "want a string or a list of parts")
	}
	texts := make([]string, len(parts))
	for i, p := range parts {
		switch {
		case p.Type == "refusal" && p.Refusal != nil:
			texts[i] = *p.Refusal
		case p.Type != "input_text" && p.Type != "output_text" && p.Type != "text" && p.Type != "reasoning_text" &&
			p.Type != "summary_text":
			return "", fault.Field(fmt.Sprintf("%s[%d].type", field, i), "%q is not supported, only text is", p.Type)
		case p.Text == nil:
			return "", fault.Field(fmt.Sprintf("%s[%d].text", field, i), "want a string")
		default:
			texts[i] = *p.Text
		}
	}
	return strings.Join(texts, "\n"), nil
}

// readTurns adds the turns that items stand for to turns. Items of the assistant that follow each other are one turn.
func readTurns(turns []httpapi.Turn, items []json.RawMessage) ([]httpapi.Turn, error) {
	turns = append([]httpapi.Turn(nil), turns...)
	names := map[string]string{} // of called functions, by the id of the call
	for _, t := range turns {
		for _, c := range t.Calls {
			names[c.ID] = c.Name
		}
	}
	thoughts := map[int]*strings.Builder{} // the reasoning of turns, by their index; there may be thousands of items
	// open says that the last turn is the assistant's, from these items, and more may be added to it.
	open := false
	assistant := func() *httpapi.Turn {
		if !open {
			turns, open = append(turns, httpapi.Turn{Role: "assistant"}), true
		}
		return &turns[len(turns)-1]
	}
	for i, raw := range items {
		field := fmt.Sprintf("input[%d]", i)
		var item inItem
		if err := json.Unmarshal(raw, &item); err != nil {
			return nil, fault.Field(field, "want an item: %v", err)
		}
		switch item.Type {
		case itemMessage, "":
			text, err := partsText(field+".content", item.Content)
			if err != nil {
				return nil, err
			}
			switch item.Role {
			case "assistant":
				t := assistant()
				if t.Content != "" || len(t.Calls) > 0 {
					open = false
					t = assistant()
				}
				t.Content = text
			case "user", "system", "developer":
				open = false
				turns = append(
					turns,
					httpapi.Turn{Role: strings.Replace(item.Role, "developer", "system", 1), Content: text},
				)
			default:
				return nil, fault.Field(field+".role", "%q is not supported: want user, assistant, system or developer",
					item.Role)
			}
		case itemReasoning:
			name, raw := "content", item.Content
			if !httpapi.Given(raw) || string(raw) == "[]" {
				name, raw = "summary", item.Summary
			}
			text := ""
			if httpapi.Given(raw) {
				var err error
				if text, err = partsText(field+"."+name, raw); err != nil {
					return nil, err
				}
			}
			if t := assistant(); t.Content != "" || len(t.Calls) > 0 {
				open = false
			}
			assistant()
			at := len(turns) - 1
			if thoughts[at] == nil {
				thoughts[at] = &strings.Builder{}
			}
			thoughts[at].WriteString(text)
		case itemCall:
			switch {
			case item.CallID == "":
				return nil, fault.Field(field+".call_id", "is missing")
			case item.Name == "":
				return nil, fault.Field(field+".name", "is missing")
			case !strings.HasPrefix(strings.TrimSpace(item.Arguments), "{") || !json.Valid([]byte(item.Arguments)):
				return nil, fault.Field(field+".arguments", "want the text of a JSON object")
			}
			names[item.CallID] = item.Name
			t := assistant()
			t.Calls = append(t.Calls, toolcall.Call{ID: item.CallID, Name: item.Name, Arguments: item.Arguments})
		case "function_call_output":
			name, known := names[item.CallID]
			if !known {
				return nil, fault.Field(field+".call_id", "no earlier function_call has the id %q", item.CallID)
			}
			text, err := partsText(field+".output", item.Output)
			if err != nil {
				return nil, err
			}
			open = false
			turns = append(turns, httpapi.Turn{Role: "tool", Content: text, CallID: item.CallID, Name: name})
		case itemSearch, itemMCP: // what the server has run; its result was told in the answer
		default:
			return nil, fault.Field(field+".type", "%q is not supported: want message, reasoning, function_call or "+
				"function_call_output", item.Type)
		}
	}
	for at, b := range thoughts {
		turns[at].Reasoning = b.String()
	}
	return turns, nil
}

// withInstructions puts instructions before the turns. System messages at the beginning are joined, since most chat
// templates have room for one.
func withInstructions(instructions *string, turns []httpapi.Turn) []httpapi.Turn {
	var texts []string
	if instructions != nil && *instructions != "" {
		texts = append(texts, *instructions)
	}
	n := 0
	for ; n < len(turns) && turns[n].Role == "system"; n++ {
		texts = append(texts, turns[n].Content)
	}
	if len(texts) == 0 {
		return turns
	}
	return append([]httpapi.Turn{{Role: "system", Content: strings.Join(texts, "\n\n")}}, turns[n:]...)
}
