package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/charmbracelet/x/term"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/chat"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

type chatCmd struct {
	meshFlags
	samplingFlags
	servingFlags
	System    string `help:"System message."`
	MaxTokens uint32 `help:"Maximum number of tokens in an answer." short:"n" default:"512"`
	History   string `help:"File of earlier questions, which the arrow up brings back in a terminal; none keeps no file. Default: lamina/chat-history in the user's cache folder." env:"LAMINA_CHAT_HISTORY"`
}

// Run converses in a terminal. Without one it answers each line of standard input.
func (c *chatCmd) Run(e *verb.Env) error {
	router, done, err := c.dial(e)
	if err != nil {
		return err
	}
	return errors.Join(c.converse(e, router), done())
}

func (c *chatCmd) converse(e *verb.Env, router routerv1.RouterServiceClient) error {
	sampling, err := c.sampling(e)
	if err != nil {
		return err
	}
	req := &routerv1.ChatRequest{
		Adapter: c.adapter(), MaxTokens: c.MaxTokens, Sampling: sampling, ContextPolicy: c.policy(),
		Priority: c.Priority, WaitForCapacity: c.WaitForCapacity,
	}
	in, out := terminalOf(e.Stdin), terminalOf(e.Stdout)
	if in == nil || out == nil || os.Getenv("TERM") == "dumb" {
		return c.lines(e, router, req)
	}
	return c.talk(e, router, req, in, out)
}

// terminalOf returns the file of a terminal, or nil.
func terminalOf(stream any) *os.File {
	if f, ok := stream.(*os.File); ok && term.IsTerminal(f.Fd()) {
		return f
	}
	return nil
}

// chatPatience is how long a chat waits for a router that restarts.
const chatPatience = time.Minute

// talk converses in a terminal.
func (c *chatCmd) talk(
	e *verb.Env, router routerv1.RouterServiceClient, req *routerv1.ChatRequest, in, out *os.File,
) error {
	history, err := chat.OpenHistory(c.historyPath())
	if err != nil {
		return err
	}
	// Ctrl-C stops an answer, and not the program.
	interrupts := make(chan os.Signal, 1)
	signal.Reset(os.Interrupt)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	notes := newLoadNotes(e.Stderr)
	s := &chat.Session{
		Router: router, Request: req, System: c.System, Out: out, Plain: os.Getenv("NO_COLOR") != "",
		Reader: &chat.Editor{In: in, Out: out, History: history},
		Width: func() int {
			width, _, err := term.GetSize(out.Fd())
			if err != nil {
				return 0
			}
			return width
		},
		Answering: func(ctx context.Context) (context.Context, func()) { return untilInterrupted(ctx, interrupts) },
		Loading: func(m *routerv1.ModelLoading) {
			if m == nil {
				notes.end()
				return
			}
			notes.show(m, time.Now())
		},
	}
	if c.Router != "" { // the mesh of this process does not come back
		s.Patience = chatPatience
		if err := reachable(e.Ctx, router); err != nil {
			return err
		}
	}
	return s.Run(e.Ctx)
}

// reachable returns an error if the address of a router is wrong or it does not know the key, so that a chat does not
// wait for it. What else a router refuses is told when the user asks.
func reachable(ctx context.Context, router routerv1.RouterServiceClient) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := router.ListModels(ctx, &routerv1.ListModelsRequest{})
	switch err = rpc.FromStatus(err); fault.CodeOf(err) {
	case fault.Unavailable, fault.Unauthenticated, fault.DeadlineExceeded:
		return err
	}
	return nil
}

// untilInterrupted returns a context that an interrupt ends, and a function to call when its work is done.
func untilInterrupted(ctx context.Context, interrupts <-chan os.Signal) (context.Context, func()) {
	select {
	case <-interrupts: // from before
	default:
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-interrupts:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel()
		<-ended
	}
}

// historyPath returns the file of earlier questions, or "" for none.
func (c *chatCmd) historyPath() string {
	switch c.History {
	case "none":
		return ""
	case "":
		dir, err := os.UserCacheDir()
		if err != nil {
			return ""
		}
		return filepath.Join(dir, "lamina", "chat-history")
	}
	return c.History
}

// lines reads turns from standard input, one a line, and answers each.
func (c *chatCmd) lines(e *verb.Env, router routerv1.RouterServiceClient, req *routerv1.ChatRequest) error {
	if c.System != "" {
		req.Messages = append(req.Messages, &tokenizerv1.Message{Role: "system", Content: c.System})
	}
	lines, asks := newLines(e.Stdin), terminalOf(e.Stdin) != nil
	for {
		if asks {
			fmt.Fprint(e.Stderr, "> ")
		}
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if strings.TrimSpace(line) == "" {
			continue
		}
		req.Messages = append(req.Messages, &tokenizerv1.Message{Role: "user", Content: line})
		stream, err := router.Chat(e.Ctx, req)
		if err != nil {
			return rpc.FromStatus(err)
		}
		answer, err := collect(func() (event, error) { return stream.Recv() }, e.Stdout, newLoadNotes(e.Stderr))
		if err != nil {
			return err
		}
		fmt.Fprintln(e.Stdout)
		answer.notify(e)
		req.Messages = append(req.Messages, &tokenizerv1.Message{Role: "assistant", Content: answer.Text})
	}
}
