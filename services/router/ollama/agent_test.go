package ollama_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/webtools"
	"github.com/lamina-mesh/lamina/services/router/agent"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
	"github.com/lamina-mesh/lamina/services/router/ollama"
)

// library finds one page.
type library struct{}

func (library) Do(_ context.Context, query string, _ int) ([]webtools.Result, string, error) {
	return []webtools.Result{{URL: "http://a.test/", Title: "A", Text: query}}, "", nil
}

// searcher is a model that searches, and then cites what it has found and calls a function of the client.
func searcher() *httpapitest.Backend {
	return &httpapitest.Backend{
		Turns: [][]string{
			{"Wait", ".", "<tool_call>\n{\"name\": \"web_search\", \"arguments\": {\"query\": \"cats\"}}\n</tool_call>"},
			{"Yes ", "[1].", "\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rom\"}}\n</tool_call>"},
		},
		Format: &tokenizerv1.ChatFormat{Calls: "hermes", Reasoning: "think"},
	}
}

func serveTools(t *testing.T, b *httpapitest.Backend, box *agent.Box) *httptest.Server {
	t.Helper()
	return httpapitest.Serve(t, ollama.Routes(b, ollama.Options{Tools: box}))
}

const hosted = hi + `,"tools":[{"type":"web_search"},{"type":"function","function":{"name":"weather","parameters":{}}}]`

// shownMessage is what a client reads of a message.
type shownMessage struct {
	Content string
	Calls   []struct {
		Function struct{ Name string }
	} `json:"tool_calls"`
	Executed []struct {
		Index           int
		Type, Arguments string
		Failed          bool
	} `json:"executed_tools"`
	Annotations []struct {
		Citation struct {
			Start int `json:"start_index"`
			End   int `json:"end_index"`
			URL   string
		} `json:"url_citation"`
	}
}

func TestChat_RunsToolsOfTheServer(t *testing.T) {
	for _, stream := range []string{`,"stream":false}`, `}`} {
		b := searcher()
		s := serveTools(t, b, agent.New(agent.Config{Search: library{}}))
		status, text := httpapitest.Call(t, "POST", s.URL+"/api/chat", hosted+stream)
		if status != http.StatusOK {
			t.Fatalf("%d %s", status, text)
		}
		var sum shownMessage
		eval := 0
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		for i, l := range lines {
			var v struct {
				Message shownMessage
				Done    bool
				Reason  string `json:"done_reason"`
				Eval    int    `json:"eval_count"`
			}
			if err := json.Unmarshal([]byte(l), &v); err != nil || v.Done != (i == len(lines)-1) {
				t.Fatalf("line %d: %v in %s", i, err, l)
			}
			sum.Content += v.Message.Content
			sum.Calls = append(sum.Calls, v.Message.Calls...)
			sum.Executed = append(sum.Executed, v.Message.Executed...)
			sum.Annotations = append(sum.Annotations, v.Message.Annotations...)
			eval = v.Eval
		}
		if sum.Content != "Wait.\n\nYes [1]." || len(sum.Calls) != 1 || sum.Calls[0].Function.Name != "weather" ||
			eval != 6 {
			t.Errorf("%s: %d tokens of %+v", stream, eval, sum)
		}
		if len(sum.Executed) != 1 || sum.Executed[0].Type != "web_search" || sum.Executed[0].Failed ||
			sum.Executed[0].Arguments != `{"query": "cats"}` {
			t.Errorf("%s: the server ran %+v", stream, sum.Executed)
		}
		if len(sum.Annotations) != 1 || sum.Annotations[0].Citation.URL != "http://a.test/" ||
			sum.Content[sum.Annotations[0].Citation.Start:sum.Annotations[0].Citation.End] != "[1]" {
			t.Errorf("%s: the citations are %+v", stream, sum.Annotations)
		}
		if turns := b.Chats(); len(turns) != 2 || len(turns[1].GetMessages()) != 3 ||
			!strings.Contains(turns[0].GetToolsJson(), `"weather"`) ||
			!strings.Contains(turns[0].GetToolsJson(), `"web_search"`) {
			t.Errorf("%s: the turns are %v", stream, turns)
		}
	}
}

func TestChat_ToolsThatAreOffAreRefused(t *testing.T) {
	for box, body := range map[*agent.Box]string{
		nil:                       hosted,
		agent.New(agent.Config{}): hi + `,"tools":[{"type":"read_page"}]`,
		agent.New(agent.Config{Search: library{}}): hi + `,"tools":[{"type":"web_search"},{"type":"function",` +
			`"function":{"name":"web_search"}}]`,
	} {
		s := serveTools(t, searcher(), box)
		status, text := httpapitest.Call(t, "POST", s.URL+"/api/chat", body+`}`)
		if status != http.StatusBadRequest || !strings.Contains(text, "tools[0]") {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
}
