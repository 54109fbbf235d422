package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/pkg/webtools"
	"github.com/lamina-mesh/lamina/services/router/agent"
)

// web is a web with one page, and servers with one tool each.
type web struct{ hang bool }

func (w web) Do(ctx context.Context, query string, n int) ([]webtools.Result, string, error) {
	if w.hang {
		<-ctx.Done()
		return nil, "", ctx.Err()
	}
	if query == "panic" {
		panic("a defect of a parser")
	}
	if query == "nothing" {
		return nil, "fake", nil
	}
	if n != 3 {
		return nil, "", errors.New("it asks for another number of results")
	}
	return []webtools.Result{{URL: "http://found.test/", Title: "Found", Text: query}}, "fake", nil
}

func (web) Read(_ context.Context, address string) (*webtools.Page, error) {
	return &webtools.Page{URL: address + "?redirected", Title: "Page", Text: "text", Partial: true}, nil
}

func (web) Tools(_ context.Context, server string) ([]toolloop.Definition, error) {
	switch server {
	case "tickets":
		return []toolloop.Definition{{Name: "find.one", Description: "Finds.", Parameters: json.RawMessage(`{}`)},
			{Name: "close"}}, nil
	case "broken":
		return nil, fault.New(fault.Unavailable, "connect")
	}
	return nil, fault.New(fault.NotFound, "find MCP server %q", server)
}

func (web) Call(_ context.Context, server, tool string, arguments json.RawMessage) (string, bool, error) {
	if tool == "close" {
		return "", false, fault.New(fault.Unavailable, "lost")
	}
	return server + " " + tool + " " + string(arguments), tool != "find.one", nil
}

// choose reads the entries of a request; all is a box with everything.
func choose(t *testing.T, b *agent.Box, functions, texts []string, entries ...string) (*agent.Set, error) {
	t.Helper()
	var list []agent.Entry
	for _, e := range entries {
		list = append(list, agent.Entry{Field: "tools[1]", Raw: json.RawMessage(e)})
	}
	return b.Choose(t.Context(), list, functions, texts)
}

func all() *agent.Box {
	return agent.New(agent.Config{Search: web{}, Results: 3, Pages: web{}, Servers: web{}})
}

func TestBox_OffersWhatIsConfiguredAndNamed(t *testing.T) {
	names := func(s *agent.Set) (out []string) {
		for _, tool := range s.Tools {
			out = append(out, tool.Name)
			if s.Find(tool.Name) == nil || !s.Names()[tool.Name] {
				t.Errorf("%s is not found", tool.Name)
			}
		}
		return out
	}
	for _, c := range []struct {
		entries []string
		want    []string
	}{
		{[]string{`{"type":"web_search","search_context_size":"low"}`}, []string{"web_search"}},
		{[]string{`{"type":"web_search_preview"}`, `{"type":"read_page"}`}, []string{"web_search", "read_page"}},
		{[]string{`{"type":"mcp","server_label":"tickets","require_approval":"never"}`},
			[]string{"tickets__find_one", "tickets__close"}},
		{[]string{`{"type":"mcp","server_label":"tickets","allowed_tools":["close"]}`}, []string{"tickets__close"}},
	} {
		set, err := choose(t, all(), []string{"mine"}, nil, c.entries...)
		if err != nil || !reflect.DeepEqual(names(set), c.want) {
			t.Errorf("%s: got %+v, %v", c.entries, set, err)
		}
	}
	if set, err := choose(t, nil, nil, nil); set != nil || err != nil {
		t.Errorf("a request without entries: got %v, %v", set, err)
	}
	for _, c := range []struct {
		box       *agent.Box
		functions []string
		entry     string
		want      string
	}{
		{nil, nil, `{"type":"web_search"}`, "tools[1].type: "},
		{agent.New(agent.Config{}), nil, `{"type":"web_search"}`, "tools[1].type: "},
		{agent.New(agent.Config{}), nil, `{"type":"read_page"}`, "tools[1].type: "},
		{agent.New(agent.Config{}), nil, `{"type":"mcp","server_label":"tickets"}`, "tools[1].type: "},
		{all(), nil, `{"type":1}`, "tools[1]: "},
		{all(), []string{"web_search"}, `{"type":"web_search"}`, `two tools with the name "web_search"`},
		{all(), nil, `{"type":"web_search","user_location":{}}`, "tools[1].user_location: "},
		{all(), nil, `{"type":"web_search","filters":{}}`, "tools[1].filters: "},
		{all(), nil, `{"type":"mcp","server_label":"tickets","server_url":"http://x"}`, "tools[1].server_url: "},
		{all(), nil, `{"type":"mcp","server_label":"tickets","headers":{}}`, "tools[1].headers: "},
		{all(), nil, `{"type":"mcp","server_label":"tickets","authorization":"x"}`, "tools[1].authorization: "},
		{all(), nil, `{"type":"mcp","server_label":"tickets","require_approval":"always"}`, "tools[1].require_approval: "},
		{all(), nil, `{"type":"mcp"}`, "tools[1].server_label: "},
		{all(), nil, `{"type":"mcp","server_label":"other"}`, `no MCP server of this router is called "other"`},
		{all(), nil, `{"type":"mcp","server_label":"tickets","allowed_tools":["x"]}`, "tools[1].allowed_tools: "},
	} {
		set, err := choose(t, c.box, c.functions, nil, c.entry)
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v, want %s", c.entry, set, err, c.want)
		}
	}
	if _, err := choose(t, all(), nil, nil, `{"type":"mcp","server_label":"broken"}`); fault.CodeOf(err) !=
		fault.Unavailable {
		t.Errorf("a server that cannot be reached: got %v", err)
	}
}

func TestSet_CallsTools(t *testing.T) {
	set, err := choose(t, all(), nil, []string{"see (https://said.test/a/b) and http://plain.test."},
		`{"type":"web_search"}`, `{"type":"read_page"}`, `{"type":"mcp","server_label":"tickets"}`)
	if err != nil {
		t.Fatal(err)
	}
	before := []toolloop.Source{{URL: "http://found.test/"}}
	for _, c := range []struct{ tool, arguments, want string }{
		{"web_search", `{"query":"cats"}`, "http://found.test/ Found cats"},
		{"web_search", `{"query":"nothing"}`, "Nothing was found."},
		{"web_search", `[]`, "failed"},
		{"web_search", `{"query":"panic"}`, "failed call tool web_search: it has a defect"},
		{"read_page", `{"url":"http://found.test"}`, "http://found.test?redirected Page text\n(the page is longer)"},
		{"read_page", `{"url":"https://said.test/a/b"}`, "https://said.test/a/b?redirected"},
		{"read_page", `{"url":"https://said.test/a/b#c"}`, "https://said.test/a/b#c?redirected"},
		{"read_page", `{"url":"http://plain.test/"}`, "http://plain.test/?redirected"},
		{"read_page", `{"url":"http://evil.test/?secret=1"}`, "failed read http://evil.test/?secret=1: neither"},
		{"read_page", `{"url":"https://said.test/a/b?secret=1"}`, "failed"},
		{"read_page", `{"url":"file:///etc/passwd"}`, "failed url: "},
		{"tickets__find_one", `{"n":1}`, `tickets find.one {"n":1}`},
		{"tickets__find_one", ``, `tickets find.one {}`},
		{"tickets__find_one", `{`, `failed arguments: `},
		{"tickets__close", `{}`, "failed lost"},
	} {
		out, err := set.Call(t.Context(), set.Find(c.tool), c.arguments, before)
		if err != nil {
			t.Fatal(err)
		}
		got := out.Text
		if out.Failed {
			got = "failed " + out.Text
		}
		for _, s := range out.Sources {
			got += s.URL + " " + s.Title + " " + s.Text
		}
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%s(%s): got %q, want %q", c.tool, c.arguments, got, c.want)
		}
	}
	open := agent.New(agent.Config{Pages: web{}, AnyPage: true})
	if set, err = choose(t, open, nil, nil, `{"type":"read_page"}`); err != nil {
		t.Fatal(err)
	}
	if out, err := set.Call(t.Context(), set.Find("read_page"), `{"url":"http://evil.test/?x"}`, nil); err != nil ||
		out.Failed {
		t.Errorf("the operator allows any address: got %+v, %v", out, err)
	}
}

// TestSet_KeepsAddressesAndPathsForTheLog has tools fail with errors that tell where they reached and what they read.
func TestSet_KeepsAddressesAndPathsForTheLog(t *testing.T) {
	var log bytes.Buffer
	dial := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 4567},
		Err: errors.New("connection refused")}
	path := &fs.PathError{Op: "open", Path: "/etc/lamina/canary.key", Err: fs.ErrNotExist}
	for i, err := range []error{
		fault.Wrap(fault.Unavailable, dial, "search with brave"), dial, path,
		fault.Wrap(fault.FailedPrecondition, fmt.Errorf("ask: %w", fault.Wrap(fault.FailedPrecondition, path,
			"read the key of brave")), "search"),
		fault.Wrap(fault.Unavailable, errors.Join(dial, path), "connect to MCP server tickets").After(5 * time.Second),
	} {
		log.Reset()
		box := agent.New(agent.Config{Search: failing{err}, Pages: failing{err}, Servers: failing{err}, AnyPage: true,
			Log: slog.New(slog.NewTextHandler(&log, nil))})
		set, problem := choose(t, box, nil, nil, `{"type":"web_search"}`, `{"type":"read_page"}`)
		if problem != nil {
			t.Fatal(problem)
		}
		texts := []string{}
		for _, tool := range set.Tools {
			out, problem := set.Call(t.Context(), &tool, `{"query":"x","url":"http://x.test/"}`, nil)
			if problem != nil || !out.Failed || out.Text == "" {
				t.Fatalf("error %d: got %+v, %v", i, out, problem)
			}
			texts = append(texts, out.Text)
		}
		_, problem = choose(t, box, nil, nil, `{"type":"mcp","server_label":"tickets"}`)
		if fault.CodeOf(err) != fault.NotFound { // which means that there is no such server
			if fault.CodeOf(problem) != fault.CodeOf(err) {
				t.Errorf("error %d: got %v", i, problem)
			}
			texts = append(texts, problem.Error())
		}
		for _, text := range texts {
			if strings.Contains(text, "10.1.2.3") || strings.Contains(text, "canary") {
				t.Errorf("error %d: the request sees %q", i, text)
			}
		}
		if !strings.Contains(log.String(), "10.1.2.3:4567") && !strings.Contains(log.String(), "canary.key") {
			t.Errorf("error %d: the log has %q", i, log.String())
		}
	}
}

// failing are tools that fail.
type failing struct{ err error }

func (f failing) Do(context.Context, string, int) ([]webtools.Result, string, error) {
	return nil, "", f.err
}

func (f failing) Read(context.Context, string) (*webtools.Page, error) { return nil, f.err }

func (f failing) Tools(context.Context, string) ([]toolloop.Definition, error) { return nil, f.err }

func (f failing) Call(context.Context, string, string, json.RawMessage) (string, bool, error) {
	return "", false, f.err
}

func TestSet_BoundsTheTimeOfCalls(t *testing.T) {
	box := agent.New(agent.Config{Search: web{hang: true}, CallTime: 20 * time.Millisecond})
	set, err := choose(t, box, nil, nil, `{"type":"web_search"}`)
	if err != nil {
		t.Fatal(err)
	}
	out, err := set.Call(t.Context(), set.Find("web_search"), `{"query":"x"}`, nil)
	if err != nil || !out.Failed || !strings.Contains(out.Text, "20ms") {
		t.Errorf("a call that hangs: got %+v, %v", out, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := set.Call(ctx, set.Find("web_search"), `{"query":"x"}`, nil); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("a client that has gone: got %v", err)
	}
}
