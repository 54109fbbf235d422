package responses_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
)

const withLogprobs = `,"include":["message.output_text.logprobs","reasoning.encrypted_content"],"top_logprobs":1`

// logprobsOfTalker are those of the tokens of its message; its reasoning and its call have tokens too.
const logprobsOfTalker = `[{"token":"I ","logprob":-1,"bytes":[73,32],"top_logprobs":[{"token":"I ","logprob":-1,
	"bytes":[73,32]}]},{"token":"look.","logprob":-1,"bytes":[108,111,111,107,46],"top_logprobs":[{"token":"look.",
	"logprob":-1,"bytes":[108,111,111,107,46]}]}]`

func TestResponses_LogprobsAreThoseOfTheMessage(t *testing.T) {
	s := serve(t, httpapitest.Talker(), options())
	body := `{"model":"m","input":"hi"` + weather + withLogprobs
	_, text := call(t, "POST", s.URL+"/v1/responses", "", body+`}`)
	type part struct{ Logprobs json.RawMessage }
	var whole struct {
		Top    int `json:"top_logprobs"`
		Output []struct{ Content []part }
	}
	if err := json.Unmarshal([]byte(text), &whole); err != nil || len(whole.Output) != 3 || whole.Top != 1 {
		t.Fatalf("%v in %s", err, text)
	}
	httpapitest.SameJSON(t, "the message", string(whole.Output[1].Content[0].Logprobs), logprobsOfTalker)
	if whole.Output[0].Content[0].Logprobs != nil {
		t.Errorf("the reasoning has log-probabilities: %s", text)
	}

	_, text = call(t, "POST", s.URL+"/v1/responses", "", body+`,"stream":true}`)
	var sum []json.RawMessage
	done := 0
	for _, l := range strings.Split(text, "\n") {
		data, ok := strings.CutPrefix(l, "data: {")
		if !ok {
			continue
		}
		var e struct {
			Type     string
			Logprobs json.RawMessage
			Part     part
		}
		if err := json.Unmarshal([]byte("{"+data), &e); err != nil {
			t.Fatalf("%v in %s", err, l)
		}
		switch e.Type {
		case "response.output_text.delta":
			var some []json.RawMessage
			if err := json.Unmarshal(e.Logprobs, &some); err != nil {
				t.Fatalf("%v in %s", err, l)
			}
			sum = append(sum, some...)
		case "response.output_text.done":
			done++
			httpapitest.SameJSON(t, "the end of the text", string(e.Logprobs), logprobsOfTalker)
		case "response.content_part.done":
			if e.Part.Logprobs != nil {
				done++
				httpapitest.SameJSON(t, "the part", string(e.Part.Logprobs), logprobsOfTalker)
			}
		}
	}
	all, err := json.Marshal(sum)
	if err != nil || done != 2 {
		t.Fatalf("%v, and %d events end the text", err, done)
	}
	httpapitest.SameJSON(t, "the deltas", string(all), logprobsOfTalker)
}

func TestResponses_TopLogprobsAreBounded(t *testing.T) {
	s := serve(t, httpapitest.Talker(), options())
	for _, rest := range []string{`,"top_logprobs":1`, strings.Replace(withLogprobs, `:1`, `:21`, 1),
		strings.Replace(withLogprobs, `:1`, `:-1`, 1)} {
		status, text := call(t, "POST", s.URL+"/v1/responses", "", `{"model":"m","input":"hi"`+rest+`}`)
		if status != http.StatusBadRequest || !strings.Contains(text, `"param":"top_logprobs"`) {
			t.Errorf("%s: %d %s", rest, status, text)
		}
	}
}
