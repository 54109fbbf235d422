package toolcall

import (
	"encoding/json"
	"strings"
)

// Result is a whole answer, added up from deltas.
type Result struct {
	Content   string
	Reasoning string
	Calls     []Call
}

// Call is a call whose arguments are complete.
type Call struct {
	ID        string
	Name      string
	Arguments string // JSON object
}

// Add adds a delta.
func (r *Result) Add(d Delta) {
	r.Content += d.Content
	r.Reasoning += d.Reasoning
	for _, c := range d.Calls {
		if c.Index == len(r.Calls) {
			r.Calls = append(r.Calls, Call{ID: c.ID, Name: c.Name})
		}
		r.Calls[c.Index].Arguments += c.Arguments
	}
}

// Complete removes the calls whose arguments are not a JSON object, which the model or its token
// limit left unfinished. They were announced in deltas, but nobody can make them.
func (r *Result) Complete() {
	kept := r.Calls[:0]
	for _, c := range r.Calls {
		if json.Valid([]byte(c.Arguments)) && strings.HasPrefix(strings.TrimLeft(c.Arguments, white), "{") {
			kept = append(kept, c)
		}
	}
	r.Calls = kept
}

// Family returns the format of a family of models by its public name; ok is false for an unknown
// name.
func Family(name string) (f Format, ok bool) {
	switch name {
	case "deepseek":
		return Format{Calls: "deepseek-any", Reasoning: "think"}, true
	case "gemma4":
		return Format{Calls: "gemma", Reasoning: "gemma"}, true
	case "glm":
		return Format{Calls: "glm", Reasoning: "think"}, true
	case "gpt-oss":
		return Format{Calls: "harmony"}, true
	case "kimi":
		return Format{Calls: "kimi-any", Reasoning: "kimi-any"}, true
	case "llama":
		return Format{Calls: "llama-any"}, true
	case "mistral":
		return Format{Calls: "mistral", Reasoning: "mistral"}, true
	case "qwen3-hermes":
		return Format{Calls: "hermes", Reasoning: "think"}, true
	case "qwen3-xml":
		return Format{Calls: "qwen-xml", Reasoning: "think"}, true
	}
	return Format{}, false
}
