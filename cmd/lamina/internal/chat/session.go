package chat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// ErrInterrupt is what a Reader returns when the user has discarded what was written (Ctrl-C).
var ErrInterrupt = errors.New("interrupted")

// errStopped is the error of an answer that the user has stopped.
var errStopped = errors.New("stopped")

// Reader reads what the user writes. It returns io.EOF when there will be no more.
type Reader interface {
	Read(ctx context.Context) (string, error)
}

// Session is a conversation. Its fields are set before Run.
type Session struct {
	Router  routerv1.RouterServiceClient
	Request *routerv1.ChatRequest // what requests have besides their messages
	System  string                // message of the system; empty for none
	Reader  Reader
	Out     io.Writer
	Width   func() int // of lines, in columns; 0 does not wrap
	Plain   bool       // no styles
	// Answering returns a context for an answer, which ends when the user interrupts it, and a function to call when
	// the answer has ended.
	Answering func(ctx context.Context) (context.Context, func())
	// Patience is how long a router that does not answer is asked again.
	Patience time.Duration
	// Loading shows that a model is being loaded, and nil that it is there.
	Loading func(*routerv1.ModelLoading)

	messages []*tokenizerv1.Message
}

// Run converses until the user leaves or ctx ends.
func (s *Session) Run(ctx context.Context) error {
	s.note("Enter sends, Alt-Enter breaks the line, /help lists the commands, Ctrl-D ends the chat.")
	for {
		text, err := s.Reader.Read(ctx)
		switch {
		case errors.Is(err, ErrInterrupt):
			s.note("Ctrl-D or /exit ends the chat.")
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		text = strings.TrimRight(text, " \t\n")
		if strings.TrimSpace(text) == "" {
			continue
		}
		if strings.HasPrefix(text, "/") {
			leave, err := s.command(ctx, text)
			if leave {
				return nil
			}
			if err != nil {
				s.note("%v", err)
			}
			continue
		}
		s.messages = append(s.messages, &tokenizerv1.Message{Role: "user", Content: text})
		if err := s.reply(ctx); err != nil {
			return err
		}
	}
}

// reply has the last message of the user answered. The message is taken back if the request fails, which is reported,
// or is stopped before there is an answer; the chat goes on. The error is that of ctx.
func (s *Session) reply(ctx context.Context) error {
	text, err := s.answer(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, errStopped) && text != "" {
		err = nil // what was shown is the answer
	}
	if err != nil && text == "" {
		s.messages = s.messages[:len(s.messages)-1]
		if errors.Is(err, errStopped) {
			return nil
		}
		s.note("%v", err)
		switch fault.CodeOf(err) {
		case fault.OutOfRange:
			s.note("The conversation is too long for the model: /new begins another one.")
		case fault.Unavailable:
			s.note("The arrow up brings the question back.")
		}
		return nil
	}
	if err != nil {
		s.note("%v", err)
	}
	s.messages = append(s.messages, &tokenizerv1.Message{Role: "assistant", Content: text})
	return nil
}

// firstWait and longestWait are the times between two tries to reach a router.
const (
	firstWait   = 200 * time.Millisecond
	longestWait = 2 * time.Second
)

// longestList is how long the list of models may take.
const longestList = 10 * time.Second

// answer asks for an answer and shows it. It returns the text as far as it was shown, also with an error. An answer
// that breaks off is asked for again, with the same seed.
func (s *Session) answer(ctx context.Context) (string, error) {
	ctx, done := s.Answering(ctx)
	defer done()
	req := proto.CloneOf(s.Request)
	if s.System != "" {
		req.Messages = append(req.Messages, &tokenizerv1.Message{Role: "system", Content: s.System})
	}
	req.Messages = append(req.Messages, s.messages...)
	if req.GetSampling() == nil {
		req.Sampling = &routerv1.Sampling{}
	}
	a := &answer{Session: s, markdown: NewMarkdown(s.Out, s.Width(), s.Plain), heard: time.Now()}
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		before := len(a.text)
		err := a.read(ctx, req)
		if len(a.text) > before {
			a.heard, wait = time.Now(), firstWait
		}
		again := err != nil && ctx.Err() == nil && fault.Retryable(err) && time.Since(a.heard) < s.Patience
		if !again {
			if e := a.markdown.Close(); e != nil {
				return a.text, e
			}
			if err != nil && ctx.Err() != nil {
				s.note("(stopped)")
				err = errStopped
			} else if err == nil {
				a.report()
			}
			return a.text, err
		}
		if a.text == "" && wait > firstWait && !a.waits {
			a.waits = true
			s.note("The router does not answer: it is asked again for up to %.0f s. Ctrl-C gives up.",
				s.Patience.Seconds())
		}
		if !a.told && a.text != "" {
			a.told = true
			a.notices = append(a.notices, "The answer broke off and was asked for again.")
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// answer is an answer that is being read.
type answer struct {
	*Session
	markdown *Markdown
	text     string // that was shown
	seed     *uint64
	heard    time.Time // when the router last sent some of it
	told     bool      // that it was asked for again
	waits    bool      // the user knows that nothing has come yet
	notices  []string
	finished *routerv1.Finished
}

// read reads the answer from its beginning, and shows what was not shown before.
func (a *answer) read(ctx context.Context, req *routerv1.ChatRequest) error {
	if a.seed != nil {
		req.Sampling.Seed = a.seed
	}
	stream, err := a.Router.Chat(ctx, req)
	if err != nil {
		return rpc.FromStatus(err)
	}
	at := 0 // of the text
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if a.finished == nil {
				return fault.New(fault.Unavailable, "read the answer: the stream ended without a finish reason")
			}
			return nil
		}
		if err != nil {
			return rpc.FromStatus(err)
		}
		if a.Loading != nil && (ev.GetLoading() != nil || ev.GetStarted() != nil) {
			a.Loading(ev.GetLoading())
		}
		if st := ev.GetStarted(); st != nil {
			seed := st.GetSeed()
			a.seed = &seed
		}
		at = a.take(at, ev.GetToken().GetText())
		if f := ev.GetFinished(); f != nil {
			at = a.take(at, f.GetText())
			a.finished = f
		}
	}
}

// take takes a piece of the answer, which begins at a byte of it, and returns where the next one begins. What is shown
// already is compared. If it is not the same, because another version of the model answers, the whole answer is shown.
func (a *answer) take(at int, piece string) int {
	known := a.text[at:]
	if n := min(len(known), len(piece)); piece[:n] != known[:n] {
		a.notices = append(a.notices, "The model has changed, so that the answer begins again where it is another one.")
		a.markdown.Write("\n")
		a.text = a.text[:at]
		known = ""
	}
	if len(piece) > len(known) {
		a.markdown.Write(piece[len(known):])
		a.text += piece[len(known):]
	}
	return at + len(piece)
}

// report says what the answer took, and what the user should know.
func (a *answer) report() {
	u, t := a.finished.GetUsage(), a.finished.GetTimings()
	text := plural.Of(u.GetCompletionTokens(), "token")
	if us := t.GetDecodeUs(); us > 0 && u.GetCompletionTokens() > 1 {
		text += fmt.Sprintf(", %.0f tokens/s", float64(u.GetCompletionTokens()-1)/float64(us)*1e6)
	}
	if a.finished.GetFinishReason() == lengthReached {
		text += ", ended at the token limit"
	}
	a.note("%s", text)
	for _, n := range a.notices {
		a.note("%s", n)
	}
}

// note shows lines about the chat, which are no part of it. A line that is too long is broken between words, and goes
// on below its second column if it has one.
func (s *Session) note(format string, args ...any) {
	w := &wrapper{out: s.Out, width: s.Width(), plain: s.Plain}
	for line := range strings.SplitSeq(clean(fmt.Sprintf(format, args...)), "\n") {
		if first, second, ok := strings.Cut(line, "  "); ok && first != "" {
			w.indent = min(len(line)-len(strings.TrimLeft(second, " ")), w.width/2)
		}
		w.add(line, dim)
		w.newline()
	}
}
