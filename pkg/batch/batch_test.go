package batch_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const chat = "/v1/chat/completions"

func line(id, body string) string {
	return `{"custom_id":"` + id + `","method":"POST","url":"` + chat + `","body":` + body + `}`
}

func TestParseLine_NamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ text, code, param string }{
		{line("a", `{"model":"m"}`), "", ""},
		{`{"custom_id":"a","method":"POST","url":"` + chat + `","body":{},"more":1}`, "", ""},
		{line("a", `{"stream":false}`), "", ""},
		{`{`, batch.CodeJSON, ""},
		{`[]`, batch.CodeJSON, ""},
		{"\"\xff\"", batch.CodeJSON, ""},
		{line("a", `{}`) + `{}`, batch.CodeJSON, ""},
		{`{"custom_id":1}`, batch.CodeRequest, "custom_id"},
		{`{"method":"POST","url":"` + chat + `","body":{}}`, batch.CodeMissing, "custom_id"},
		{`{"custom_id":"a","url":"` + chat + `","body":{}}`, batch.CodeMissing, "method"},
		{`{"custom_id":"a","method":"POST","body":{}}`, batch.CodeMissing, "url"},
		{`{"custom_id":"a","method":"POST","url":"` + chat + `"}`, batch.CodeMissing, "body"},
		{line("", `{}`), batch.CodeRequest, "custom_id"},
		{line(strings.Repeat("x", 513), `{}`), batch.CodeRequest, "custom_id"},
		{strings.Replace(line("a", `{}`), "POST", "GET", 1), batch.CodeMethod, "method"},
		{strings.Replace(line("a", `{}`), chat, "/v1/embeddings", 1), batch.CodeURL, "url"},
		{line("a", `null`), batch.CodeRequest, "body"},
		{line("a", `[]`), batch.CodeRequest, "body"},
		{line("a", `{"stream":true}`), batch.CodeRequest, "body.stream"},
		{line("a", `{"resumable":true,"stream":"x"}`), batch.CodeRequest, "body.resumable"},
		{line("a", `{"background":true}`), batch.CodeRequest, "body.background"},
	} {
		got, err := batch.ParseLine([]byte(c.text), chat)
		if c.code == "" {
			if err != nil || got.CustomID != "a" {
				t.Errorf("%s: %+v, %v", c.text, got, err)
			}
			continue
		}
		var p *batch.Problem
		param := ""
		if errors.As(err, &p) && p.Param != nil {
			param = *p.Param
		}
		if p == nil || p.Code != c.code || param != c.param {
			t.Errorf("%.200s: %v, want %s of %q", c.text, err, c.code, c.param)
		}
	}
}

func TestCheck_NamesTheLines(t *testing.T) {
	total, problems, err := batch.Check(strings.NewReader("\n"+line("a", `{}`)+"\r\n"+line("b", `{}`)), chat)
	if total != 2 || problems != nil || err != nil {
		t.Errorf("a good file: %d, %v, %v", total, problems, err)
	}
	for what, c := range map[string]struct {
		text string
		want []string
	}{
		"nothing":  {"\n \n", []string{batch.CodeEmpty + " 0"}},
		"the same": {line("a", `{}`) + "\n" + line("a", `{}`), []string{batch.CodeDuplicate + " 2"}},
		"several":  {"x\n" + line("a", `{}`) + "\n\ny", []string{batch.CodeJSON + " 1", batch.CodeJSON + " 4"}},
		"long":     {line("a", `{}`) + "\n" + strings.Repeat("x", batch.MaxLine+1), []string{batch.CodeLong + " 2"}},
		"returns":  {strings.Repeat("\r", batch.MaxLine+2), []string{batch.CodeLong + " 1"}},
		"many": {strings.Repeat("\n", 3) + manyLines(batch.MaxLines+1),
			[]string{batch.CodeMany + " 0"}},
	} {
		_, problems, err := batch.Check(strings.NewReader(c.text), chat)
		var got []string
		for _, p := range problems {
			n := 0
			if p.Line != nil {
				n = *p.Line
			}
			got = append(got, fmt.Sprintf("%s %d", p.Code, n))
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v %v, want %v", what, got, err, c.want)
		}
	}
	if _, problems, _ := batch.Check(strings.NewReader(strings.Repeat("x\n", 1000)), chat); len(problems) != 100 {
		t.Errorf("%d problems are listed", len(problems))
	}
	broken := io.MultiReader(strings.NewReader(line("a", `{}`)+"\n"), failing{})
	if _, _, err := batch.Check(broken, chat); err == nil {
		t.Error("an error of the reader is lost")
	}
}

func manyLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, line(fmt.Sprint(i), `{}`))
	}
	return b.String()
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("no disk") }

// TestBatch_EveryMoveFromEveryState compares the methods with the diagram of Status.
func TestBatch_EveryMoveFromEveryState(t *testing.T) {
	now := time.Unix(1000, 0)
	moves := map[string]func(*batch.Batch) error{
		"begin":    func(b *batch.Batch) error { return b.Begin(0, now) },
		"finalize": func(b *batch.Batch) error { return b.Finalize(now) },
		"cancel":   func(b *batch.Batch) error { return b.Cancel(now) },
		"end":      func(b *batch.Batch) error { return b.End(nil, nil, now) },
		"expire":   func(b *batch.Batch) error { return b.Expire(nil, nil, now) },
		"fail":     func(b *batch.Batch) error { return b.Fail(nil, nil, nil, now) },
	}
	want := map[batch.Status]map[string]batch.Status{
		batch.Validating: {"begin": batch.InProgress, "cancel": batch.Cancelling, "expire": batch.Expired,
			"fail": batch.Failed},
		batch.InProgress: {"finalize": batch.Finalizing, "cancel": batch.Cancelling, "expire": batch.Expired,
			"fail": batch.Failed},
		batch.Finalizing: {"end": batch.Completed, "fail": batch.Failed},
		batch.Cancelling: {"cancel": batch.Cancelling, "end": batch.Cancelled, "fail": batch.Failed},
		batch.Cancelled:  {"cancel": batch.Cancelled},
		batch.Completed:  {}, batch.Failed: {}, batch.Expired: {},
	}
	for from, allowed := range want {
		for name, move := range moves {
			b := batch.New("b", chat, "f", nil, now)
			b.Status = from
			err := move(b)
			to, ok := allowed[name]
			if !ok {
				to = from
			}
			if (err == nil) != ok || b.Status != to {
				t.Errorf("%s of a batch that is %s: %v, and it is %s", name, from, err, b.Status)
			}
			if err != nil && fault.CodeOf(err) != fault.FailedPrecondition {
				t.Errorf("%s of a batch that is %s: %v", name, from, err)
			}
		}
		if from.Ended() != (from == batch.Cancelled || len(allowed) == 0) {
			t.Errorf("%s ended: %v", from, from.Ended())
		}
	}
}

func TestBatch_IsWhatClientsOfOpenAIRead(t *testing.T) {
	created := time.Unix(1000, 0)
	b := batch.New("batch_1", chat, "file-1", map[string]string{"k": "v"}, created)
	if err := b.Begin(3, created.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	b.Count(true)
	b.Count(false)
	if err := b.Finalize(created); err == nil {
		t.Error("a batch is finalized whose last request runs")
	}
	b.Count(true)
	if err := b.Finalize(created.Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	out := "file-2"
	if err := b.End(&out, nil, created.Add(3*time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"batch_1","object":"batch","endpoint":"/v1/chat/completions","errors":null,` +
		`"input_file_id":"file-1","completion_window":"24h","status":"completed","output_file_id":"file-2",` +
		`"error_file_id":null,"created_at":1000,"in_progress_at":1001,"expires_at":87400,"finalizing_at":1002,` +
		`"completed_at":1003,"failed_at":null,"expired_at":null,"cancelling_at":null,"cancelled_at":null,` +
		`"request_counts":{"total":3,"completed":2,"failed":1},"metadata":{"k":"v"}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if err := b.Check(); err != nil {
		t.Error(err)
	}
}

func TestReadResults_StopsBeforeALineThatIsNotComplete(t *testing.T) {
	text := ""
	for i, r := range []batch.Result{
		{ID: "r1", CustomID: "a\u2028b", Response: &batch.Response{StatusCode: 200, RequestID: "q",
			Body: json.RawMessage(" {\"x\":\n\"\u2028\"}\n")}},
		{ID: "r2", CustomID: "c", Error: &batch.Failure{Code: batch.CodeExpired, Message: "late"}},
	} {
		l, err := r.Line()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(l), "\n") != 1 || strings.Contains(string(l), "\u2028") {
			t.Errorf("%q is not one line for every reader", l)
		}
		if r.OK() != (i == 0) {
			t.Errorf("%s: OK is %v", r.ID, r.OK())
		}
		text += string(l)
	}
	for cut := range len(text) {
		var got []string
		n, err := batch.ReadResults(strings.NewReader(text[:cut]), func(id string) { got = append(got, id) })
		whole := strings.LastIndex(text[:cut], "\n") + 1
		if err != nil || n != int64(whole) || len(got) != strings.Count(text[:whole], "\n") {
			t.Fatalf("cut at %d: %d %q %v", cut, n, got, err)
		}
	}
	for _, wrong := range []string{"x\n", "{}\n", text + "\n"} {
		if _, err := batch.ReadResults(strings.NewReader(wrong), func(string) {}); err == nil {
			t.Errorf("%q is read", wrong)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	for _, text := range []string{line("a", `{"model":"m"}`), line("a", `{"stream":true}`), `{"custom_id":1}`, `{`,
		``} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := batch.ParseLine(text, chat)
		var p *batch.Problem
		switch {
		case err != nil && (!errors.As(err, &p) || p.Code == "" || p.Message == ""):
			t.Errorf("%q: %v is no problem with a code", text, err)
		case err == nil && (got.CustomID == "" || !json.Valid(got.Body) || got.Body[0] != '{'):
			t.Errorf("%q is read as %+v", text, got)
		}
		total, problems, err := batch.Check(strings.NewReader(string(text)), chat)
		if err != nil || len(problems) == 0 && total == 0 {
			t.Errorf("%q: %d requests, %v, %v", text, total, problems, err)
		}
	})
}

func FuzzReadResults(f *testing.F) {
	f.Add([]byte(`{"custom_id":"a"}` + "\n" + `{"custom_id":"b`))
	f.Fuzz(func(t *testing.T, text []byte) {
		found := 0
		n, err := batch.ReadResults(strings.NewReader(string(text)), func(string) { found++ })
		if n < 0 || n > int64(len(text)) || found != strings.Count(string(text[:n]), "\n") ||
			err == nil && strings.Contains(string(text[n:]), "\n") {
			t.Errorf("%q: %d bytes, %d results, %v", text, n, found, err)
		}
	})
}
