package openai_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func sameProto(t *testing.T, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("the backend is asked\n%s\nwant\n%s", prototext.Format(got), prototext.Format(want))
	}
}

func TestCompletion_EveryFieldReachesTheBackend(t *testing.T) {
	b := &backend{failAt: -1}
	resp, text := post(
		t,
		serve(t, b).URL+"/v1/completions",
		`{"model":"m","prompt":[[1,2]],"max_tokens":5,"temperature":0,"top_p":0.5,"top_k":4,
		"min_p":0.25,"seed":-1,"stop":["a","b"],"presence_penalty":1,"frequency_penalty":-1,"repetition_penalty":2,
		"logit_bias":{"7":-100},"logprobs":2,"ignore_end":true,"user":"u","best_of":1,"suffix":null,"response_format":{"type":"text"}}`,
	)
	if resp.StatusCode != http.StatusOK || len(b.generations) != 1 {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	sameProto(t, b.generations[0], &routerv1.GenerateRequest{
		Model: "m", Prompt: &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: []uint32{1, 2}}},
		MaxTokens: 5, IgnoreEnd: true,
		Stop: []string{"a", "b"}, TopLogprobs: 2, Sampling: &routerv1.Sampling{
			Temperature: proto.Float32(0), TopP: proto.Float32(0.5), TopK: proto.Uint32(4), MinP: proto.Float32(0.25),
			Seed: proto.Uint64(1<<64 - 1), RepetitionPenalty: proto.Float32(2),
			FrequencyPenalty: -1, PresencePenalty: 1, LogitBias: map[uint32]float32{7: -100},
		},
	})
}

func TestCompletion_RulesReachTheBackend(t *testing.T) {
	b := &backend{failAt: -1}
	resp, text := post(
		t,
		serve(t, b).URL+"/v1/completions",
		`{"prompt":"x","bad_words":["a b",[4,5]],"typical_p":0.5,"repeat_penalty":1.5,"samplers":["penalties","typ_p"]}`,
	)
	if resp.StatusCode != http.StatusOK || len(b.generations) != 1 {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	sameProto(t, b.generations[0].GetSampling(), &routerv1.Sampling{
		RepetitionPenalty: proto.Float32(1.5), BadWords: []string{"a b"}, Advanced: &samplerv1.Advanced{
			TypicalP: 0.5, BadWords: []*samplerv1.Ids{{Ids: []uint32{4, 5}}},
			Order: []string{"min_tokens", "logit_bias", "bad_words", "no_repeat_ngram", "repetition_penalty",
				"penalties", "typical_p"},
		},
	})
	post(t, serve(t, b).URL+"/v1/completions", `{"prompt":"x","repeat_penalty":1.5,"repeat_last_n":0}`)
	// whatever the model's default
	sameProto(t, b.generations[1].GetSampling(), &routerv1.Sampling{RepetitionPenalty: proto.Float32(1)})
}

func TestCompletion_AbsentFieldsStayAbsent(t *testing.T) {
	b := &backend{failAt: -1}
	post(t, serve(t, b).URL+"/v1/completions", `{"prompt":"x","temperature":null,"stop":null,"top_k":null,"n":null}`)
	sameProto(t, b.generations[0], &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_Text{Text: "x"}, MaxTokens: 16, Sampling: &routerv1.Sampling{},
	})
	post(t, serve(t, b).URL+"/v1/completions", `{"prompt":"x","top_k":-1}`) // all, whatever the model's default
	sameProto(t, b.generations[1].GetSampling(), &routerv1.Sampling{TopK: proto.Uint32(0)})
}

func TestCompletion_PromptForms(t *testing.T) {
	for body, want := range map[string]int{`"x"`: 1, `[1,2]`: 1, `["x","y"]`: 2, `[[1],[2],[3]]`: 3} {
		b := &backend{failAt: -1}
		if resp, text := post(t, serve(t, b).URL+"/v1/completions",
			`{"prompt":`+body+`}`); resp.StatusCode != http.StatusOK || len(b.generations) != want {
			t.Errorf("%s: %d %s, %d generations, want %d", body, resp.StatusCode, text, len(b.generations), want)
		}
	}
}

func TestChat_MessagesReachTheBackend(t *testing.T) {
	b := &backend{failAt: -1}
	call := `{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}`
	noContent := `{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f"}}]}`
	tools := `[{"type":"function","function":{"name":"f"}}]`
	resp, text := post(t, serve(t, b).URL+"/v1/chat/completions", `{"messages":[
		{"role":"system","content":"s","name":null},
		{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
		`+call+`,`+noContent+`,{"role":"assistant","content":"x","reasoning_content":"hm"},{"role":"tool","tool_call_id":"1","content":[{"type":"text","text":"c"}]}],
		"max_completion_tokens":9,"max_tokens":7,"stop":"z","tools":`+tools+`,"tool_choice":"auto",
		"documents":[{"title":"t"}],"chat_template_kwargs":{"enable_thinking":false},"reasoning_effort":"low","add_generation_prompt":false}`)
	if resp.StatusCode != http.StatusOK || len(b.chats) != 1 {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	sameProto(t, b.chats[0], &routerv1.ChatRequest{
		MaxTokens: 9, Stop: []string{"z"}, ToolsJson: tools, Sampling: &routerv1.Sampling{}, KeepMarkers: true,
		NoGenerationPrompt: true,
		DocumentsJson:      `[{"title":"t"}]`, VariablesJson: `{"enable_thinking":false,"reasoning_effort":"low"}`,
		Messages: []*tokenizerv1.Message{
			{Role: "system", Content: "s"},
			{Role: "user", Content: "a\nb"},
			{Role: "assistant", Json: call},
			{
				Role: "assistant",
				Json: `{"content":null,"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f"}}]}`,
			},
			{Role: "assistant", Content: "x",
				Json: `{"content":"x","reasoning":"hm","reasoning_content":"hm","role":"assistant","thinking":"hm"}`},
			{Role: "tool", Content: "c", Json: `{"content":"c","role":"tool","tool_call_id":"1"}`},
		},
	})
}

func TestRequests_UnsupportedFieldIsNamed(t *testing.T) {
	for _, c := range []struct{ path, body, param string }{
		{"/v1/completions", `{}`, "prompt"},
		{"/v1/completions", `{"prompt":null}`, "prompt"},
		{"/v1/completions", `{"prompt":[]}`, "prompt"},
		{"/v1/completions", `{"prompt":[1,"x"]}`, "prompt"},
		{"/v1/completions", `{"prompt":[-1]}`, "prompt"},
		{"/v1/completions", `{"prompt":["1","2","3"],"n":128}`, "prompt"},
		{"/v1/completions", `{"prompt":"x","n":129}`, "n"},
		{"/v1/completions", `{"prompt":"x","best_of":129}`, "best_of"},
		{"/v1/completions", `{"prompt":"x","n":0}`, "n"},
		{"/v1/completions", `{"prompt":"x","n":1.5}`, "n"},
		{"/v1/completions", `{"prompt":"x","logprobs":21}`, "logprobs"},
		{"/v1/completions", `{"prompt":"x","logprobs":-1}`, "logprobs"},
		{"/v1/completions", `{"prompt":"x","echo":true,"suffix":"y"}`, "echo"},
		{"/v1/completions", `{"prompt":"x","max_tokens":0}`, "max_tokens"},
		{"/v1/completions", `{"prompt":"x","best_of":0}`, "best_of"},
		{"/v1/completions", `{"prompt":[1],"suffix":"y"}`, "suffix"},
		{"/v1/completions", `{"prompt":"x","best_of":2,"n":3}`, "best_of"},
		{"/v1/completions", `{"prompt":"x","best_of":2,"stream":true}`, "best_of"},
		{"/v1/completions", `{"prompt":"x","bad_words":[1]}`, "bad_words[0]"},
		{"/v1/completions", `{"prompt":"x","typical_p":"x"}`, "typical_p"},
		{"/v1/completions", `{"prompt":"x","samplers":["best"]}`, "samplers[0]"},
		{"/v1/completions", `{"prompt":"x","max_tokens":-1}`, "max_tokens"},
		{"/v1/completions", `{"prompt":"x","max_tokens":16777217}`, "max_tokens"},
		{"/v1/completions", `{"prompt":"x","top_k":-2}`, "top_k"},
		{"/v1/completions", `{"prompt":"x","top_k":99999999}`, "top_k"},
		{"/v1/completions", `{"prompt":"x","temperature":1e99}`, "temperature"},
		{"/v1/completions", `{"prompt":"x","logit_bias":{"a":1}}`, "logit_bias"},
		{"/v1/completions", `{"prompt":"x","stop":5}`, "stop"},
		{"/v1/completions", `{"prompt":"x","stream_options":{"include_usage":1}}`, "stream_options.include_usage"},
		{"/v1/completions", `[]`, "body"},
		{"/v1/completions", `{"prompt":"x"} {}`, "body"},
		{"/v1/completions", `{"prompt":"x"`, "body"},
		{"/v1/completions", ``, "body"},
		{"/v1/chat/completions", hello + `,"response_format":{"type":"xml"}}`, "response_format.type"},
		{"/v1/chat/completions", hello + `,"response_format":{"type":"json_schema","json_schema":{}}}`,
			"response_format.json_schema.schema"},
		{"/v1/chat/completions", hello + `,"response_format":{"type":"structural_tag","format":{"type":"nonsense"}}}`,
			"response_format.source"},
		{"/v1/chat/completions", hello + `,"guided_json":{"type":"strange"}}`, "guided_json.source"},
		{"/v1/chat/completions", hello + `,"guided_regex":"a","guided_choice":["b"]}`, "guided_choice"},
		{"/v1/chat/completions", hello + `,"tool_choice":"required"}`, "tool_choice"},
		{"/v1/chat/completions", hello + callTools + `,"tool_choice":"any"}`, "tool_choice"},
		{"/v1/chat/completions", hello + callTools + `,"tool_choice":3}`, "tool_choice"},
		{"/v1/chat/completions", hello + callTools + `,"tool_choice":{"type":"function"}}`, "tool_choice"},
		{"/v1/chat/completions", hello + callTools + `,"tool_choice":{"type":"custom"}}`, "tool_choice"},
		{"/v1/chat/completions", hello + callTools + `,"tool_choice":{"type":"function","function":{"name":"wether"}}}`,
			"tool_choice"},
		{"/v1/chat/completions", hello + `,"tools":[],"tool_choice":{"type":"function","function":{"name":"weather"}}}`,
			"tool_choice"},
		{"/v1/chat/completions", hello + `,"tools":{}}`, "tools"},
		{"/v1/chat/completions", hello + `,"tools":[{"type":"x"}]}`, "tools[0].type"},
		{"/v1/chat/completions", hello + `,"tools":[{"type":"function"}]}`, "tools[0].function.name"},
		{"/v1/chat/completions", hello + `,"documents":["x"]}`, "documents"},
		{"/v1/chat/completions", hello + `,"chat_template_kwargs":[]}`, "chat_template_kwargs"},
		{"/v1/chat/completions", hello + `,"reasoning_format":"x"}`, "reasoning_format"},
		{"/v1/chat/completions", hello + `,"reasoning_effort":5}`, "reasoning_effort"},
		{"/v1/chat/completions", hello + `,"continue_final_message":true,"add_generation_prompt":true}`,
			"continue_final_message"},
		{"/v1/chat/completions", `{"messages":[{"role":"assistant","tool_calls":{}}]}`, "messages[0].tool_calls"},
		{"/v1/chat/completions", `{"messages":[{"role":"assistant","tool_calls":[{}]}]}`,
			"messages[0].tool_calls[0].function.name"},
		{"/v1/chat/completions",
			`{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":[1]}}]}]}`,
			"messages[0].tool_calls[0].function.arguments"},
		{"/v1/chat/completions", `{"messages":[{"role":"tool","content":"x","tool_call_id":5}]}`,
			"messages[0].tool_call_id"},
		{"/v1/chat/completions", hello + `,"max_completion_tokens":0}`, "max_completion_tokens"},
		{"/v1/chat/completions", hello + `,"top_logprobs":3}`, "top_logprobs"},
		{"/v1/chat/completions", hello + `,"logprobs":true,"top_logprobs":21}`, "top_logprobs"},
		{"/v1/chat/completions", hello + `,"ignore_end":true}`, "ignore_end"},
		{"/v1/chat/completions", `{"messages":[]}`, "messages"},
		{"/v1/chat/completions", `{"messages":[5]}`, "messages[0]"},
		{"/v1/chat/completions", `{"messages":[null]}`, "messages[0]"},
		{"/v1/chat/completions", `{"messages":[{"role":"user"}]}`, "messages[0].content"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":5}]}`, "messages[0].content"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`,
			"messages[0].content[0].type"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"text"}]}]}`,
			"messages[0].content[0].text"},
	} {
		b := &backend{failAt: -1}
		resp, text := post(t, serve(t, b).URL+c.path, c.body)
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, `"param":"`+c.param+`"`) ||
			len(b.generations)+len(b.chats) > 0 {
			t.Errorf("%s: %d %s, want 400 and param %q before any backend", c.body, resp.StatusCode, text, c.param)
		}
	}
}

func TestRequests_BrokenJSONNamesTheByte(t *testing.T) {
	for body, want := range map[string]string{`{"prompt":`: "byte 10", `{"prompt" 1}`: "byte 11"} {
		if _, text := post(t, serve(t, &backend{}).URL+"/v1/completions", body); !strings.Contains(text, want) {
			t.Errorf("%s: %s does not name %s", body, text, want)
		}
	}
}

func TestRequests_LargeBodyIsRefused(t *testing.T) {
	b := &backend{failAt: -1}
	url := serve(t, b).URL + "/v1/completions"
	frame := len(`{"prompt":""}`)
	if resp, text := post(t, url,
		`{"prompt":"`+strings.Repeat("x", 4<<20-frame)+`"}`); resp.StatusCode != http.StatusOK {
		t.Errorf("4 MiB: %d %.200s", resp.StatusCode, text)
	}
	if resp, text := post(t, url,
		`{"prompt":"`+strings.Repeat("x", 4<<20-frame+1)+`"}`); resp.StatusCode != http.StatusRequestEntityTooLarge ||
		len(b.generations) != 1 {
		t.Errorf("a body one byte too long: %d %.200s, %d generations", resp.StatusCode, text, len(b.generations))
	}
}

func TestRequests_WrongMethod(t *testing.T) {
	resp, err := http.Get(serve(t, &backend{}).URL + "/v1/completions")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != "POST" {
		t.Errorf("GET of a POST path: %d, Allow %q", resp.StatusCode, resp.Header.Get("Allow"))
	}
}

func TestStream_AnswerWithoutFinishIsAnError(t *testing.T) {
	s := serve(t, &backend{words: []string{"a"}, failAt: -1, endless: true})
	if resp, text := post(t, s.URL+"/v1/completions",
		`{"prompt":"x"}`); resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("whole: %d %s", resp.StatusCode, text)
	}
	if _, text := post(t, s.URL+"/v1/completions", `{"prompt":"x","stream":true}`); !strings.Contains(text,
		`"error"`) || strings.Contains(text, "[DONE]") {
		t.Errorf("streamed: %s", text)
	}
}

func TestStream_ErrorEventCarriesTheRetryHint(t *testing.T) {
	lost := fault.Wrap(fault.Unavailable, fault.New(fault.Exhausted, "full").After(1500*time.Millisecond), "go on")
	s := serve(t, &backend{words: []string{"a", "b"}, failAt: 2, failWith: lost})
	_, text := post(t, s.URL+"/v1/completions", `{"prompt":"x","stream":true}`)
	all := events(t, text)
	same(t, "the last event", all[len(all)-1],
		`{"error":{"message":"go on: full","type":"server_error","param":null,"code":"unavailable","retry_after":1.5}}`)
}

func FuzzRequests(f *testing.F) {
	for _, seed := range []string{hello + `}`, `{"prompt":[[1]],"logit_bias":{"1":2}}`,
		`{"messages":[{"role":"a","content":[{"type":"text","text":"x"}],"name":"n"}]}`, `{"stop":[5]}`} {
		f.Add(seed)
	}
	b := &backend{words: []string{"a"}, failAt: -1}
	h := openai.New(b, openai.Options{})
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{"/v1/completions", "/v1/chat/completions"} {
			b.generations, b.chats = nil, nil
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
			switch ran := len(b.generations)+len(b.chats) > 0; {
			case w.Code == http.StatusOK && !ran, w.Code != http.StatusOK && w.Code != http.StatusBadRequest && !ran:
				t.Errorf("%s %q: %d %s, backend asked: %v", path, body, w.Code, w.Body, ran)
			}
			for _, c := range b.chats {
				for _, m := range c.GetMessages() {
					if m.GetRole() == "" {
						t.Errorf("%q: a message without role is passed on", body)
					}
				}
			}
		}
	})
}
