package loadtest_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestParsePrompts_LinesAndObjects(t *testing.T) {
	got := parse(t, "\ufefffirst\n\n  \n{\"prompt\":\"\",\"seed\":-3,\"top_k\":5}\nlast")
	if len(got) != 3 || got[0].Text != "first" || got[1].Line != 4 || *got[1].Seed != -3 ||
		string(got[1].Extra["top_k"]) != "5" || got[2].Text != "last" || got[2].Line != 5 {
		t.Errorf("got %+v", got)
	}
}

func TestParsePrompts_ErrorsNameLineAndField(t *testing.T) {
	for file, want := range map[string]string{
		"":                                      "prompts",
		"ok\n{":                                 "line 2",
		"{}":                                    "line 1: prompt",
		`{"prompt":"a","messages":[1]}`:         "line 1: messages",
		`{"prompt":7}`:                          "line 1: prompt",
		`{"prompt":null}`:                       "line 1: prompt",
		`{"messages":"x"}`:                      "line 1: messages",
		`{"messages":[]}`:                       "line 1: prompt",
		"a\nb\n{\"prompt\":\"a\",\"seed\":1.5}": "line 3: seed",
		`{"prompt":"a","max_tokens":-1}`:        "line 1: max_tokens",
		`{"prompt":"a","tenant":"a b"}`:         "line 1: tenant",
		`{"prompt":"a","stream":false}`:         "line 1: stream",
		strings.Repeat("x", 5<<20):              "line 1",
	} {
		_, err := loadtest.ParsePrompts(strings.NewReader(file))
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %v, want %q", file, err, want)
		}
	}
}

func TestParseTenants_WeightsAndErrors(t *testing.T) {
	got, err := loadtest.ParseTenants("a=4, b")
	if err != nil || len(got) != 2 || got[0] != (loadtest.Tenant{Name: "a", Weight: 4}) || got[1].Weight != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"=1", "a=0", "a=x", "a,a", "a b=1", "a,,b", strings.Repeat("x", 65)} {
		if _, err := loadtest.ParseTenants(bad); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

func TestReadTexts_ErrorsNameLineAndField(t *testing.T) {
	for file, want := range map[string]string{
		"{":                                      "line 1",
		"\n{\"choices\":[\"a\"]}":                "line 2",
		`{"key":"k","choices":[]}`:               "choices",
		`{"key":"k","choices":[""],"finish":[]}`: "choices",
	} {
		_, err := loadtest.ReadTexts(strings.NewReader(file))
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", file, err, want)
		}
	}
}

func FuzzParsePrompts(f *testing.F) {
	f.Add("plain\n{\"prompt\":\"a\",\"seed\":1,\"n\":2}\n{\"messages\":[{}],\"tenant\":\"t\"}")
	f.Fuzz(func(t *testing.T, file string) {
		got, err := loadtest.ParsePrompts(strings.NewReader(file))
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Errorf("got code %v: %v", fault.CodeOf(err), err)
			}
			return
		}
		last := 0
		for _, p := range got {
			if p.Line <= last || p.MaxTokens < 0 || p.Messages != nil && p.Text != "" {
				t.Errorf("got %+v after line %d", p, last)
			}
			last = p.Line
		}
	})
}

func FuzzReadTexts(f *testing.F) {
	f.Add(`{"key":"k","choices":["a","b"],"finish":["stop","length"]}`)
	f.Fuzz(func(t *testing.T, file string) {
		texts, err := loadtest.ReadTexts(strings.NewReader(file))
		if err != nil {
			return
		}
		var first, second bytes.Buffer
		if err := texts.Write(&first); err != nil {
			t.Fatal(err)
		}
		again, err := loadtest.ReadTexts(bytes.NewReader(first.Bytes()))
		if err != nil {
			t.Fatalf("read what was written: %v", err)
		}
		if err := again.Write(&second); err != nil || first.String() != second.String() {
			t.Errorf("wrote %q, then %q, %v", first.String(), second.String(), err)
		}
	})
}

// FuzzRun_AnyAnswer feeds any bytes as the answer of a server: each stream has exactly one outcome.
func FuzzRun_AnyAnswer(f *testing.F) {
	f.Add("data: {\"choices\":[{\"text\":\"x\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
	f.Add("error: {\"message\":\"m\"}\n\n")
	f.Add("event: error\ndata: {\"message\":\"m\"}\n\n")
	one := prompts(f, 1)
	f.Fuzz(func(t *testing.T, body string) {
		server := inProcess{func(w http.ResponseWriter, r *http.Request) {
			begin(w)
			io.WriteString(w, body)
		}}
		g := run(t, loadtest.Config{Prompts: one, Streams: 1, Requests: 1, Transport: server, Timeout: time.Minute}).All
		if g.Requests != 1 || g.OK+g.Failed != 1 || g.OK == 1 && !strings.Contains(body, "finish_reason") {
			t.Errorf("got %+v", g)
		}
	})
}
