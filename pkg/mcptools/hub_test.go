package mcptools_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/mcptools"
)

// serverMode is the variable that makes this test program an MCP server on its standard input and output.
const serverMode = "LAMINA_TEST_MCP_SERVER"

func TestMain(m *testing.M) {
	if addr := os.Getenv(callMode); addr != "" {
		stay(addr)
	}
	if os.Getenv(serverMode) == "" {
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, "a line for the log")
	err := server().Run(context.Background(), &mcp.StdioTransport{})
	if addr := os.Getenv(stubbornMode); addr != "" {
		signal.Ignore(syscall.SIGTERM)
		stay(addr)
	}
	if err != nil {
		os.Exit(1)
	}
}

const (
	// callMode is the variable that makes this test program call an address, and stay until it is hung up.
	callMode = "LAMINA_TEST_MCP_CALL"
	// stubbornMode is the one that makes a server do so when its input has ended.
	stubbornMode = "LAMINA_TEST_MCP_STUBBORN"
)

// stay calls an address, and ends this program when the other side says so. Until then only a kill ends it.
func stay(addr string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		os.Exit(2)
	}
	_, _ = c.Read(make([]byte, 1))
	_, _ = c.Write([]byte("b"))
	os.Exit(0)
}

// server returns an MCP server with a few tools.
func server() *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	type in struct {
		Text string `json:"text"`
	}
	text := func(parts ...string) *mcp.CallToolResult {
		out := &mcp.CallToolResult{}
		for _, p := range parts {
			out.Content = append(out.Content, &mcp.TextContent{Text: p})
		}
		return out
	}
	mcp.AddTool(s, &mcp.Tool{Name: "echo", Description: "Says it again."},
		func(_ context.Context, _ *mcp.CallToolRequest, a in) (*mcp.CallToolResult, any, error) {
			return text(a.Text, "again"), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "fail"},
		func(context.Context, *mcp.CallToolRequest, in) (*mcp.CallToolResult, any, error) {
			return nil, nil, fmt.Errorf("it broke")
		})
	mcp.AddTool(s, &mcp.Tool{Name: "environment"},
		func(context.Context, *mcp.CallToolRequest, in) (*mcp.CallToolResult, any, error) {
			return text(strings.Join(os.Environ(), "\n")), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "hang"},
		func(ctx context.Context, _ *mcp.CallToolRequest, _ in) (*mcp.CallToolResult, any, error) {
			<-ctx.Done()
			return nil, nil, ctx.Err()
		})
	mcp.AddTool(s, &mcp.Tool{Name: "exit"},
		func(context.Context, *mcp.CallToolRequest, in) (*mcp.CallToolResult, any, error) {
			os.Exit(3)
			return nil, nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "start"},
		func(_ context.Context, _ *mcp.CallToolRequest, a in) (*mcp.CallToolResult, any, error) {
			child := exec.Command(os.Args[0])
			child.Env, child.Stderr = append(os.Environ(), callMode+"="+a.Text), os.Stderr
			return text("started"), nil, child.Start()
		})
	mcp.AddTool(s, &mcp.Tool{Name: "picture"},
		func(context.Context, *mcp.CallToolRequest, in) (*mcp.CallToolResult, any, error) {
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.ImageContent{MIMEType: "image/png", Data: []byte{1}},
				&mcp.ResourceLink{URI: "file:///x", Name: "x"}}}, nil, nil
		})
	return s
}

// program returns a configured server that is this test program.
func program(t *testing.T, tools ...string) mcptools.Server {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return mcptools.Server{Name: "local", Command: []string{self}, Env: map[string]string{serverMode: "1"}, Tools: tools}
}

func open(t *testing.T, servers ...mcptools.Server) *mcptools.Hub {
	t.Helper()
	h, err := mcptools.New(mcptools.Config{Servers: servers})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestHub_CallsAProgram(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	t.Setenv("LAMINA_API_KEY", "canary")
	h := open(t, program(t))
	ctx := within(t, 2*time.Minute)
	tools, err := h.Tools(ctx, "local")
	if err != nil || len(tools) != 7 {
		t.Fatalf("got %v, %v", tools, err)
	}
	for _, tool := range tools {
		if tool.Name == "echo" && (tool.Description != "Says it again." || !json.Valid(tool.Parameters) ||
			!strings.Contains(string(tool.Parameters), `"text"`)) {
			t.Errorf("got %+v", tool)
		}
	}
	for tool, want := range map[string]string{
		"echo": "hi\nagain", "picture": "(an image of type image/png, which is left out)\nx file:///x",
	} {
		text, failed, err := h.Call(ctx, "local", tool, json.RawMessage(`{"text":"hi"}`))
		if err != nil || failed || text != want {
			t.Errorf("%s: got %q, %v, %v", tool, text, failed, err)
		}
	}
	if text, failed, err := h.Call(ctx, "local", "fail", json.RawMessage(`{"text":""}`)); err != nil || !failed ||
		!strings.Contains(text, "it broke") {
		t.Errorf("a tool that fails: got %q, %v, %v", text, failed, err)
	}
	text, _, err := h.Call(ctx, "local", "environment", json.RawMessage(`{"text":""}`))
	if err != nil || strings.Contains(text, "canary") || !strings.Contains(text, serverMode) {
		t.Errorf("the program sees %q, %v", text, err)
	}
	_, failed, err := h.Call(ctx, "local", "echo", json.RawMessage(`{"other":1}`))
	if err == nil && !failed {
		t.Error("wrong arguments are accepted")
	}
	if _, _, err := h.Call(ctx, "local", "missing", nil); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a tool that does not exist: got %v", err)
	}
	long := strings.Repeat("x", 5000) // the server's answer has the name
	_, _, err = h.Call(ctx, "local", long, nil)
	if n := strings.Count(fault.Public(err), "x") - len(long); n < 900 || n > 1100 {
		t.Errorf("an error has %d bytes of a long answer of the server", n)
	}
}

func TestHub_KeepsDeadlinesAndComesBack(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	h := open(t, program(t))
	ctx := within(t, 2*time.Minute)
	if _, err := h.Tools(ctx, "local"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, _, err := h.Call(short, "local", "hang", json.RawMessage(`{"text":""}`)); fault.CodeOf(err) !=
		fault.DeadlineExceeded {
		t.Errorf("a call that hangs: got %v", err)
	}
	if _, _, err := h.Call(ctx, "local", "exit", json.RawMessage(`{"text":""}`)); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a program that ends: got %v", err)
	}
	for { // the end of the program may be noticed later than that of the call
		text, _, err := h.Call(ctx, "local", "echo", json.RawMessage(`{"text":"hi"}`))
		if err == nil {
			if text != "hi\nagain" {
				t.Errorf("got %q", text)
			}
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the program is not started again: %v", err)
		}
	}
}

// calls listens for programs that stay.
func calls(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return l
}

// accept waits for a program that stays.
func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestHub_EndsWhatProgramsHaveStarted has programs start others, which stay. A program that was killed hangs up.
func TestHub_EndsWhatProgramsHaveStarted(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	for name, end := range map[string]func(context.Context, *mcptools.Hub){
		"the hub is closed": func(_ context.Context, h *mcptools.Hub) { _ = h.Close() },
		"the program ends": func(ctx context.Context, h *mcptools.Hub) {
			_, _, _ = h.Call(ctx, "local", "exit", json.RawMessage(`{"text":""}`))
		},
	} {
		l := calls(t)
		h := open(t, program(t))
		ctx := within(t, 2*time.Minute)
		arguments, err := json.Marshal(map[string]string{"text": l.Addr().String()})
		if err != nil {
			t.Fatal(err)
		}
		if text, failed, err := h.Call(ctx, "local", "start", arguments); err != nil || failed {
			t.Fatalf("%s: got %q, %v", name, text, err)
		}
		c := accept(t, l)
		end(ctx, h)
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: what the program has started stays: %v", name, err)
		}
	}
}

// TestHub_ClosesAllServersAtTheSameTime has programs that end only when all have been asked to.
func TestHub_ClosesAllServersAtTheSameTime(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	mcptools.SetTimes(t, time.Minute, 2*time.Minute)
	l := calls(t)
	var servers []mcptools.Server
	for i := range 3 {
		s := program(t)
		s.Name, s.Env = fmt.Sprintf("server%d", i), map[string]string{serverMode: "1", stubbornMode: l.Addr().String()}
		servers = append(servers, s)
	}
	h := open(t, servers...)
	for _, s := range servers {
		if _, err := h.Tools(within(t, time.Minute), s.Name); err != nil {
			t.Fatal(err)
		}
	}
	closed := make(chan error, 1)
	go func() { closed <- h.Close() }()
	var asked []net.Conn
	for range servers {
		asked = append(asked, accept(t, l))
	}
	for i, c := range asked {
		said := make([]byte, 1)
		_, err := c.Write([]byte("e"))
		if _, err := io.ReadFull(c, said); err != nil {
			t.Errorf("server %d was killed: %v", i, err)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// TestHub_KillsStubbornPrograms has programs that end neither with their input nor when they are told.
func TestHub_KillsStubbornPrograms(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	mcptools.SetTimes(t, 10*time.Minute, 10*time.Millisecond)
	l := calls(t)
	s := program(t)
	s.Env[stubbornMode] = l.Addr().String()
	h := open(t, s)
	if _, err := h.Tools(within(t, time.Minute), "local"); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 5*time.Minute {
		t.Errorf("it took %v", took)
	}
}

func TestHub_KeepsDeadlinesWhileItConnects(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	silent := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-silent }))
	t.Cleanup(s.Close)
	defer close(silent)
	h := open(t, mcptools.Server{Name: "silent", URL: s.URL})
	for range 2 { // the second one waits for the attempt of the first
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := h.Tools(ctx, "silent"); fault.CodeOf(err) != fault.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
	}
}

func TestHub_ErrorsDoNotHaveTheAddress(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	file := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(file, []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := open(t, mcptools.Server{Name: "gone", URL: gone.URL + "/?key=canary"},
		mcptools.Server{Name: "bare", URL: gone.URL, TokenFile: file})
	_, err := h.Tools(within(t, time.Minute), "gone")
	if fault.CodeOf(err) != fault.Unavailable || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
	if text := fault.Public(err); strings.Contains(text, "127.0.0.1") {
		t.Errorf("a request sees %q", text)
	}
	if err := os.WriteFile(file, []byte("two\nlines"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = h.Tools(within(t, time.Minute), "bare")
	if text := fault.Public(err); strings.Contains(text, "canary") || !strings.Contains(text, "want one line") ||
		!strings.Contains(err.Error(), file) {
		t.Errorf("got %v, and a request sees %q", err, text)
	}
}

func TestHub_AllowsWhatTheOperatorAllows(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	h := open(t, program(t, "echo"))
	ctx := within(t, 2*time.Minute)
	if tools, err := h.Tools(ctx, "local"); err != nil || len(tools) != 1 || tools[0].Name != "echo" {
		t.Errorf("got %v, %v", tools, err)
	}
	if _, _, err := h.Call(ctx, "local", "environment", nil); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("a tool that is not allowed: got %v", err)
	}
	for _, name := range []string{"other", ""} {
		if _, err := h.Tools(ctx, name); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("server %q: got %v", name, err)
		}
	}
}

func TestHub_CallsAServerOverHTTP(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	var asked, refused atomic.Int64
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server() }, nil)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch {
		case r.URL.Path == "/away":
			http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
		case r.Header.Get("Authorization") != "Bearer secret":
			refused.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := open(t, mcptools.Server{Name: "web", URL: s.URL, TokenFile: file}, mcptools.Server{Name: "bare", URL: s.URL},
		mcptools.Server{Name: "away", URL: s.URL + "/away", TokenFile: file})
	ctx := within(t, 2*time.Minute)
	text, failed, err := h.Call(ctx, "web", "echo", json.RawMessage(`{"text":"hi"}`))
	if err != nil || failed || text != "hi\nagain" || refused.Load() != 0 {
		t.Errorf("got %q, %v, %v", text, failed, err)
	}
	for _, name := range []string{"bare", "away"} {
		if _, err := h.Tools(ctx, name); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("%s: got %v", name, err)
		}
		before := asked.Load()
		_, err := h.Tools(ctx, name)
		if fault.CodeOf(err) != fault.Unavailable || asked.Load() != before {
			t.Errorf("%s: it is asked again at once (%v)", name, err)
		}
	}
}

func TestHub_AProgramThatIsNoServer(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	h := open(t, mcptools.Server{Name: "missing", Command: []string{filepath.Join(t.TempDir(), "missing")}})
	if _, err := h.Tools(within(t, time.Minute), "missing"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("got %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNew_NamesTheSetting(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, servers := range map[string][]mcptools.Server{
		"1 to 32 letters":     {{Name: "a b", URL: "http://x"}},
		"two servers":         {{Name: "a", URL: "http://x"}, {Name: "a", URL: "http://x"}},
		"either a command":    {{Name: "a"}},
		"mcp.a: want either":  {{Name: "a", URL: "http://x", Command: []string{"x"}}},
		"mcp.a.url: ":         {{Name: "a", URL: "ftp://x"}},
		"without credentials": {{Name: "a", URL: "http://u:p@x"}},
		"mcp.a.token_file: ":  {{Name: "a", Command: []string{"x"}, TokenFile: "x"}},
		"no such file":        {{Name: "a", URL: "http://x", TokenFile: empty + "x"}},
		"want one line":       {{Name: "a", URL: "http://x", TokenFile: empty}},
	} {
		_, err := mcptools.New(mcptools.Config{Servers: servers})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
