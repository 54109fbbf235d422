package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

func TestMux_RefusesOtherMethodsInTheShapeOfTheAPI(t *testing.T) {
	tenant := ""
	api := httpapi.API{Name: "a", Fail: func(w http.ResponseWriter, err error) {
		w.WriteHeader(httpapi.Explain(err).Status)
		_, _ = w.Write([]byte("a: " + err.Error()))
	}, Routes: []httpapi.Route{
		{Method: "GET", Path: "/x/{id}", Handle: func(_ http.ResponseWriter, r *http.Request) {
			tenant = auth.Tenant(r.Context())
		}},
		{Method: "DELETE", Path: "/x/{id}", Handle: func(http.ResponseWriter, *http.Request) {}},
	}}
	mux := httpapi.Mux(api)
	for _, c := range []struct {
		method, path, tenant string
		status               int
		text, allow          string
	}{
		{"GET", "/x/1", "t", 200, "", ""}, {"DELETE", "/x/1", "", 200, "", ""},
		{"POST", "/x/1", "", 405, "a: use GET or DELETE for /x/1, not POST", "GET, HEAD, DELETE"},
		{"GET", "/x/1", strings.Repeat("t", 99), 400, "a: lamina-tenant: ", ""}, {"GET", "/y", "", 404, "404 page", ""},
	} {
		r, w := httptest.NewRequest(c.method, c.path, nil), httptest.NewRecorder()
		if c.tenant != "" {
			r.Header.Set("Lamina-Tenant", c.tenant)
		}
		mux.ServeHTTP(w, r)
		if w.Code != c.status || !strings.HasPrefix(w.Body.String(), c.text) || w.Header().Get("Allow") != c.allow {
			t.Errorf("%s %s: %d %q, Allow %q", c.method, c.path, w.Code, w.Body, w.Header().Get("Allow"))
		}
	}
	if tenant != "t" {
		t.Errorf("the tenant is %q", tenant)
	}
}

func TestExplain_TakesTheOutermostFieldReasonAndHint(t *testing.T) {
	inner := fault.Field("inner", "bad").After(time.Hour).Because("INNER")
	p := httpapi.Explain(
		&fault.Error{Code: fault.Unavailable, Msg: "x", RetryAfter: 1500 * time.Millisecond, Err: inner},
	)
	if p.Status != 503 || p.Field != "inner" || p.Reason != "INNER" || p.RetryAfter != 1500*time.Millisecond {
		t.Errorf("got %+v", p)
	}
	w := httptest.NewRecorder()
	p.SetRetryAfter(w)
	if got := w.Header().Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After is %q", got)
	}
	if p := httpapi.Explain(&http.MaxBytesError{}); p.Status != 413 {
		t.Errorf("a large body is %+v", p)
	}
}

func TestDecode_NamesTheFieldOrTheByte(t *testing.T) {
	type common struct {
		N *int `json:"n"`
	}
	var v struct {
		common
		List []string `json:"list"`
	}
	for body, want := range map[string]string{
		`{"n":"x"}`: "n: want a whole number in range, got string", `{"list":7}`: "list: want a list, got number",
		`{"n":1e99}`: "n: want a whole number", `[]`: "body: want an object, got array", `{"n" 1}`: "body: read JSON at byte 6",
		strings.Repeat(" ", 5<<20): "body: read at most 4194304 bytes",
	} {
		err := httpapi.Decode(
			httptest.NewRecorder(),
			httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)),
			&v,
			"common",
		)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.20s: got %v, want %s", body, err, want)
		}
	}
}

// broken is a client that has gone.
type broken struct{ *httptest.ResponseRecorder }

func (broken) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestStream_KeepsItsFirstError(t *testing.T) {
	w := httptest.NewRecorder()
	s := httpapi.NewStream(w, httpapi.EventStream, time.Minute)
	if s.Begun() {
		t.Error("it has begun before the first piece")
	}
	if err := errors.Join(s.Event("e", 1), s.Line(2)); err != nil || w.Body.String() != "event: e\ndata: 1\n\n2\n" ||
		!w.Flushed || w.Header().Get("Content-Type") != "text/event-stream" || !s.Begun() {
		t.Errorf("the stream is %q (%v)", w.Body, err)
	}
	s = httpapi.NewStream(broken{httptest.NewRecorder()}, httpapi.JSONLines, time.Minute)
	first := s.Line(1)
	if fault.CodeOf(first) != fault.Canceled || s.Line(2) != first || s.Lost() != first {
		t.Errorf("got %v, then %v", first, s.Lost())
	}
	if err := s.Line(func() {}); fault.CodeOf(err) != fault.Internal {
		t.Errorf("what has no JSON form: %v", err)
	}
}

// script sends events as they are.
type script []*routerv1.ChatResponse

func (s script) Chat(_ context.Context, _ *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error {
	for _, e := range s {
		if err := send(e); err != nil {
			return err
		}
	}
	return nil
}

func TestRun_NeedsABeginningAndAnEnd(t *testing.T) {
	started := &routerv1.ChatResponse{Event: &routerv1.ChatResponse_Started{Started: &routerv1.Started{}}}
	token := &routerv1.ChatResponse{Event: &routerv1.ChatResponse_Token{Token: &routerv1.TokenEvent{Text: "a"}}}
	finished := &routerv1.ChatResponse{Event: &routerv1.ChatResponse_Finished{Finished: &routerv1.Finished{Text: "b"}}}
	text := ""
	push := func(d toolcall.Delta) error { text += d.Content; return nil }
	for _, s := range []script{{}, {started}, {started, token}, {token}, {finished}} {
		if _, err := httpapi.Run(
			t.Context(),
			s,
			nil,
			httpapi.Parsing{},
			nil,
			push,
		); fault.CodeOf(
			err,
		) != fault.Internal {
			t.Errorf("%v: got %v", s, err)
		}
	}
	text = ""
	out, err := httpapi.Run(t.Context(), script{started, token, finished}, nil, httpapi.Parsing{}, nil, push)
	if err != nil || text != "ab" || out.Answer.Content() != "ab" {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestTurn_MessagesHaveWhatTemplatesRead(t *testing.T) {
	call := []toolcall.Call{{ID: "1", Name: "f", Arguments: "{}"}}
	const calls = `"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]`
	for _, c := range []struct {
		turn httpapi.Turn
		want string
	}{
		{httpapi.Turn{Role: "user", Content: "x"}, ``},
		{httpapi.Turn{Role: "assistant", Calls: call}, `{"content":null,"role":"assistant",` + calls + `}`},
		{httpapi.Turn{Role: "assistant", Content: "x", Reasoning: "r", Calls: call},
			`{"content":"x","reasoning_content":"r","role":"assistant",` + calls + `}`},
		{httpapi.Turn{Role: "assistant", Content: "x", Reasoning: "r"},
			`{"content":"x","reasoning":"r","reasoning_content":"r","role":"assistant","thinking":"r"}`},
		{httpapi.Turn{Role: "tool", Content: "x", CallID: "1", Name: "f"},
			`{"content":"x","name":"f","role":"tool","tool_call_id":"1"}`},
	} {
		m, err := c.turn.Message()
		if err != nil || m.GetJson() != c.want || m.GetContent() != c.turn.Content || m.GetRole() != c.turn.Role {
			t.Errorf("%+v: got %v (%v)", c.turn, m, err)
		}
	}
	text, err := httpapi.ToolsJSON([]httpapi.Tool{{Name: "f", Parameters: json.RawMessage(`{}`)}})
	if err != nil || text != `[{"type":"function","function":{"name":"f","parameters":{}}}]` {
		t.Errorf("the tools are %s (%v)", text, err)
	}
}
