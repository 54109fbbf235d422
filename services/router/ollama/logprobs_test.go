package ollama_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
)

// tokensOf returns the tokens of the log-probabilities in all lines of an answer.
func tokensOf(t *testing.T, text string) (tokens []string, top int) {
	t.Helper()
	for _, l := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		var v struct {
			Logprobs []struct {
				Token   string
				Logprob float32
				Bytes   []int
				Top     []struct{ Token string } `json:"top_logprobs"`
			}
		}
		if err := json.Unmarshal([]byte(l), &v); err != nil {
			t.Fatalf("%v in %s", err, l)
		}
		for _, p := range v.Logprobs {
			tokens = append(tokens, p.Token)
			if top += len(p.Top); p.Logprob != -1 || len(p.Bytes) != len(p.Token) ||
				len(p.Top) > 0 && p.Top[0].Token != p.Token {
				t.Errorf("an entry is %+v", p)
			}
		}
	}
	return tokens, top
}

func TestLogprobs_OfEveryTokenOnce(t *testing.T) {
	b := httpapitest.Talker()
	s := serve(t, b)
	for path, body := range map[string]string{"/api/chat": hi + tools, "/api/generate": `{"model":"m","prompt":"x"`,
		"/api/generate?raw": `{"model":"m","prompt":"x","raw":true`} {
		for _, stream := range []string{`,"stream":false}`, `}`} {
			_, text := httpapitest.Call(t, "POST", s.URL+path, body+`,"logprobs":true,"top_logprobs":2`+stream)
			if tokens, top := tokensOf(t, text); !slices.Equal(tokens, b.Pieces) || top != 2*len(b.Pieces) {
				t.Errorf("%s%s: %q with %d candidates", path, stream, tokens, top)
			}
			for _, off := range []string{``, `,"top_logprobs":2`} {
				_, text = httpapitest.Call(t, "POST", s.URL+path, body+off+stream)
				if strings.Contains(text, "logprobs") {
					t.Errorf("%s%s%s: %s", path, off, stream, text)
				}
			}
		}
		status, text := httpapitest.Call(t, "POST", s.URL+path, body+`,"logprobs":true,"top_logprobs":21}`)
		if status != http.StatusBadRequest || !strings.Contains(text, "top_logprobs") {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}
