package mcptools

import (
	"context"
	"encoding/json"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
)

const (
	maxTools    = 128             // of one server
	maxMessage  = 4 << 20         // bytes of one message of a server
	listAge     = time.Minute     // how long a list of tools is used
	retryAfter  = 5 * time.Second // after a failed connection
	connectTime = 20 * time.Second
)

// Times that tests change.
var (
	terminate = 2 * time.Second // for a program to end after its input was closed
	closeTime = 5 * time.Second // for all programs to end, after which they are killed
)

// Server is a configured server: a program, or an address.
type Server struct {
	Name      string            // by which requests name it
	Command   []string          // a program with its arguments
	Env       map[string]string // of the program, besides PATH and HOME
	Dir       string            // in which the program runs
	URL       string            // of the streamable HTTP endpoint
	TokenFile string            // of the bearer token for URL; it is read for each request
	Tools     []string          // that may be called; nil for all
}

// Config is the configuration of a hub.
type Config struct {
	Servers []Server
	Log     *slog.Logger // nil logs nothing
}

// Hub has the sessions with all servers.
type Hub struct {
	servers map[string]*connection
	done    context.CancelFunc // ends what runs
	ended   context.Context
	watches sync.WaitGroup
	closing sync.Once
}

// names are what servers may be called.
var names = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// New returns a hub. It connects to nothing yet. An error names the setting at fault.
func New(c Config) (*Hub, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	h := &Hub{servers: map[string]*connection{}}
	h.ended, h.done = context.WithCancel(context.Background())
	for _, s := range c.Servers {
		field := "mcp." + s.Name
		switch {
		case !names.MatchString(s.Name):
			return nil, fault.Field("mcp", "%q: the name of a server has 1 to 32 letters, digits, _ and -", s.Name)
		case h.servers[s.Name] != nil:
			return nil, fault.Field(field, "there are two servers with this name")
		case (len(s.Command) == 0) == (s.URL == ""):
			return nil, fault.Field(field, "want either a command or a url")
		case s.URL == "" && s.TokenFile != "":
			return nil, fault.Field(field+".token_file", "it is for servers with a url")
		}
		if err := checkURL(field, s.URL); err != nil {
			return nil, err
		}
		if _, err := token(s.TokenFile); err != nil {
			return nil, err
		}
		h.servers[s.Name] = &connection{hub: h, server: s, log: c.Log.With("mcp", s.Name),
			lock: make(chan struct{}, 1)}
	}
	return h, nil
}

// Names returns the names of the servers.
func (h *Hub) Names() (out []string) {
	for name := range h.servers {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Close ends all sessions and programs at the same time, with what the programs have started, and waits for them. It
// may be called more than once.
func (h *Hub) Close() error {
	h.closing.Do(func() {
		h.done()
		late, ended := context.WithTimeout(context.Background(), closeTime)
		defer ended()
		var all sync.WaitGroup
		for _, c := range h.servers {
			all.Go(func() {
				c.lock <- struct{}{} // held for ever: nothing connects any more
				if c.session == nil {
					return
				}
				defer context.AfterFunc(late, c.program.kill)()
				_ = c.session.Close() // it fails for a server that has gone already
			})
		}
		all.Wait()
	})
	h.watches.Wait()
	return nil
}

// find returns the connection to a server.
func (h *Hub) find(server string) (*connection, error) {
	c := h.servers[server]
	if c == nil {
		return nil, fault.New(fault.NotFound, "find MCP server %q: it is not configured", server)
	}
	return c, nil
}

// Tools lists the tools of a server that may be called. It returns NotFound if there is no such server, and
// Unavailable if it cannot be reached.
func (h *Hub) Tools(ctx context.Context, server string) ([]toolloop.Definition, error) {
	c, err := h.find(server)
	if err != nil {
		return nil, err
	}
	ctx, stop := h.within(ctx)
	defer stop()
	return c.list(ctx)
}

// Call calls a tool of a server. failed says that the tool reports a failure, which text describes.
func (h *Hub) Call(
	ctx context.Context, server, tool string, arguments json.RawMessage,
) (text string, failed bool, err error) {
	c, err := h.find(server)
	if err != nil {
		return "", false, err
	}
	if !c.allows(tool) {
		return "", false, fault.New(fault.NotFound, "call tool %q of MCP server %s: it is not allowed", tool, server)
	}
	ctx, stop := h.within(ctx)
	defer stop()
	session, err := c.open(ctx)
	if err != nil {
		return "", false, err
	}
	out, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: arguments})
	if err != nil {
		return "", false, c.failure(ctx, err, "call tool %q of MCP server %s", tool, server)
	}
	return textOf(out), out.IsError, nil
}

// within returns a context that also ends with the hub.
func (h *Hub) within(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(h.ended, cancel)
	return ctx, func() { stop(); cancel() }
}
