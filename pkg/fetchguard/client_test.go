package fetchguard_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/fetchguard"
)

// local returns a client that may reach a loopback server.
func local(t *testing.T, address string, c fetchguard.Config) *fetchguard.Client {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	c.Ports, c.Allow = []uint16{uint16(port)}, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	return fetchguard.New(c)
}

func TestClient_BoundsWhatItFetches(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		switch r.URL.Path {
		case "/page":
			header.Set("Content-Type", `Text/HTML; charset="latin1"`)
			fmt.Fprintf(w, "%s|%s|%s|%s", r.UserAgent(), r.Referer(), r.Header.Get("Cookie"), r.URL.Fragment)
		case "/plain":
			header["Content-Type"] = nil
			_, _ = w.Write([]byte("text"))
		case "/image":
			header.Set("Content-Type", "image/png")
		case "/odd":
			header.Set("Content-Type", "text/html; charset=")
		case "/bomb":
			header.Set("Content-Type", "text/plain")
			header.Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write([]byte(strings.Repeat("a", 1<<20)))
			_ = z.Close()
		case "/again":
			n, _ := strconv.Atoi(r.URL.Query().Get("n"))
			header.Set("Set-Cookie", "a=b")
			if http.Redirect(w, r, fmt.Sprintf("/again?n=%d", n-1), http.StatusFound); n < 0 {
				t.Error("a redirect was followed too often")
			}
		case "/once":
			header.Set("Set-Cookie", "a=b")
			http.Redirect(w, r, "/page", http.StatusMovedPermanently)
		case "/file":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		case "/header":
			header.Set("X-Long", strings.Repeat("a", 1<<20))
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	c := local(t, s.URL, fetchguard.Config{Bytes: 1000, Redirects: 3, Types: []string{"text/html", "text/plain"},
		Agent: "test", Timeout: time.Minute})
	for _, path := range []string{"/page#fragment", "/once"} {
		doc, err := c.Get(t.Context(), s.URL+path)
		if err != nil || string(doc.Body) != "test|||" || doc.Type != "text/html" ||
			doc.Params["charset"] != "latin1" || doc.URL != s.URL+"/page" || doc.Partial {
			t.Errorf("%s: got %+v, %v", path, doc, err)
		}
	}
	if doc, err := c.Get(t.Context(), s.URL+"/plain"); err != nil || doc.Type != "text/plain" {
		t.Errorf("a document without a type: got %+v, %v", doc, err)
	}
	if doc, err := c.Get(t.Context(), s.URL+"/bomb"); err != nil || len(doc.Body) != 1000 || !doc.Partial {
		t.Errorf("a document that is too long: got %v", err)
	}
	for path, want := range map[string]fault.Code{
		"/image": fault.FailedPrecondition, "/odd": fault.FailedPrecondition, "/missing": fault.FailedPrecondition,
		"/again?n=3": fault.FailedPrecondition, "/file": fault.Invalid, "/header": fault.Unavailable,
	} {
		if doc, err := c.Get(t.Context(), s.URL+path); fault.CodeOf(err) != want {
			t.Errorf("%s: got %+v, %v, want %v", path, doc, err, want)
		}
	}
	other := local(t, s.URL, fetchguard.Config{Redirects: -1})
	if _, err := other.Get(t.Context(), s.URL+"/once"); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("without redirects: got %v", err)
	}
}

func TestClient_BoundsTheTime(t *testing.T) {
	hang := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write([]byte("begin"))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	defer s.Close()
	defer close(hang)
	c := local(t, s.URL, fetchguard.Config{Timeout: 50 * time.Millisecond})
	if _, err := c.Get(t.Context(), s.URL); fault.CodeOf(err) != fault.DeadlineExceeded {
		t.Errorf("a body that does not end: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Get(ctx, s.URL); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("a caller that has gone: got %v", err)
	}
}

func TestParseURL_RefusesWhatIsNoPage(t *testing.T) {
	for _, text := range []string{
		"", "example.org", "//example.org", "ftp://example.org", "file:///etc/passwd", "gopher://example.org:70/_x",
		"javascript:alert(1)", "data:text/html,x", "http://", "http:///path", "http://user@example.org",
		"http://user:secret@example.org", "http://a b", "http://[::1", "unix:///run/docker.sock", "HTTP+UNIX://x",
		"http://example.org/" + strings.Repeat("a", 5000), "http://ex\x00ample.org", "http://:80/",
	} {
		u, err := fetchguard.ParseURL(text)
		if fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%.40q: got %v, %v", text, u, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error repeats the credentials: %v", err)
		}
	}
	if u, err := fetchguard.ParseURL(" HTTPS://Example.org/a?b#c\n"); err != nil || u.Hostname() != "Example.org" {
		t.Errorf("got %v, %v", u, err)
	}
}
