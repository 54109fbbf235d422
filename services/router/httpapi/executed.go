package httpapi

import (
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/services/router/agent"
)

// Annotations returns citations as OpenAI's objects.
func Annotations(citations []toolloop.Citation) []any {
	out := make([]any, len(citations))
	for i, c := range citations {
		out[i] = map[string]any{"type": "url_citation", "url_citation": map[string]any{
			"start_index": c.Start, "end_index": c.End, "url": c.Source.URL, "title": c.Source.Title,
		}}
	}
	return out
}

// Executed returns a call that the server has run as an object, in the spelling of Groq's API. index is its place among
// all such calls of the answer.
func Executed(index int, r Ran) map[string]any {
	out := map[string]any{"index": index, "type": r.Tool.Kind, "name": r.Tool.Name, "arguments": r.Call.Arguments,
		"failed": r.Result.Failed, "output": r.Result.Text}
	if r.Tool.Kind == agent.KindMCP {
		out["server_label"], out["name"] = r.Tool.Server, r.Tool.Remote
	}
	if len(r.Result.Sources) > 0 {
		found := make([]any, len(r.Result.Sources))
		for i, s := range r.Result.Sources {
			found[i] = map[string]string{"title": s.Title, "url": s.URL}
		}
		out["search_results"] = map[string]any{"results": found}
	}
	return out
}
