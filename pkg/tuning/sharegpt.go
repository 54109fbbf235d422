package tuning

import (
	"encoding/json"
	"fmt"
)

// shareRoles maps the names that ShareGPT's data sets have for who speaks.
func shareRoles() map[string]string {
	return map[string]string{
		"system": roleSystem, "human": roleUser, "user": roleUser,
		"gpt": roleAssistant, "chatgpt": roleAssistant, "bing": roleAssistant, "bard": roleAssistant,
		"assistant": roleAssistant, "model": roleAssistant, "function_call": roleAssistant, "tool_call": roleAssistant,
		"tool": roleTool, "function": roleTool, "function_response": roleTool, "tool_response": roleTool,
		"observation": roleTool,
	}
}

// shareGPT reads a conversation of {"from", "value"}. Data sets that call the list conversations but hold
// OpenAI's messages are read as those.
func (r *rowReader) shareGPT() {
	r.common()
	list := r.list("conversations")
	if r.err != nil {
		return
	}
	if len(list) == 0 {
		r.fail("conversations", "want at least one message")
		return
	}
	if _, ok := list[0]["role"]; ok {
		r.out.Messages = r.chat("conversations", true)
		return
	}
	if system := r.optional("system"); system != "" {
		r.out.Messages = append(r.out.Messages, made(roleSystem, system, false))
	}
	roles := shareRoles()
	for i, m := range list {
		at := fmt.Sprintf("conversations[%d]", i)
		var from, value *string
		if json.Unmarshal(m["from"], &from) != nil || from == nil || roles[*from] == "" {
			r.fail(at+".from", "want human, gpt, system or tool, got %s", brief(m["from"]))
			return
		}
		if json.Unmarshal(m["value"], &value) != nil || value == nil {
			r.fail(at+".value", "want a text, got %s", brief(m["value"]))
			return
		}
		role := roles[*from]
		message := made(role, *value, role == roleAssistant)
		if *from == "function_call" || *from == "tool_call" {
			if text, ok := callMessage(*value); ok {
				message.JSON = text
			}
		}
		for _, name := range []string{"weight", "train", "training"} {
			if raw, ok := m[name]; ok {
				only := fields{}
				if json.Unmarshal(message.JSON, &only) != nil {
					continue
				}
				only[name] = raw
				message = r.message(at, role, only, message.Train)
			}
		}
		r.out.Messages = append(r.out.Messages, message)
	}
}

// callMessage returns an assistant's message with the tool call that a text spells, or calls if it is a list.
func callMessage(text string) ([]byte, bool) {
	type call struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
	}
	var calls []call
	if json.Unmarshal([]byte(text), &calls) != nil {
		var one call
		if json.Unmarshal([]byte(text), &one) != nil {
			return nil, false
		}
		calls = []call{one}
	}
	var list []map[string]any
	for i, c := range calls {
		if c.Name == "" || len(c.Arguments) == 0 {
			return nil, false
		}
		list = append(list, map[string]any{"id": fmt.Sprintf("call_%d", i), "type": "function",
			"function": map[string]any{"name": c.Name, "arguments": c.Arguments}})
	}
	if len(list) == 0 {
		return nil, false
	}
	out, err := json.Marshal(map[string]any{"role": roleAssistant, "content": nil, "tool_calls": list})
	return out, err == nil
}
