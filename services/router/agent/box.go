package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/pkg/webtools"
)

// The defaults of Config.
const (
	DefaultCallTime = 30 * time.Second
	DefaultTime     = 2 * time.Minute
)

// Searcher searches the web.
type Searcher interface {
	Do(ctx context.Context, query string, n int) (found []webtools.Result, provider string, err error)
}

// PageReader reads pages of the web.
type PageReader interface {
	Read(ctx context.Context, address string) (*webtools.Page, error)
}

// Servers are the MCP servers.
type Servers interface {
	// Tools lists the tools of a server; NotFound if there is no such server.
	Tools(ctx context.Context, server string) ([]toolloop.Definition, error)
	// Call calls a tool. failed says that the tool reports a failure, which text describes.
	Call(ctx context.Context, server, tool string, arguments json.RawMessage) (text string, failed bool, err error)
}

// Config is what the operator has configured. What is nil is off.
type Config struct {
	Limits   toolloop.Limits
	CallTime time.Duration // of one call; 0 means DefaultCallTime
	Time     time.Duration // of all calls of a request, those of one turn counting once; 0 means DefaultTime
	Search   Searcher
	Results  int // of a search
	Pages    PageReader
	AnyPage  bool // read_page may read addresses that nobody has mentioned
	Servers  Servers
	Log      *slog.Logger // gets the whole text of errors; requests see no addresses and paths. nil logs nothing
}

// Box is what may be called. A nil Box has no tools.
type Box struct{ c Config }

// New returns a box.
func New(c Config) *Box {
	c.CallTime, c.Time = cmp.Or(c.CallTime, DefaultCallTime), cmp.Or(c.Time, DefaultTime)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Box{c}
}

// The kinds of tools.
const (
	KindSearch = "web_search"
	KindPage   = "read_page"
	KindMCP    = "mcp"
)

// Tool is a tool that a request has chosen.
type Tool struct {
	Name        string // as the model calls it
	Description string
	Parameters  json.RawMessage
	Kind        string
	Server      string // of kind KindMCP
	Remote      string // the tool's name on the server
}

// Set is what a request has chosen.
type Set struct {
	box   *Box
	Tools []Tool // in the order of the request
	texts []string
	calls int // that the request allows; 0 for no limit of its own
}

// Entry is an entry of a request's tools that the server runs.
type Entry struct {
	Field string // of the request
	Raw   json.RawMessage
}

// Kind returns the kind of an entry of a request's tools, or "" for one that the server does not run, such as a
// function.
func Kind(kind string) string {
	switch kind {
	case "web_search", "web_search_preview", "web_search_2025_08_26":
		return KindSearch
	case KindPage, KindMCP:
		return kind
	}
	return ""
}

// wanted is an entry of a request's tools, in OpenAI's spelling.
type wanted struct {
	Type     string          `json:"type"`
	Size     string          `json:"search_context_size"`
	Location json.RawMessage `json:"user_location"`
	Filters  json.RawMessage `json:"filters"`
	Label    string          `json:"server_label"`
	Allowed  []string        `json:"allowed_tools"`
	Approval json.RawMessage `json:"require_approval"`
	URL      json.RawMessage `json:"server_url"`
	Header   json.RawMessage `json:"headers"`
	Token    json.RawMessage `json:"authorization"`
	Remote   json.RawMessage `json:"connector_id"`
}

func given(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// Choose returns what the entries of a request name. functions are the names of the client's own tools, which no other
// tool may have, and texts are those of the request's messages, whose addresses read_page may read. It returns nil if
// there are no entries.
func (b *Box) Choose(ctx context.Context, entries []Entry, functions, texts []string) (*Set, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	set := &Set{box: b, texts: texts}
	taken := map[string]bool{}
	for _, name := range functions {
		taken[name] = true
	}
	for _, e := range entries {
		var w wanted
		if err := json.Unmarshal(e.Raw, &w); err != nil {
			return nil, fault.Field(e.Field, "want a tool: %v", err)
		}
		tools, err := b.find(ctx, e.Field, &w)
		if err != nil {
			return nil, err
		}
		for _, t := range tools {
			if taken[t.Name] {
				return nil, fault.Field(e.Field, "there are two tools with the name %q", t.Name)
			}
			taken[t.Name] = true
			set.Tools = append(set.Tools, t)
		}
	}
	return set, nil
}

// find returns the tools that an entry names.
func (b *Box) find(ctx context.Context, field string, w *wanted) ([]Tool, error) {
	off := func() error {
		return fault.Field(field+".type", "%q is not supported: the operator of this server has not turned it on", w.Type)
	}
	kind := Kind(w.Type)
	if b == nil {
		return nil, off()
	}
	for _, f := range []struct {
		name string
		raw  json.RawMessage
	}{
		{"user_location", w.Location}, {"filters", w.Filters}, {"server_url", w.URL}, {"headers", w.Header},
		{"authorization", w.Token}, {"connector_id", w.Remote},
	} {
		if given(f.raw) {
			return nil, fault.Field(field+"."+f.name, "is not supported: the operator of the server configures its tools")
		}
	}
	switch {
	case kind == KindSearch && b.c.Search != nil:
		return []Tool{searchTool()}, nil
	case kind == KindPage && b.c.Pages != nil:
		return []Tool{pageTool()}, nil
	case kind == KindMCP && b.c.Servers != nil:
		return b.serverTools(ctx, field, w)
	}
	return nil, off()
}

// serverTools returns the tools of an MCP server.
func (b *Box) serverTools(ctx context.Context, field string, w *wanted) ([]Tool, error) {
	if given(w.Approval) && string(w.Approval) != `"never"` {
		return nil, fault.Field(field+".require_approval", `only "never" is supported`)
	}
	if w.Label == "" {
		return nil, fault.Field(field+".server_label", "is missing")
	}
	ctx, cancel := context.WithTimeout(ctx, b.c.CallTime)
	defer cancel()
	offered, err := b.c.Servers.Tools(ctx, w.Label)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, fault.Field(field+".server_label", "no MCP server of this router is called %q", w.Label)
	}
	if err != nil {
		return nil, b.public(ctx, w.Label, err)
	}
	for i, name := range w.Allowed {
		if !slices.ContainsFunc(offered, func(t toolloop.Definition) bool { return t.Name == name }) {
			return nil, fault.Field(field+".allowed_tools", "%d: server %q has no tool %q", i, w.Label, name)
		}
	}
	var out []Tool
	for _, t := range offered {
		if w.Allowed == nil || slices.Contains(w.Allowed, t.Name) {
			out = append(out, Tool{Name: callName(w.Label, t.Name), Description: t.Description,
				Parameters: t.Parameters, Kind: KindMCP, Server: w.Label, Remote: t.Name})
		}
	}
	return out, nil
}

// public logs why a tool or server has failed, and returns what requests see of it.
func (b *Box) public(ctx context.Context, tool string, err error) error {
	b.c.Log.InfoContext(ctx, "a tool has failed", "tool", tool, "error", err)
	out := fault.New(fault.CodeOf(err), "%s", fault.Public(err))
	var f *fault.Error
	if errors.As(err, &f) {
		out.Reason, out.RetryAfter = f.Reason, f.RetryAfter
	}
	return out
}

// callName returns the name by which a model calls a server's tool, which has letters, digits, _ and - only.
func callName(server, tool string) string {
	name := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' {
			return c
		}
		return '_'
	}, server+"__"+tool)
	return name[:min(len(name), 64)]
}

// Find returns the tool with a name, or nil.
func (s *Set) Find(name string) *Tool {
	for i := range s.Tools {
		if s.Tools[i].Name == name {
			return &s.Tools[i]
		}
	}
	return nil
}

// Names returns the names of the tools.
func (s *Set) Names() map[string]bool {
	out := map[string]bool{}
	for _, t := range s.Tools {
		out[t.Name] = true
	}
	return out
}

// Limits returns the limits of the request's loop.
func (s *Set) Limits() toolloop.Limits {
	l := s.box.c.Limits
	if s.calls > 0 {
		l.Calls = min(s.calls, cmp.Or(l.Calls, toolloop.DefaultCalls))
	}
	return l
}

// LimitCalls sets how many calls the request wants at most. The limit of the operator holds too.
func (s *Set) LimitCalls(n int) { s.calls = n }

// Time returns how long all calls of the request may take.
func (s *Set) Time() time.Duration { return s.box.c.Time }

// addresses finds addresses of the web in a text.
var addresses = regexp.MustCompile(`https?://[^\s<>"'` + "`" + `\\^{}|]+`)

// mentioned reports whether a text of the request has the address, whatever punctuation follows it there.
func (s *Set) mentioned(address string) bool {
	for _, text := range s.texts {
		for _, found := range addresses.FindAllString(text, -1) {
			if same(found, address) || same(strings.TrimRight(found, ".,;:!?)]*_"), address) {
				return true
			}
		}
	}
	return false
}

// same compares two addresses without their fragments and without a / at the end.
func same(a, b string) bool {
	clean := func(s string) string {
		s, _, _ = strings.Cut(s, "#")
		return strings.TrimSuffix(s, "/")
	}
	return clean(a) == clean(b)
}
