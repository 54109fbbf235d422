package mcptools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
)

// connection is the session with one server. What follows lock may be used by its holder only.
type connection struct {
	hub    *Hub
	server Server
	log    *slog.Logger

	lock    chan struct{} // has room for its holder
	session *mcp.ClientSession
	program *program        // of session; nil for a server with an address
	lost    <-chan struct{} // closed when the session has ended
	tools   []toolloop.Definition
	listed  time.Time // when tools was read
	broken  error     // why the last attempt to connect failed
	retry   time.Time // of the next attempt
}

func (c *connection) allows(tool string) bool {
	return c.server.Tools == nil || slices.Contains(c.server.Tools, tool)
}

// failure returns the fault of a call.
func (c *connection) failure(ctx context.Context, err error, format string, args ...any) error {
	code := fault.Unavailable
	if ctx.Err() != nil {
		code = fault.CodeOf(ctx.Err())
	}
	var answer *jsonrpc.Error
	if errors.As(err, &answer) { // the server's own text, such as which argument is wrong
		return fault.Wrap(code, cause(err), "%s: it answered %.1000q", fmt.Sprintf(format, args...), answer.Message)
	}
	return fault.Wrap(code, cause(err), format, args...)
}

// cause returns an error without the address of the server, which may have a key.
func cause(err error) error {
	var about *url.Error
	if errors.As(err, &about) {
		return about.Err
	}
	return err
}

// open returns the session. It connects if there is none. The attempt does not end with ctx, so that a client that has
// gone breaks nothing for others.
func (c *connection) open(ctx context.Context) (*mcp.ClientSession, error) {
	type opened struct {
		session *mcp.ClientSession
		err     error
	}
	late := func() error { return c.failure(ctx, ctx.Err(), "connect to MCP server %s", c.server.Name) }
	select {
	case c.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, late()
	}
	out := make(chan opened, 1)
	c.hub.watches.Go(func() { // it owns the lock now
		defer func() { <-c.lock }()
		session, err := c.connect()
		out <- opened{session, err}
	})
	select {
	case o := <-out:
		return o.session, o.err
	case <-ctx.Done():
		return nil, late()
	}
}

// connect is open for the holder of the lock.
func (c *connection) connect() (*mcp.ClientSession, error) {
	if c.session != nil {
		select {
		case <-c.lost:
			c.session, c.listed = nil, time.Time{}
		default:
			return c.session, nil
		}
	}
	if c.hub.ended.Err() != nil {
		return nil, fault.New(fault.Unavailable, "connect to MCP server %s: this process is stopping", c.server.Name)
	}
	if c.broken != nil && time.Now().Before(c.retry) {
		return nil, c.broken
	}
	attempt, cancel := context.WithTimeout(c.hub.ended, connectTime)
	defer cancel()
	client := mcp.NewClient(&mcp.Implementation{Name: "lamina", Version: "1"}, &mcp.ClientOptions{
		Capabilities: &mcp.ClientCapabilities{}, Logger: c.log,
	})
	transport, program := c.transport()
	session, err := client.Connect(attempt, transport, nil)
	if err != nil {
		program.kill()
		c.broken = fault.Wrap(fault.Unavailable, cause(err), "connect to MCP server %s",
			c.server.Name).After(retryAfter)
		c.retry = time.Now().Add(retryAfter)
		return nil, c.broken
	}
	lost := make(chan struct{})
	c.session, c.program, c.lost, c.broken = session, program, lost, nil
	c.hub.watches.Go(func() {
		defer close(lost)
		err := session.Wait()
		program.kill() // what it has left running
		c.log.Debug("MCP session ended", "error", cause(err))
	})
	c.log.Debug("MCP session begun")
	return session, nil
}

// transport returns how the server is spoken to, and its program if it has one.
func (c *connection) transport() (mcp.Transport, *program) {
	if c.server.URL != "" {
		return &mcp.StreamableClientTransport{Endpoint: c.server.URL, HTTPClient: httpClient(c.server.TokenFile),
			MaxRetries: -1, DisableStandaloneSSE: true, MaxEventSize: maxMessage}, nil
	}
	cmd := exec.Command(c.server.Command[0], c.server.Command[1:]...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = c.server.Dir, environment(c.server.Env), terminate
	cmd.Stderr = &lines{log: c.log}
	p := &program{CommandTransport: mcp.CommandTransport{Command: cmd, TerminateDuration: terminate}}
	p.group.prepare(cmd)
	return p, p
}

// environment returns the environment of a program.
func environment(more map[string]string) []string {
	var out []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LANG", "SYSTEMROOT", "TEMP", "USERPROFILE"} {
		if v, ok := os.LookupEnv(name); ok && more[name] == "" {
			out = append(out, name+"="+v)
		}
	}
	for name, v := range more {
		out = append(out, name+"="+v)
	}
	sort.Strings(out)
	return out
}

// list returns the tools that may be called.
func (c *connection) list(ctx context.Context) ([]toolloop.Definition, error) {
	session, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case c.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, c.failure(ctx, ctx.Err(), "list the tools of MCP server %s", c.server.Name)
	}
	defer func() { <-c.lock }()
	if time.Since(c.listed) < listAge {
		return c.tools, nil
	}
	var out []toolloop.Definition
	for t, err := range session.Tools(ctx, nil) {
		if err != nil {
			return nil, c.failure(ctx, err, "list the tools of MCP server %s", c.server.Name)
		}
		if !c.allows(t.Name) {
			continue
		}
		if len(out) == maxTools {
			return nil, fault.New(fault.Exhausted, "list the tools of MCP server %s: there are more than %d", c.server.Name,
				maxTools)
		}
		parameters, err := json.Marshal(t.InputSchema)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "read the schema of tool %q of MCP server %s", t.Name,
				c.server.Name)
		}
		out = append(out, toolloop.Definition{Name: t.Name, Description: t.Description, Parameters: parameters})
	}
	c.tools, c.listed = out, time.Now()
	return out, nil
}

// textOf returns what a tool returned as text.
func textOf(r *mcp.CallToolResult) string {
	var parts []string
	for _, content := range r.Content {
		switch v := content.(type) {
		case *mcp.TextContent:
			parts = append(parts, v.Text)
		case *mcp.EmbeddedResource:
			if v.Resource != nil && v.Resource.Text != "" {
				parts = append(parts, v.Resource.Text)
			}
		case *mcp.ResourceLink:
			parts = append(parts, strings.TrimSpace(v.Name+" "+v.URI))
		case *mcp.ImageContent:
			parts = append(parts, fmt.Sprintf("(an image of type %s, which is left out)", v.MIMEType))
		case *mcp.AudioContent:
			parts = append(parts, fmt.Sprintf("(a sound of type %s, which is left out)", v.MIMEType))
		}
	}
	if len(parts) == 0 && r.StructuredContent != nil {
		if text, err := json.Marshal(r.StructuredContent); err == nil {
			return string(text)
		}
	}
	return strings.Join(parts, "\n")
}
