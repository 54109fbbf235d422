package webtools_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/webtools"
)

// engine is a search engine with the API of one of the providers.
type engine struct {
	*httptest.Server
	asked  int
	status int    // 0 means 200
	body   string // of the answer; empty for two results
}

const canary = "canary-key-7d1f"

func newEngine(t *testing.T, kind string) *engine {
	t.Helper()
	e := &engine{}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.asked++
		query, count, body := r.URL.Query().Get("q"), r.URL.Query().Get("count"), ""
		switch kind {
		case webtools.SearXNG:
			if r.URL.Path != "/search" || r.URL.Query().Get("format") != "json" || r.Method != http.MethodGet {
				t.Errorf("SearXNG got %s %s", r.Method, r.URL)
			}
			body = `{"query":"x","results":[{"url":"http://a.test/","title":"A &amp; B","content":"one\n two","engine":"e"},
				{"url":"http://a.test/","title":"again"},{"url":"javascript:alert(1)","title":"bad"},
				{"url":"https://b.test/x","title":"C","content":""}]}`
		case webtools.Brave:
			if r.URL.Path != "/res/v1/web/search" || r.Header.Get("X-Subscription-Token") != canary || count != "4" {
				t.Errorf("Brave got %s %v", r.URL, r.Header)
			}
			body = `{"web":{"results":[{"url":"http://a.test/","title":"A & B","description":"<strong>one</strong> two"},
				{"url":"https://b.test/x","title":"C"}]}}`
		case webtools.Tavily:
			var in struct {
				Query string `json:"query"`
				Max   int    `json:"max_results"`
			}
			raw, _ := io.ReadAll(r.Body)
			if err := json.Unmarshal(raw, &in); err != nil || r.Method != http.MethodPost || r.URL.Path != "/search" ||
				r.Header.Get("Authorization") != "Bearer "+canary || in.Max != 4 {
				t.Errorf("Tavily got %s %s %v", r.Method, raw, r.Header)
			}
			query = in.Query
			body = `{"results":[{"url":"http://a.test/","title":"A & B","content":"one two","score":0.9},
				{"url":"https://b.test/x","title":"C","content":""}]}`
		}
		if query != "cats & dogs" {
			t.Errorf("%s got the query %q", kind, query)
		}
		if e.body != "" {
			body = e.body
		}
		if e.status != 0 {
			w.WriteHeader(e.status)
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(e.Close)
	return e
}

// keyFile writes a key into a file.
func keyFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSearch_AsksEachProvider(t *testing.T) {
	for _, kind := range []string{webtools.SearXNG, webtools.Brave, webtools.Tavily} {
		e := newEngine(t, kind)
		p := webtools.Provider{Kind: kind, URL: e.URL + "/"}
		if kind != webtools.SearXNG {
			p.KeyFile = keyFile(t, canary+"\n")
		}
		s, err := webtools.NewSearch([]webtools.Provider{p}, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		found, by, err := s.Do(t.Context(), " cats & dogs ", 4)
		want := []webtools.Result{{URL: "http://a.test/", Title: "A & B", Text: "one two"},
			{URL: "https://b.test/x", Title: "C"}}
		if err != nil || by != kind || len(found) != 2 || found[0] != want[0] || found[1] != want[1] {
			t.Errorf("%s: got %q by %s, %v", kind, found, by, err)
		}
	}
}

func TestSearch_GoesOnWithTheNextProvider(t *testing.T) {
	first, second := newEngine(t, webtools.Brave), newEngine(t, webtools.Tavily)
	s, err := webtools.NewSearch([]webtools.Provider{
		{Kind: webtools.Brave, URL: first.URL, KeyFile: keyFile(t, canary)},
		{Kind: webtools.Tavily, URL: second.URL, KeyFile: keyFile(t, canary)},
	}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range []struct {
		status int
		body   string
		want   string
	}{
		{0, "", webtools.Brave}, {429, "", webtools.Tavily}, {500, "", webtools.Tavily}, {0, "{", webtools.Tavily},
		{0, `{"web":{"results":[]}}`, webtools.Tavily}, {0, strings.Repeat(" ", 2<<20), webtools.Tavily},
		{302, "", webtools.Tavily},
	} {
		first.status, first.body = c.status, c.body
		if found, by, err := s.Do(t.Context(), "cats & dogs", 4); err != nil || by != c.want || len(found) != 2 {
			t.Errorf("the first answers %d %.20q: got %v by %q, %v", c.status, c.body, found, by, err)
		}
	}
	first.status, first.body, second.body = 0, `{}`, `{}`
	if found, by, err := s.Do(t.Context(), "cats & dogs", 4); err != nil || len(found) != 0 || by != webtools.Brave {
		t.Errorf("nothing is found: got %v by %q, %v", found, by, err)
	}
	first.status, second.status = 401, 500
	_, _, err = s.Do(t.Context(), "cats & dogs", 4)
	if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "401") ||
		strings.Contains(err.Error(), canary) {
		t.Errorf("nobody answers: got %v", err)
	}
	first.Close()
	second.Close()
	if _, _, err = s.Do(t.Context(), "secret words", 4); fault.CodeOf(err) != fault.Unavailable ||
		strings.Contains(err.Error(), "secret") {
		t.Errorf("nobody is there: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err = s.Do(ctx, "x", 4); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("a caller that has gone: got %v", err)
	}
	if _, _, err = s.Do(t.Context(), "  ", 4); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("an empty query: got %v", err)
	}
}

func TestNewSearch_NamesTheSetting(t *testing.T) {
	for want, p := range map[string][]webtools.Provider{
		"providers: ":             nil,
		"providers[0].kind: ":     {{Kind: "other", URL: "http://x"}},
		"providers[0].url: ":      {{Kind: webtools.SearXNG}},
		"providers[0].key_file: ": {{Kind: webtools.Brave}},
		"want an address of http": {{Kind: webtools.SearXNG, URL: "ftp://x"}},
		"want one line":           {{Kind: webtools.Tavily, KeyFile: keyFile(t, "a\nb")}},
		"no such file":            {{Kind: webtools.Tavily, KeyFile: filepath.Join(t.TempDir(), "missing")}},
	} {
		if _, err := webtools.NewSearch(p, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// FuzzResults reads what a provider may answer: results are few, short and on one line, and have addresses of the web.
func FuzzResults(f *testing.F) {
	for _, seed := range []string{
		`{"results":[{"url":"http://a.test/","title":"A &amp; B","content":"one\n two"}]}`,
		`{"web":{"results":[{"url":"http://a.test/","title":"A","description":"<strong>one</strong> two"}]}}`,
		`{"results":[{"url":"javascript:x"},{"url":"http:"},{"url":"HTTP://a\u0000/"},{"url":"http://a/\ud800"}]}`,
		`{"results":[{"url":"http://a/","title":"<<b>b &#0;&lt;p>","content":"` + strings.Repeat("é ", 2000) + `"}]}`,
		`{"results":[{"url":"http://` + strings.Repeat("a", 5000) + `/","title":"` + strings.Repeat("a", 5000) + `"}]}`,
		`{"results":{}}`, `{"results":null,"web":7}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, kind := range []string{webtools.SearXNG, webtools.Brave, webtools.Tavily} {
			found, err := webtools.Results(kind, body)
			if err != nil && len(found) > 0 {
				t.Errorf("%q: got %q and %v", body, found, err)
			}
			seen := map[string]bool{}
			for _, r := range found {
				if u, err := url.Parse(r.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || seen[r.URL] ||
					len(r.URL) > webtools.MaxURL {
					t.Errorf("%q: got the address %q", body, r.URL)
				}
				seen[r.URL] = true
				for text, most := range map[string]int{r.Title: webtools.MaxTitle, r.Text: webtools.MaxText} {
					if !utf8.ValidString(text) || utf8.RuneCountInString(text) > most+1 ||
						strings.ContainsAny(text, "\r\n\t") {
						t.Errorf("%q: got the text %q", body, text)
					}
				}
			}
		}
	})
}
