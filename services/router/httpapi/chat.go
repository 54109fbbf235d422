package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// Parsing says how the text of a chat is parsed.
type Parsing struct {
	Tools     string // OpenAI tool definitions as JSON; empty for none
	Reasoning bool   // reasoning is separated from content
	Single    bool   // at most one call is returned
	// Loading is told, before the chat starts, how far the loading of its model is. For nil, whose client is told
	// nothing, the wait is bounded by a SilentWait.
	Loading func(*routerv1.ModelLoading) error
	// Token gets each token before what was made of its text; nil gets none.
	Token func(*routerv1.TokenEvent)
	// CallID returns the id of a call; nil uses CallID of this package.
	CallID func(request string, choice, index int) string
}

// Answer parses the text of one choice. It adds up what Push and End return.
type Answer struct {
	parser    *toolcall.Parser
	single    bool
	content   strings.Builder
	reasoning strings.Builder
	Calls     []toolcall.Call
}

// NewAnswer returns a parser of the choice with the given number, which has started with s.
func (g Parsing) NewAnswer(choice int, s *routerv1.Started) *Answer {
	format := toolcall.Format{Calls: s.GetFormat().GetCalls()}
	if g.Reasoning {
		format.Reasoning = s.GetFormat().GetReasoning()
	}
	id := g.CallID
	if id == nil {
		id = CallID
	}
	return &Answer{single: g.Single, parser: toolcall.New(format, toolcall.Options{
		Tools: []byte(g.Tools), Prompt: s.GetPromptEnd(),
		ID: func(index int) string { return id(s.GetRequestId(), choice, index) },
	})}
}

// CallID returns a call's id: nine letters and digits, which every chat template accepts.
func CallID(request string, choice, index int) string {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(request + "/" + strconv.Itoa(choice) + "/" + strconv.Itoa(index)))
	out := make([]byte, 9)
	for i := range out {
		out[i] = letters[int(sum[i])%len(letters)]
	}
	return string(out)
}

// Content returns the text of the answer so far.
func (a *Answer) Content() string { return a.content.String() }

// Reasoning returns the reasoning so far.
func (a *Answer) Reasoning() string { return a.reasoning.String() }

// Push parses more text.
func (a *Answer) Push(text string) toolcall.Delta { return a.keep(a.parser.Push(text)) }

// End parses the last text of the choice.
func (a *Answer) End(f *routerv1.Finished) toolcall.Delta {
	d := a.Push(f.GetText())
	last := a.keep(a.parser.Flush(Truncated(f)))
	d.Content += last.Content
	d.Reasoning += last.Reasoning
	for _, c := range last.Calls {
		if n := len(d.Calls); n > 0 && d.Calls[n-1].Index == c.Index {
			d.Calls[n-1].Arguments += c.Arguments
			continue
		}
		d.Calls = append(d.Calls, c)
	}
	return d
}

// keep adds a delta to the complete answer and drops excess calls.
func (a *Answer) keep(d toolcall.Delta) toolcall.Delta {
	calls := d.Calls[:0:0]
	for _, c := range d.Calls {
		if a.single && c.Index > 0 {
			continue
		}
		calls = append(calls, c)
		if c.Index == len(a.Calls) {
			a.Calls = append(a.Calls, toolcall.Call{ID: c.ID, Name: c.Name})
		}
		a.Calls[c.Index].Arguments += c.Arguments
	}
	d.Calls = calls
	a.content.WriteString(d.Content)
	a.reasoning.WriteString(d.Reasoning)
	return d
}

// Truncated reports whether an answer was ended by its limit of tokens.
func Truncated(f *routerv1.Finished) bool {
	return f.GetFinishReason() == samplerv1.FinishReason_FINISH_REASON_LENGTH
}

// Chatter runs chats. It calls send from one goroutine, stops when send fails or ctx ends, and returns nil only
// after a finished event. Its errors are faults.
type Chatter interface {
	Chat(ctx context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error
}

// Outcome is a chat that has ended.
type Outcome struct {
	Started  *routerv1.Started
	Finished *routerv1.Finished
	Answer   *Answer
}

// Run runs a chat and parses its text. start, if not nil, is called when the chat has started; push gets what
// each token added, also if that is nothing, and at the end what was held back.
func Run(
	ctx context.Context, b Chatter, r *routerv1.ChatRequest, g Parsing,
	start func(*routerv1.Started) error, push func(toolcall.Delta) error,
) (*Outcome, error) {
	out := &Outcome{}
	loading := g.Loading
	if loading == nil {
		loading = (&SilentWait{}).Loading
	}
	err := b.Chat(ctx, r, func(e *routerv1.ChatResponse) error {
		switch {
		case e.GetStarted() != nil:
			out.Started = e.GetStarted()
			out.Answer = g.NewAnswer(0, out.Started)
			if start != nil {
				return start(out.Started)
			}
			return nil
		case e.GetLoading() != nil:
			return loading(e.GetLoading())
		case out.Answer == nil:
			return fault.New(fault.Internal, "run chat: its first event is not started")
		case e.GetToken() != nil:
			if g.Token != nil {
				g.Token(e.GetToken())
			}
			return push(out.Answer.Push(e.GetToken().GetText()))
		}
		out.Finished = e.GetFinished()
		return push(out.Answer.End(out.Finished))
	})
	if err == nil && out.Finished == nil {
		err = fault.New(fault.Internal, "run chat: it ended without a finish reason")
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Turn is one message of a chat, whatever API it came from.
type Turn struct {
	Role      string
	Content   string
	Reasoning string
	Calls     []toolcall.Call
	CallID    string // of the call that a message of role tool answers
	Name      string // of the tool that a message of role tool is from
}

// Message returns the turn for the chat template. Reasoning has every field name that templates use, unless the
// turn has both text and calls, for which some templates refuse reasoning.
func (t Turn) Message() (*tokenizerv1.Message, error) {
	out := &tokenizerv1.Message{Role: t.Role, Content: t.Content}
	if t.Reasoning == "" && len(t.Calls) == 0 && t.CallID == "" && t.Name == "" {
		return out, nil
	}
	fields := map[string]any{"role": t.Role, "content": t.Content}
	if len(t.Calls) > 0 {
		type function struct {
			Name      string `json:"name"`
			Arguments string `json:"arguments"`
		}
		type call struct {
			ID       string   `json:"id"`
			Type     string   `json:"type"`
			Function function `json:"function"`
		}
		calls := make([]call, len(t.Calls))
		for i, c := range t.Calls {
			calls[i] = call{c.ID, "function", function{c.Name, c.Arguments}}
		}
		fields["tool_calls"] = calls
		if t.Content == "" {
			fields["content"] = nil // templates test whether content is none
		}
	}
	if t.Reasoning != "" {
		fields["reasoning_content"] = t.Reasoning
		if len(t.Calls) == 0 || t.Content == "" {
			fields["reasoning"], fields["thinking"] = t.Reasoning, t.Reasoning
		}
	}
	if t.CallID != "" {
		fields["tool_call_id"] = t.CallID
	}
	if t.Name != "" {
		fields["name"] = t.Name
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return nil, fault.Field("messages", "%v", err)
	}
	out.Json = string(text)
	return out, nil
}

// Tool is a tool that a request offers.
type Tool struct {
	Name        string
	Description string
	Parameters  json.RawMessage // a JSON Schema; nil for none
	Strict      bool
}

// ToolsJSON returns tools as OpenAI's definitions; empty for none.
func ToolsJSON(tools []Tool) (string, error) {
	if len(tools) == 0 {
		return "", nil
	}
	type function struct {
		Name        string          `json:"name"`
		Description string          `json:"description,omitempty"`
		Parameters  json.RawMessage `json:"parameters,omitempty"`
		Strict      bool            `json:"strict,omitempty"`
	}
	type tool struct {
		Type     string   `json:"type"`
		Function function `json:"function"`
	}
	out := make([]tool, len(tools))
	for i, t := range tools {
		out[i] = tool{"function", function(t)}
	}
	text, err := json.Marshal(out)
	if err != nil {
		return "", fault.Field("tools", "%v", err)
	}
	return string(text), nil
}
