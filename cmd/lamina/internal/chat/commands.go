package chat

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

const lengthReached = samplerv1.FinishReason_FINISH_REASON_LENGTH

// maxSaved bounds the files that /load reads, in bytes.
const maxSaved = 64 << 20

// command is what a text that begins with a slash may say.
type command struct {
	name, args, help string
	run              func(s *Session, ctx context.Context, args string) (leave bool, err error)
}

func commands() []command {
	type runs = func(s *Session, ctx context.Context, args string) (leave bool, err error)
	stay := func(f func(s *Session, ctx context.Context, args string) error) runs {
		return func(s *Session, ctx context.Context, args string) (bool, error) { return false, f(s, ctx, args) }
	}
	leave := func(*Session, context.Context, string) (bool, error) { return true, nil }
	return []command{
		{"/help", "", "show this", stay((*Session).help)},
		{"/new", "", "begin another conversation", stay((*Session).fresh)},
		{"/again", "", "have the last question answered again, with another seed", stay((*Session).again)},
		{"/undo", "", "take the last question and its answer back", stay((*Session).undo)},
		{"/system", "[TEXT]", "set the system message, or remove it", stay((*Session).system)},
		{"/model", "[NAME]", "list the models and adapters of the router, or choose one", stay((*Session).model)},
		{"/set", "[NAME VALUE]", "show the parameters, or set one; without a value, to the default", stay((*Session).set)},
		{"/save", "FILE", "write the conversation, as lamina generate --messages reads it", stay((*Session).save)},
		{"/load", "FILE", "go on with a conversation", stay((*Session).load)},
		{"/exit", "", "end the chat, as Ctrl-D does", leave},
	}
}

// Commands returns the names of the commands.
func Commands() []string {
	var out []string
	for _, c := range commands() {
		out = append(out, c.name)
	}
	return out
}

// command carries a command out.
func (s *Session) command(ctx context.Context, text string) (leave bool, err error) {
	name, args, _ := strings.Cut(text, " ")
	for _, c := range commands() {
		if c.name == name {
			return c.run(s, ctx, strings.TrimSpace(args))
		}
	}
	return false, fault.New(fault.Invalid,
		"%q is no command: /help lists them. A space before a slash makes it text", name)
}

func (s *Session) help(context.Context, string) error {
	text := "Enter sends, Alt-Enter or Ctrl-J breaks the line, the arrows up and down bring earlier questions back, " +
		"Ctrl-C stops an answer or discards a question, Ctrl-D ends the chat.\n"
	for _, c := range commands() {
		text += fmt.Sprintf("\n%-18s %s", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	s.note("%s", text)
	return nil
}

func (s *Session) fresh(context.Context, string) error {
	s.messages = nil
	s.note("The conversation is empty.")
	return nil
}

// lastQuestion returns the place of the last message of the user.
func (s *Session) lastQuestion() (int, error) {
	for i := len(s.messages) - 1; i >= 0; i-- {
		if s.messages[i].GetRole() == "user" {
			return i, nil
		}
	}
	return 0, fault.New(fault.FailedPrecondition, "there is no question yet")
}

func (s *Session) again(ctx context.Context, _ string) error {
	at, err := s.lastQuestion()
	if err != nil {
		return err
	}
	s.messages = s.messages[:at+1]
	kept := s.Request
	defer func() { s.Request = kept }()
	s.Request = proto.CloneOf(kept)
	if s.Request.GetSampling() != nil {
		s.Request.Sampling.Seed = nil
	}
	return s.reply(ctx)
}

func (s *Session) undo(context.Context, string) error {
	at, err := s.lastQuestion()
	if err == nil {
		s.messages = s.messages[:at]
		s.note("The conversation has %s now.", plural.Of(len(s.messages), "message"))
	}
	return err
}

func (s *Session) system(_ context.Context, args string) error {
	if s.System = args; args == "" {
		s.note("There is no system message.")
	} else {
		s.note("The system message holds from the next question on.")
	}
	return nil
}

func (s *Session) model(ctx context.Context, args string) error {
	if args != "" {
		s.Request.Model, s.Request.Adapter = args, ""
		s.note("The next question goes to %s.", args)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, longestList)
	defer cancel()
	resp, err := s.Router.ListModels(ctx, &routerv1.ListModelsRequest{})
	if err != nil {
		return rpc.FromStatus(err)
	}
	var names []string
	for _, m := range resp.GetModels() {
		names = append(names, m.GetName())
		for _, a := range m.GetAdapters() {
			names = append(names, m.GetName()+":"+a.GetName())
		}
	}
	s.note("%s", strings.Join(names, "\n"))
	return nil
}

// parameter is what /set sets.
type parameter struct {
	name      string
	low, high float64
	whole     bool
	get       func(r *routerv1.ChatRequest) (float64, bool)
	set       func(r *routerv1.ChatRequest, v float64)
	unset     func(r *routerv1.ChatRequest)
}

func parameters() []parameter {
	number := func(name string, low, high float64, field func(p *routerv1.Sampling) **float32) parameter {
		return parameter{
			name, low, high, false,
			func(r *routerv1.ChatRequest) (float64, bool) {
				v := *field(r.GetSampling())
				if v == nil {
					return 0, false
				}
				return float64(*v), true
			},
			func(r *routerv1.ChatRequest, v float64) { *field(r.GetSampling()) = proto.Float32(float32(v)) },
			func(r *routerv1.ChatRequest) { *field(r.GetSampling()) = nil },
		}
	}
	return []parameter{
		number("temp", 0, 100, func(p *routerv1.Sampling) **float32 { return &p.Temperature }),
		number("top-p", 0, 1, func(p *routerv1.Sampling) **float32 { return &p.TopP }),
		number("min-p", 0, 1, func(p *routerv1.Sampling) **float32 { return &p.MinP }),
		number("repetition-penalty", 0.01, 100, func(p *routerv1.Sampling) **float32 { return &p.RepetitionPenalty }),
		{
			"top-k", 0, math.MaxInt32, true,
			func(r *routerv1.ChatRequest) (float64, bool) {
				return float64(r.GetSampling().GetTopK()), r.GetSampling().TopK != nil
			},
			func(r *routerv1.ChatRequest, v float64) { r.Sampling.TopK = proto.Uint32(uint32(v)) },
			func(r *routerv1.ChatRequest) { r.Sampling.TopK = nil },
		},
		{
			"seed", 0, 1 << 53, true,
			func(r *routerv1.ChatRequest) (float64, bool) {
				return float64(r.GetSampling().GetSeed()), r.GetSampling().Seed != nil
			},
			func(r *routerv1.ChatRequest, v float64) { r.Sampling.Seed = proto.Uint64(uint64(v)) },
			func(r *routerv1.ChatRequest) { r.Sampling.Seed = nil },
		},
		{
			"max-tokens", 0, math.MaxInt32, true,
			func(r *routerv1.ChatRequest) (float64, bool) { return float64(r.GetMaxTokens()), true },
			func(r *routerv1.ChatRequest, v float64) { r.MaxTokens = uint32(v) },
			func(r *routerv1.ChatRequest) { r.MaxTokens = 0 },
		},
	}
}

func (s *Session) set(_ context.Context, args string) error {
	if s.Request.GetSampling() == nil {
		s.Request.Sampling = &routerv1.Sampling{}
	}
	name, value, _ := strings.Cut(args, " ")
	var known []string
	for _, p := range parameters() {
		known = append(known, p.name)
		if name != "" && p.name != name {
			continue
		}
		if name != "" {
			if value = strings.TrimSpace(value); value == "" {
				p.unset(s.Request)
			} else {
				v, err := strconv.ParseFloat(value, 64)
				if err != nil || !(v >= p.low && v <= p.high) || p.whole && v != math.Trunc(v) {
					return fault.Field(p.name, "want a number from %v to %v, got %q", p.low, p.high, value)
				}
				p.set(s.Request, v)
			}
		}
		if v, ok := p.get(s.Request); ok {
			s.note("%-20s %v", p.name, strconv.FormatFloat(v, 'g', 7, 64))
		} else {
			s.note("%-20s default", p.name)
		}
		if name != "" {
			return nil
		}
	}
	if name != "" {
		return fault.Field(name, "want one of %s", strings.Join(known, ", "))
	}
	return nil
}

// saved is a message in OpenAI's format.
type saved struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func (s *Session) save(_ context.Context, path string) error {
	if path == "" {
		return fault.Field("file", "want the name of a file")
	}
	list := []saved{}
	if s.System != "" {
		list = append(list, saved{"system", s.System})
	}
	for _, m := range s.messages {
		list = append(list, saved{m.GetRole(), m.GetContent()})
	}
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	// A conversation may be private, and a file that exists is not overwritten by a slip.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, err, "save the conversation")
	}
	_, err = f.Write(append(text, '\n'))
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, err, "save the conversation")
	}
	s.note("Saved %s in %s.", plural.Of(len(list), "message"), path)
	return nil
}

func (s *Session) load(_ context.Context, path string) error {
	if path == "" {
		return fault.Field("file", "want the name of a file")
	}
	if info, err := os.Stat(path); err == nil && info.Size() > maxSaved {
		return fault.Field("file", "%s has %d bytes, more than %d", path, info.Size(), maxSaved)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "load a conversation")
	}
	system, messages, err := parse(text)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "load %s", path)
	}
	s.System, s.messages = system, messages
	s.note("Loaded %s.", plural.Of(len(messages), "message"))
	return nil
}

// parse reads a conversation: a list of messages in OpenAI's format whose content is text.
func parse(text []byte) (system string, messages []*tokenizerv1.Message, err error) {
	var list []saved
	if err := json.Unmarshal(text, &list); err != nil {
		return "", nil, fault.Field("messages", "want a JSON list of messages with a role and a text: %v", err)
	}
	for i, m := range list {
		switch {
		case i == 0 && m.Role == "system":
			system = m.Content
		case m.Role == "user", m.Role == "assistant", m.Role == "system":
			messages = append(messages, &tokenizerv1.Message{Role: m.Role, Content: m.Content})
		default:
			return "", nil, fault.Field("messages", "message %d: want the role user, assistant or system, got %.40q", i,
				m.Role)
		}
	}
	return system, messages, nil
}
