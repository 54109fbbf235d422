package chat_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/charmbracelet/x/ansi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/chat"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// router answers with words, which depend on the seed alone. Its failures are taken one after the other.
type router struct {
	routerv1.RouterServiceClient
	asked    []*routerv1.ChatRequest
	failures []failure
	answer   func(seed uint64) []string
}

// failure ends a request after some words.
type failure struct {
	after int
	err   error
	hang  bool // until the request is canceled
}

type stream struct {
	grpc.ClientStream
	ctx    context.Context
	events []*routerv1.ChatResponse
	err    error
	hang   bool
}

func (s *stream) Recv() (*routerv1.ChatResponse, error) {
	if len(s.events) == 0 {
		if s.hang {
			<-s.ctx.Done()
			return nil, status.FromContextError(s.ctx.Err()).Err()
		}
		return nil, s.err
	}
	e := s.events[0]
	s.events = s.events[1:]
	return e, nil
}

func (r *router) Chat(
	ctx context.Context, q *routerv1.ChatRequest, _ ...grpc.CallOption,
) (grpc.ServerStreamingClient[routerv1.ChatResponse], error) {
	r.asked = append(r.asked, proto.CloneOf(q))
	seed := uint64(100 + len(r.asked))
	if q.GetSampling().Seed != nil {
		seed = q.GetSampling().GetSeed()
	}
	words := r.answer(seed)
	s := &stream{ctx: ctx, err: io.EOF}
	s.events = append(s.events, &routerv1.ChatResponse{
		Event: &routerv1.ChatResponse_Started{Started: &routerv1.Started{Seed: seed}}})
	if len(r.failures) > 0 {
		f := r.failures[0]
		r.failures = r.failures[1:]
		s.err, s.hang = f.err, f.hang
		words = words[:f.after]
	}
	for _, w := range words {
		s.events = append(s.events, &routerv1.ChatResponse{
			Event: &routerv1.ChatResponse_Token{Token: &routerv1.TokenEvent{Text: w}}})
	}
	if s.err == io.EOF && !s.hang {
		s.events = append(s.events, &routerv1.ChatResponse{
			Event: &routerv1.ChatResponse_Finished{Finished: &routerv1.Finished{
				FinishReason: samplerv1.FinishReason_FINISH_REASON_STOP,
				Usage:        &routerv1.Usage{CompletionTokens: uint32(len(words))}}}})
	}
	return s, nil
}

func (r *router) ListModels(
	context.Context, *routerv1.ListModelsRequest, ...grpc.CallOption,
) (*routerv1.ListModelsResponse, error) {
	return &routerv1.ListModelsResponse{
		Models: []*routerv1.Model{{Name: "base", Adapters: []*routerv1.Adapter{{Name: "mine"}}}}}, nil
}

// script is what a user writes.
type script struct{ texts []any }

func (s *script) Read(context.Context) (string, error) {
	if len(s.texts) == 0 {
		return "", io.EOF
	}
	next := s.texts[0]
	s.texts = s.texts[1:]
	if err, ok := next.(error); ok {
		return "", err
	}
	return next.(string), nil
}

// talk runs a session with a router and what a user writes, and returns what is on the terminal.
func talk(t *testing.T, r *router, answering func(context.Context) (context.Context, func()), texts ...any) string {
	t.Helper()
	if r.answer == nil {
		r.answer = func(seed uint64) []string { return []string{"seed ", fmt.Sprint(seed), " and ", "more"} }
	}
	if answering == nil {
		answering = func(ctx context.Context) (context.Context, func()) { return ctx, func() {} }
	}
	var out strings.Builder
	s := &chat.Session{Router: r, Request: &routerv1.ChatRequest{}, Reader: &script{texts}, Out: &out, Plain: true,
		Width: func() int { return 60 }, Answering: answering, Patience: time.Minute}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// roles returns the roles and texts of a request's messages.
func roles(q *routerv1.ChatRequest) string {
	var out []string
	for _, m := range q.GetMessages() {
		out = append(out, m.GetRole()+":"+m.GetContent())
	}
	return strings.Join(out, "|")
}

func has(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is missing in\n%s", p, text)
		}
	}
}

func TestSession_CommandsAndConversation(t *testing.T) {
	r, file := &router{}, filepath.Join(t.TempDir(), "chat.json")
	out := talk(t, r, nil, "/system Be terse.", "/set seed 7", "/set temp 0.5", "one\n two", "/again", "/undo", "three",
		"/save "+file, "/save "+file, "/new", "/system", "four", "/load "+file, "five", "/model", "/model base:mine",
		"/set", "/set temp", "/set top-p 2", "/set colour 1", "/nonsense", "/help", chat.ErrInterrupt, "  ", "six",
		"/exit", "never")
	var got []string
	for _, q := range r.asked {
		got = append(got, roles(q))
	}
	want := []string{
		"system:Be terse.|user:one\n two",
		"system:Be terse.|user:one\n two",
		"system:Be terse.|user:three",
		"user:four",
		"system:Be terse.|user:three|assistant:seed 7 and more|user:five",
		"system:Be terse.|user:three|assistant:seed 7 and more|user:five|assistant:seed 7 and more|user:six",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("asked\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s := r.asked[1].GetSampling(); s.Seed != nil || s.GetTemperature() != 0.5 {
		t.Errorf("/again keeps the seed or loses the temperature: %v", s)
	}
	last := r.asked[len(r.asked)-1]
	if last.GetModel() != "base:mine" || last.GetSampling().Temperature != nil || last.GetSampling().GetSeed() != 7 {
		t.Errorf("the last request is %v", last)
	}
	has(t, out, "seed 102 and more", "The conversation has 0 messages now.", "file exists", "base\nbase:mine",
		"seed                 7",
		"top-p: want a number", "colour: want one of temp", `"/nonsense" is no command`, "/set [NAME VALUE]",
		"Ctrl-D or /exit ends the chat", "4 tokens")
	if strings.Contains(out, "never") {
		t.Error("the chat goes on after /exit")
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the saved conversation: %v, %v", info, err)
	}
}

// TestSession_NotesBreakBetweenWords shows what is about the chat in terminals of several widths.
func TestSession_NotesBreakBetweenWords(t *testing.T) {
	wide := ""
	for _, width := range []int{0, 200, 80, 60, 40, 25} {
		for _, plain := range []bool{true, false} {
			var out strings.Builder
			s := &chat.Session{Router: &router{}, Request: &routerv1.ChatRequest{}, Out: &out, Plain: plain,
				Reader: &script{[]any{chat.ErrInterrupt, "/help", "/nonsense"}}, Width: func() int { return width }}
			if err := s.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			text := ansi.Strip(out.String())
			if wide == "" {
				wide = text
			}
			if strings.Join(strings.Fields(text), " ") != strings.Join(strings.Fields(wide), " ") {
				t.Errorf("in %d columns there are other words:\n%s", width, text)
			}
			for line := range strings.SplitSeq(text, "\n") {
				if width > 0 && ansi.StringWidth(line) > width {
					t.Errorf("in %d columns, the terminal breaks %q", width, line)
				}
			}
			second := strings.Repeat(" ", 19)
			if width == 40 && !strings.Contains(text, "/again             have the last\n"+second+"question answered") {
				t.Errorf("in %d columns, the commands are no table:\n%s", width, text)
			}
			if n := strings.Count(out.String(), "\x1b[0;2m"); plain && n > 0 || !plain && n < 10 {
				t.Errorf("in %d columns, %d pieces are dim", width, n)
			}
		}
	}
}

func TestSession_AnAnswerGoesOnWhenTheRouterHasRestarted(t *testing.T) {
	gone := status.Error(codes.Unavailable, "gone")
	synctest.Test(t, func(t *testing.T) {
		r := &router{failures: []failure{{after: 2, err: gone}, {err: gone}, {after: 1, err: gone}}}
		out := talk(t, r, nil, "hello", "again")
		has(t, out, "seed 101 and more\n", "broke off")
		if strings.Count(out, "seed 101") != 1 || len(r.asked) != 5 {
			t.Errorf("%d requests:\n%s", len(r.asked), out)
		}
		for _, q := range r.asked[1:4] {
			if q.GetSampling().GetSeed() != 101 {
				t.Errorf("asked again with the seed %d", q.GetSampling().GetSeed())
			}
		}
		if q := r.asked[4]; roles(q) != "user:hello|assistant:seed 101 and more|user:again" || q.GetSampling().Seed != nil {
			t.Errorf("the next question: %v", q)
		}
	})
	synctest.Test(t, func(t *testing.T) { // another version of the model
		seeds := 0
		r := &router{failures: []failure{{after: 3, err: gone}}}
		r.answer = func(uint64) []string {
			seeds++
			return []string{"the ", fmt.Sprintf("version %d", seeds), " speaks"}
		}
		has(t, talk(t, r, nil, "hello"), "The model has changed", "2 speaks")
	})
	synctest.Test(t, func(t *testing.T) { // it does not come back
		r := &router{}
		for range 1000 {
			r.failures = append(r.failures, failure{err: gone})
		}
		begun := time.Now()
		has(t, talk(t, r, nil, "hello"), "The router does not answer", "gone", "The arrow up brings the question back")
		if took := time.Since(begun); took < time.Minute || took > time.Minute+3*time.Second {
			t.Errorf("given up after %v", took)
		}
	})
}

func TestSession_AnInterruptStopsTheAnswerAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &router{failures: []failure{{after: 2, hang: true}}}
		answering := func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithTimeout(ctx, time.Second) // the user's Ctrl-C
			return ctx, cancel
		}
		out := talk(t, r, answering, "hello", "more")
		has(t, out, "seed 101\n(stopped)", "seed 102 and more")
		if got := roles(r.asked[1]); got != "user:hello|assistant:seed 101|user:more" {
			t.Errorf("the next request is %q", got)
		}
	})
}

func TestSession_AStopBeforeTheAnswerTakesTheQuestionBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &router{failures: []failure{{hang: true}}}
		out := talk(t, r, func(ctx context.Context) (context.Context, func()) {
			return context.WithTimeout(ctx, time.Second) // the user's Ctrl-C
		}, "hello", "more")
		has(t, out, "(stopped)", "seed 102 and more")
		if got := roles(r.asked[1]); got != "user:more" {
			t.Errorf("the next request is %q", got)
		}
	})
}

func TestSession_AFailureTakesTheQuestionBack(t *testing.T) {
	r := &router{failures: []failure{{err: status.Error(codes.OutOfRange, "too long\x1b[2J")}}}
	out := talk(t, r, nil, "long", "short")
	has(t, out, "too long[2J", "too long for the model: /new begins\nanother one")
	if got := roles(r.asked[1]); got != "user:short" {
		t.Errorf("the next request is %q", got)
	}
}

func TestHistory_OfSeveralChats(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina", "history")
	for chats := range 3 {
		h, err := chat.OpenHistory(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(h.Texts()); n != min(1000, chats*900) {
			t.Fatalf("chat %d finds %d texts", chats, n)
		}
		for i := range 900 {
			text := fmt.Sprintf("%d-%d\nsecond \"line\"", chats, i)
			if err := errors.Join(h.Add(text), h.Add(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || strings.Count(string(text), "\n") > 2000 {
		t.Errorf("%d lines, %v", strings.Count(string(text), "\n"), err)
	}
	if err := os.WriteFile(path, append([]byte("damaged\n{}\n"), text...), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := chat.OpenHistory(path)
	if err != nil || len(h.Texts()) != 1000 || h.Texts()[999] != "2-899\nsecond \"line\"" {
		t.Errorf("%d texts, %v", len(h.Texts()), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
