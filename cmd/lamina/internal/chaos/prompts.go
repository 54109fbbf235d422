package chaos

import (
	"encoding/json"
	"fmt"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
)

// mixedPrompts is the load of a manifest without prompts: a third each is greedy, sampled by a seed,
// and held to a JSON schema. With choices, one in eight asks for two of them, which cannot be resumed.
func mixedPrompts(choices bool) []loadtest.Prompt {
	openings := []string{
		"The prince", "In the evening the whole army", "Natasha looked at him and", "The old count said that",
		"When the carriage stopped", "Pierre did not answer", "The officers were silent", "All Moscow spoke of",
	}
	schema := json.RawMessage(`{"type":"json_schema","json_schema":{"name":"person","schema":{"type":"object",` +
		`"properties":{"name":{"type":"string","maxLength":24},"age":{"type":"integer","minimum":0,"maximum":120}},` +
		`"required":["name","age"],"additionalProperties":false}}}`)
	var out []loadtest.Prompt
	for i := range 24 {
		p := loadtest.Prompt{
			Line: i + 1, Text: openings[i%len(openings)], Extra: map[string]json.RawMessage{},
		}
		switch i % 3 {
		case 0:
			p.Extra["temperature"] = json.RawMessage("0")
		case 1:
			p.Extra["temperature"] = json.RawMessage("0.9")
		case 2:
			p.Extra["temperature"], p.Extra["response_format"] = json.RawMessage("0.7"), schema
		}
		if choices && i%8 == 7 {
			p.Extra["n"] = json.RawMessage("2")
		}
		p.Text = fmt.Sprintf("%s (%d)", p.Text, i)
		out = append(out, p)
	}
	return out
}
