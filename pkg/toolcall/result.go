package toolcall

import (
	"encoding/json"
	"maps"
	"slices"
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

// published are the formats of families of models by their public names.
var published = map[string]Format{
	"deepseek":     {Calls: "deepseek-any", Reasoning: "think"},
	"gemma4":       {Calls: "gemma", Reasoning: "gemma"},
	"glm":          {Calls: "glm", Reasoning: "think"},
	"gpt-oss":      {Calls: "harmony"},
	"kimi":         {Calls: "kimi-any", Reasoning: "kimi-any"},
	"llama":        {Calls: "llama-any"},
	"mistral":      {Calls: "mistral", Reasoning: "mistral"},
	"qwen3-hermes": {Calls: "hermes", Reasoning: "think"},
	"qwen3-xml":    {Calls: "qwen-xml", Reasoning: "think"},
}

// Family returns the format of a family of models by its public name; ok is false for an unknown
// name.
func Family(name string) (f Format, ok bool) {
	f, ok = published[name]
	return f, ok
}

// Families lists the public names of the families.
func Families() []string { return slices.Sorted(maps.Keys(published)) }
