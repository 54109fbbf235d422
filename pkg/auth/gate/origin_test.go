package gate_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/gate"
)

// TestGate_AWebsiteCannotUseALocalServer is about a server without keys, as lamina up starts one.
func TestGate_AWebsiteCannotUseALocalServer(t *testing.T) {
	reached := 0
	h := gate.New(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reached++ }),
		gate.Options{Hosts: []string{"lamina.example.org"}, Origins: []string{"https://chat.example.org/"}})
	for _, c := range []struct {
		name, method, host string
		headers            []string
		want               int
	}{
		{"a program", "POST", "127.0.0.1:8080", nil, 200},
		{"a program by name", "POST", "localhost:8080", nil, 200},
		{"a container", "POST", "router:8080", nil, 200},
		{"IPv6", "POST", "[::1]:8080", nil, 200},
		{"IPv6 without a port", "POST", "[::1]", nil, 200},
		{"a name of localhost", "GET", "lamina.localhost", nil, 200},
		{"an allowed name", "GET", "Lamina.Example.org:443", nil, 200},
		{"the console", "POST", "127.0.0.1:8080", []string{"Origin", "http://127.0.0.1:8080", "Sec-Fetch-Site", "same-origin"}, 200},
		{"the console behind TLS", "POST", "localhost", []string{"Origin", "https://localhost"}, 200},
		{"a link to the console", "GET", "localhost", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, 200},
		{"an address typed into a browser", "GET", "localhost", []string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate"}, 200},
		{"an allowed website", "POST", "127.0.0.1:8080", []string{"Origin", "https://chat.example.org"}, 200},

		{"DNS rebinding", "POST", "evil.example:8080", nil, 403},
		{"DNS rebinding, same origin", "POST", "evil.example:8080", []string{"Origin", "http://evil.example:8080"}, 403},
		{"DNS rebinding with a final dot", "GET", "evil.example.", nil, 403},
		{"DNS rebinding to a name that begins like ours", "GET", "localhost.evil.example", nil, 403},
		{"DNS rebinding to a name that ends like an address", "GET", "evil.127.0.0.1", nil, 403},
		{"a website's script", "POST", "127.0.0.1:8080", []string{"Origin", "https://evil.example"}, 403},
		{"a website's form", "POST", "localhost:8080", []string{"Origin", "https://evil.example", "Content-Type", "text/plain"}, 403},
		{"a sandboxed frame", "POST", "localhost:8080", []string{"Origin", "null"}, 403},
		{"another port of this machine", "POST", "localhost:8080", []string{"Origin", "http://localhost:3000"}, 403},
		{"two origins", "POST", "localhost", []string{"Origin", "http://localhost", "Origin", "https://evil.example"}, 403},
		{"an image of a website", "GET", "localhost", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}, 403},
		{"a form without an origin", "POST", "localhost", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, 403},
		{"a neighbour of an allowed website", "POST", "localhost", []string{"Origin", "https://chat.example.org.evil.example"}, 403},
		{"a file", "POST", "localhost", []string{"Origin", "file://localhost"}, 403},
	} {
		q := httptest.NewRequest(c.method, "/v1/completions", nil)
		q.Host = c.host
		for i := 0; i < len(c.headers); i += 2 {
			q.Header.Add(c.headers[i], c.headers[i+1])
		}
		w := httptest.NewRecorder()
		before := reached
		h.ServeHTTP(w, q)
		if w.Code != c.want || (reached > before) != (c.want == 200) {
			t.Errorf("%s: %d, reached %v, want %d", c.name, w.Code, reached > before, c.want)
		}
		allowed := c.name == "an allowed website"
		if got := w.Header().Get("Access-Control-Allow-Origin"); (got != "") != allowed {
			t.Errorf("%s: Access-Control-Allow-Origin is %q", c.name, got)
		}
		if w.Header().Get("Set-Cookie") != "" || w.Header().Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s: %v", c.name, w.Header())
		}
	}
}

func TestGate_PreflightOfAllowedOriginsOnly(t *testing.T) {
	r := newRig(t, func(o *gate.Options, _ *auth.Key) { o.Origins = []string{"https://chat.example.org"} })
	for origin, want := range map[string]int{"https://chat.example.org": 204, "https://evil.example": 403} {
		w := r.ask(http.MethodOptions, "/v1/completions", "Origin", origin, "Access-Control-Request-Method", "POST",
			"Access-Control-Request-Headers", "authorization,content-type")
		if w.Code != want || r.reached != 0 {
			t.Errorf("%s: %d", origin, w.Code)
		}
	}
	w := r.ask(http.MethodPost, "/v1/completions", "Origin", "https://chat.example.org")
	if w.Code != http.StatusUnauthorized || w.Header().Get("Access-Control-Allow-Origin") == "" {
		t.Errorf("an allowed website without a key: %d %v", w.Code, w.Header())
	}
}
