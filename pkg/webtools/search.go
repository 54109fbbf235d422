package webtools

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// The defaults and limits of searches.
const (
	DefaultResults = 5
	MaxResults     = 20
	DefaultTimeout = 10 * time.Second // for one provider
	maxAnswer      = 1 << 20          // bytes of a provider's answer
	maxQuery       = 400              // characters, the limit of Brave and Tavily
	maxSnippet     = 1000             // characters of a result's text
	maxTitle       = 300              // characters of the title of a result or page
	maxURL         = 4096             // bytes of a result's address; fetchguard fetches no longer ones
)

// Result is a page that was found.
type Result struct {
	URL, Title string
	Text       string // the part of the page that the provider shows
}

// The kinds of providers.
const (
	SearXNG = "searxng"
	Brave   = "brave"
	Tavily  = "tavily"
)

// Provider is a search engine.
type Provider struct {
	Kind    string // SearXNG, Brave or Tavily
	URL     string // of the engine; empty means the vendor's. SearXNG has no default
	KeyFile string // of the engine's key; SearXNG needs none
}

// Search asks providers. It may be used by several goroutines.
type Search struct {
	providers []Provider
	timeout   time.Duration
	http      *http.Client
}

// NewSearch returns a search that asks the providers in their order. timeout is for one provider; 0 means the default.
// An error names the setting of providers at fault.
func NewSearch(providers []Provider, timeout time.Duration) (*Search, error) {
	s := &Search{timeout: cmp.Or(timeout, DefaultTimeout), http: &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 64 << 10,
			IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the provider redirects") },
	}}
	for i, p := range providers {
		field := "providers[" + strconv.Itoa(i) + "]"
		p.URL = strings.TrimSuffix(cmp.Or(p.URL, map[string]string{
			Brave: "https://api.search.brave.com", Tavily: "https://api.tavily.com",
		}[p.Kind]), "/")
		if u, err := url.Parse(p.URL); p.URL != "" && (err != nil || u.Host == "" || u.Scheme != "http" &&
			u.Scheme != "https") {
			return nil, fault.Field(field+".url", "want an address of http or https, got %q", p.URL)
		}
		switch {
		case p.Kind != SearXNG && p.Kind != Brave && p.Kind != Tavily:
			return nil, fault.Field(field+".kind", "want %s, %s or %s, got %q", SearXNG, Brave, Tavily, p.Kind)
		case p.URL == "":
			return nil, fault.Field(field+".url", "%s needs the address of the engine", p.Kind)
		case p.Kind != SearXNG && p.KeyFile == "":
			return nil, fault.Field(field+".key_file", "%s needs the file of its key", p.Kind)
		}
		if _, err := p.key(); err != nil {
			return nil, err
		}
		s.providers = append(s.providers, p)
	}
	if len(s.providers) == 0 {
		return nil, fault.Field("providers", "want at least one")
	}
	return s, nil
}

// Close closes idle connections.
func (s *Search) Close() { s.http.CloseIdleConnections() }

// key reads the provider's key.
func (p Provider) key() (string, error) {
	if p.KeyFile == "" {
		return "", nil
	}
	text, err := os.ReadFile(p.KeyFile)
	if err != nil {
		return "", fault.Wrap(fault.FailedPrecondition, err, "read the key of %s", p.Kind)
	}
	key := strings.TrimSpace(string(text))
	if key == "" || strings.ContainsAny(key, "\r\n") {
		return "", fault.Wrap(fault.FailedPrecondition, fmt.Errorf("its file is %s", p.KeyFile),
			"read the key of %s: want one line", p.Kind)
	}
	return key, nil
}

// Do searches. It returns the results of the first provider that has any, at most n, and that provider's kind. If
// some providers answered and none found anything, there are no results and no error.
func (s *Search) Do(ctx context.Context, query string, n int) ([]Result, string, error) {
	query = strings.TrimSpace(query)
	if query == "" {
		return nil, "", fault.Field("query", "is empty")
	}
	if r := []rune(query); len(r) > maxQuery {
		query = string(r[:maxQuery])
	}
	n = min(cmp.Or(max(0, n), DefaultResults), MaxResults)
	var first error
	answered := ""
	for _, p := range s.providers {
		found, err := s.ask(ctx, p, query, n)
		switch {
		case err == nil && len(found) > 0:
			return found, p.Kind, nil
		case err == nil:
			answered = cmp.Or(answered, p.Kind)
		case ctx.Err() != nil:
			return nil, "", fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "search with %s", p.Kind)
		case first == nil:
			first = err
		}
	}
	if answered != "" {
		return nil, answered, nil
	}
	return nil, "", first
}

// ask asks one provider.
func (s *Search) ask(ctx context.Context, p Provider, query string, n int) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := p.request(ctx, query, n)
	if err != nil {
		return nil, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		var about *url.Error // it repeats the address with the query
		if errors.As(err, &about) {
			err = about.Err
		}
		return nil, fault.Wrap(fault.Unavailable, err, "search with %s: it cannot be reached", p.Kind)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fault.Wrap(fault.Unavailable, err, "search with %s", p.Kind)
	case resp.StatusCode != http.StatusOK:
		return nil, fault.New(fault.Unavailable, "search with %s: it answered %s", p.Kind, resp.Status)
	case len(body) > maxAnswer:
		return nil, fault.New(fault.Unavailable, "search with %s: its answer has more than %d bytes", p.Kind, maxAnswer)
	}
	found, err := p.results(body)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "search with %s: read its answer", p.Kind)
	}
	return found[:min(n, len(found))], nil
}

// request returns the request to the provider.
func (p Provider) request(ctx context.Context, query string, n int) (*http.Request, error) {
	key, err := p.key()
	if err != nil {
		return nil, err
	}
	method, address, body := http.MethodGet, "", []byte(nil)
	switch p.Kind {
	case SearXNG:
		address = p.URL + "/search?" + url.Values{"q": {query}, "format": {"json"}}.Encode()
	case Brave:
		address = p.URL + "/res/v1/web/search?" + url.Values{"q": {query}, "count": {strconv.Itoa(n)}}.Encode()
	case Tavily:
		method, address = http.MethodPost, p.URL+"/search"
		if body, err = json.Marshal(map[string]any{"query": query, "max_results": n}); err != nil {
			return nil, fault.Field("query", "%v", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, fault.Wrap(fault.FailedPrecondition, err, "search with %s", p.Kind)
	}
	req.Header.Set("Accept", "application/json")
	switch p.Kind {
	case Brave:
		req.Header.Set("X-Subscription-Token", key)
	case Tavily:
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+key)
	}
	return req, nil
}

// results reads the provider's answer. Results without an address of http or https are left out, and so are those with
// an address that came before.
func (p Provider) results(body []byte) ([]Result, error) {
	type found struct {
		URL         string `json:"url"`
		Title       string `json:"title"`
		Content     string `json:"content"`     // SearXNG and Tavily
		Description string `json:"description"` // Brave, with tags
	}
	var answer struct {
		Results []found `json:"results"`
		Web     struct {
			Results []found `json:"results"`
		} `json:"web"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	var out []Result
	seen := map[string]bool{}
	for _, f := range append(answer.Results, answer.Web.Results...) {
		u, err := url.Parse(f.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || len(f.URL) > maxURL || seen[f.URL] {
			continue
		}
		seen[f.URL] = true
		out = append(out, Result{URL: f.URL, Title: shorten(oneLine(plain(f.Title)), maxTitle),
			Text: shorten(oneLine(plain(cmp.Or(f.Content, f.Description))), maxSnippet)})
	}
	return out, nil
}

// oneLine joins the words of a text with single spaces.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// shorten cuts a text after n characters.
func shorten(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n]) + "…"
	}
	return text
}
