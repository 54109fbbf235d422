package httpapi_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// held is a handler behind a bound on bodies, whose requests run until they are let go.
type held struct {
	http.Handler
	read chan string   // the tenants of requests whose bodies were read
	end  chan struct{} // lets a request go
}

func newHeld(most int64) *held {
	h := &held{read: make(chan string), end: make(chan struct{})}
	h.Handler = httpapi.Bounded(most, func(w http.ResponseWriter, r *http.Request) {
		body, err := httpapi.ReadBody(w, r)
		if err != nil {
			p := httpapi.Explain(err)
			p.SetRetryAfter(w)
			http.Error(w, p.Message, p.Status)
			return
		}
		h.read <- auth.Tenant(r.Context())
		<-h.end
		fmt.Fprint(w, len(body))
	})
	return h
}

// ask sends a body of a size for a tenant.
func (h *held) ask(tenant string, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/", body)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(auth.WithTenant(r.Context(), tenant)))
	return w
}

func TestBodies_AreBoundedForAllAndForEachTenant(t *testing.T) {
	const small, large, room = 64 << 10, 1 << 20, 4 << 20
	h := newHeld(room)
	body := func(n int) io.Reader { return bytes.NewReader(make([]byte, n)) }
	answers := make(chan *httptest.ResponseRecorder)
	begin := func(tenant string, n int) {
		t.Helper()
		go func() { answers <- h.ask(tenant, body(n)) }()
		select {
		case <-h.read:
		case w := <-answers:
			t.Fatalf("%d bytes of %s: %d %s", n, tenant, w.Code, w.Body)
		}
	}
	refused := func(tenant string, n int) {
		t.Helper()
		go func() { answers <- h.ask(tenant, body(n)) }()
		var w *httptest.ResponseRecorder
		select {
		case <-h.read:
			t.Fatalf("%d bytes of %s are read", n, tenant)
		case w = <-answers:
		}
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" {
			t.Errorf("%d bytes of %s: %d %q %s", n, tenant, w.Code, w.Header(), w.Body)
		}
	}
	begin("a", small+large)
	begin("a", small+large)
	refused("a", small+1)
	begin("a", small) // costs nothing
	begin("b", small+large)
	refused("b", small+1)
	begin("c", small+large/2)
	refused("c", small+1)
	begin("d", small+large/4) // each leaves as much as it has
	refused("d", small+1)
	begin("d", small)
	for range 7 {
		h.end <- struct{}{}
		if w := <-answers; w.Code != http.StatusOK {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	// All of the room is there again, and requests that were refused in the middle have taken none.
	for i, tenant := range []string{"a", "b"} {
		begin(tenant, small+room/2>>i)
	}
	for range 2 {
		h.end <- struct{}{}
		<-answers
	}
}

func TestBodies_AnAnnouncedBodyTakesNoRoom(t *testing.T) {
	h := newHeld(1 << 20)
	server := httptest.NewServer(h)
	defer server.Close()
	var idle []*io.PipeWriter
	done := make(chan error)
	for range 8 { // each announces 1 MiB and sends nothing
		from, to := io.Pipe()
		idle = append(idle, to)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, from)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = 1 << 20
		go func() {
			resp, err := server.Client().Do(r)
			if err == nil {
				err = resp.Body.Close()
			}
			done <- err
		}()
	}
	answer := make(chan *httptest.ResponseRecorder, 1)
	go func() { answer <- h.ask("", bytes.NewReader(make([]byte, 500<<10))) }()
	select {
	case <-h.read:
		h.end <- struct{}{}
		<-answer
	case w := <-answer:
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, to := range idle {
		_ = to.CloseWithError(io.ErrUnexpectedEOF)
	}
	for range idle {
		<-done // they fail, since their bodies do
	}
}
