package batches_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/batches"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
	"github.com/lamina-mesh/lamina/services/router/openai"
	"github.com/lamina-mesh/lamina/services/router/responses"
)

func TestMain(m *testing.M) { leak.Main(m) }

const chat = "/v1/chat/completions"

// marked is how Lowest marks a context here.
type marked struct{}

// backend answers chats by rules of the test, by the text of their first message.
type backend struct {
	httpapitest.Backend
	before func(ctx context.Context, text string) error // nil answers at once

	mu   sync.Mutex
	runs map[string]int // by text
	most int            // that ran at a time
	now  int
	bad  []string // contexts that are not as they should be
}

func (b *backend) Chat(ctx context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error {
	text := r.GetMessages()[0].GetContent()
	b.mu.Lock()
	b.runs[text]++
	b.now++
	b.most = max(b.most, b.now)
	if ctx.Value(marked{}) == nil {
		b.bad = append(b.bad, text+" has no priority")
	}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.now--
	}()
	if b.before != nil {
		if err := b.before(ctx, text); err != nil {
			return err
		}
	}
	return b.Backend.Chat(ctx, r, send)
}

// Resume and Cancel find no request: those of batches cannot be resumed.
func (b *backend) Resume(context.Context, *routerv1.ResumeRequest, func(*routerv1.ResumeResponse) error) error {
	return fault.New(fault.NotFound, "find request: there is none")
}

func (b *backend) Cancel(context.Context, string) error {
	return fault.New(fault.NotFound, "find request: there is none")
}

// running returns the number of requests that run.
func (b *backend) running() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *backend) ran() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.runs)
}

func newBackend(before func(context.Context, string) error) *backend {
	return &backend{Backend: httpapitest.Backend{Pieces: []string{"hello"}}, before: before, runs: map[string]int{}}
}

// rig is a service that runs.
type rig struct {
	t      *testing.T
	mux    *http.ServeMux
	stop   func()
	caller *auth.Principal // of the requests that it sends; nil for none
}

func newRig(t *testing.T, dir string, b *backend, change func(*batches.Options)) *rig {
	t.Helper()
	mux, o := http.NewServeMux(), httpapi.Options{}
	fail := openai.Fail(o)
	options := batches.Options{Dir: dir, Handler: mux, Fail: fail, Lowest: func(ctx context.Context) context.Context {
		return context.WithValue(ctx, marked{}, true)
	}}
	if change != nil {
		change(&options)
	}
	s := batches.New(options)
	httpapi.Register(mux, openai.Routes(b, o), responses.Routes(b, responses.Options{Fail: fail,
		Error: openai.ErrorObject}), s.Routes())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r := &rig{t: t, mux: mux}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	synctest.Wait()
	return r
}

// call sends a request. header has names and values in turn.
func (r *rig) call(method, path, body string, header ...string) (int, map[string]any) {
	r.t.Helper()
	w := r.raw(method, path, "application/json", body, header...)
	out := map[string]any{}
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		r.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	return w.Code, out
}

func (r *rig) raw(method, path, kind, body string, header ...string) *httptest.ResponseRecorder {
	q := httptest.NewRequest(method, path, strings.NewReader(body))
	q.Header.Set("Content-Type", kind)
	for i := 0; i < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	if p := r.caller; p != nil {
		q = q.WithContext(auth.WithPrincipal(auth.WithTenant(q.Context(), p.Tenant), p))
	}
	w := httptest.NewRecorder()
	r.mux.ServeHTTP(w, q)
	return w
}

// form returns a body and its content type.
func form(parts ...string) (body, kind string) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(parts); i += 2 {
		if parts[i] == "file" {
			part, _ := w.CreateFormFile("file", "in.jsonl")
			_, _ = part.Write([]byte(parts[i+1]))
		} else {
			_ = w.WriteField(parts[i], parts[i+1])
		}
	}
	_ = w.Close()
	return b.String(), w.FormDataContentType()
}

// upload uploads a file and returns its id.
func (r *rig) upload(content string, header ...string) string {
	r.t.Helper()
	body, kind := form("purpose", "batch", "file", content)
	w := r.raw("POST", "/v1/files", kind, body, header...)
	var f struct{ ID string }
	if err := json.Unmarshal(w.Body.Bytes(), &f); err != nil || w.Code != 200 {
		r.t.Fatalf("upload: %d %s", w.Code, w.Body)
	}
	return f.ID
}

// create makes a batch of a file and returns its id.
func (r *rig) create(file, endpoint string, header ...string) string {
	r.t.Helper()
	status, b := r.call("POST", "/v1/batches", `{"input_file_id":"`+file+`","endpoint":"`+endpoint+
		`","completion_window":"24h","metadata":{"k":"v"}}`, header...)
	if status != 200 || b["status"] != "validating" {
		r.t.Fatalf("create: %d %v", status, b)
	}
	return b["id"].(string)
}

// ended waits until a batch has ended, and returns it.
func (r *rig) ended(id string, header ...string) batch.Batch {
	r.t.Helper()
	every := time.Second
	for i := range 10_000 {
		if i > 600 {
			every = 30 * time.Second
		}
		w := r.raw("GET", "/v1/batches/"+id, "", "", header...)
		var b batch.Batch
		if err := json.Unmarshal(w.Body.Bytes(), &b); err != nil || w.Code != 200 {
			r.t.Fatalf("get: %d %s", w.Code, w.Body)
		}
		if b.Status.Ended() {
			return b
		}
		time.Sleep(every) // of virtual time
	}
	r.t.Fatalf("batch %s does not end", id)
	return batch.Batch{}
}

// results returns the results of a file by their custom ids.
func (r *rig) results(id *string) map[string]batch.Result {
	r.t.Helper()
	out := map[string]batch.Result{}
	if id == nil {
		return out
	}
	w := r.raw("GET", "/v1/files/"+*id+"/content", "", "")
	if w.Code != 200 {
		r.t.Fatalf("content: %d %s", w.Code, w.Body)
	}
	for _, l := range strings.Split(strings.TrimSuffix(w.Body.String(), "\n"), "\n") {
		var one batch.Result
		if err := json.Unmarshal([]byte(l), &one); err != nil {
			r.t.Fatalf("%v in %s", err, l)
		}
		if _, twice := out[one.CustomID]; twice {
			r.t.Errorf("%s has two results", one.CustomID)
		}
		out[one.CustomID] = one
	}
	return out
}

func ids(results map[string]batch.Result) []string { return slices.Sorted(maps.Keys(results)) }

// chats returns an input file with a chat for each text, which is its custom id too.
func chats(texts ...string) string {
	var b strings.Builder
	for _, text := range texts {
		fmt.Fprintf(&b, `{"custom_id":"%s","method":"POST","url":"%s","body":{"model":"m","messages":[`+
			`{"role":"user","content":"%s"}]}}`+"\n", text, chat, text)
	}
	return b.String()
}
