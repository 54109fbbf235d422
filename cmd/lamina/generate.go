package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// samplingFlags are the sampling parameters.
type samplingFlags struct {
	Temp              float32 `help:"Temperature; 0 means greedy." default:"0"`
	TopK              uint32  `help:"Keep the k most likely tokens; 0 keeps all."`
	TopP              float32 `help:"Keep the smallest set of the most likely tokens whose probabilities add up to p." default:"1"`
	MinP              float32 `help:"Drop tokens whose probability is below this fraction of the highest one."`
	RepetitionPenalty float32 `help:"Penalty on tokens that have occurred before; 1 means none." default:"1"`
	Seed              *uint64 `help:"Seed of the random numbers. Default: a random one."`
	Schema            string  `help:"File with a JSON Schema that the text must match." xor:"grammar"`
	GBNF              string  `name:"gbnf" help:"File with a GBNF grammar that the text must match." xor:"grammar"`
	Regex             string  `help:"Regular expression that the text must match." xor:"grammar"`
	Tags              string  `help:"File with structural tags, as JSON, that the text must match." xor:"grammar"`
}

func (f *samplingFlags) sampling(e *verb.Env) (*routerv1.Sampling, error) {
	grammar, err := f.grammar(e)
	return &routerv1.Sampling{
		Temperature: &f.Temp, TopK: &f.TopK, TopP: &f.TopP, MinP: &f.MinP,
		RepetitionPenalty: &f.RepetitionPenalty, Seed: f.Seed, Grammar: grammar,
	}, err
}

// grammar returns the grammar that the text must match, or nil.
func (f *samplingFlags) grammar(e *verb.Env) (*samplerv1.Grammar, error) {
	kind, path := samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA, f.Schema
	switch {
	case f.Regex != "":
		return &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_REGEX, Source: f.Regex}, nil
	case f.GBNF != "":
		kind, path = samplerv1.GrammarKind_GRAMMAR_KIND_GBNF, f.GBNF
	case f.Tags != "":
		kind, path = samplerv1.GrammarKind_GRAMMAR_KIND_TAGS, f.Tags
	case path == "":
		return nil, nil
	}
	source, err := readInput(e, path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "read grammar")
	}
	return &samplerv1.Grammar{Kind: kind, Source: string(source)}, nil
}

type generateCmd struct {
	meshFlags
	samplingFlags
	servingFlags
	toolFlags
	Prompt     *string  `short:"p" help:"Text to continue. It is plain text: control tokens are not recognised in it." xor:"prompt"`
	IDs        string   `name:"ids" help:"Token ids to continue, separated by commas." xor:"prompt"`
	Messages   string   `help:"File with a list of messages in OpenAI's format, for the chat template of the model; - means standard input." xor:"prompt"`
	MaxTokens  uint32   `short:"n" help:"Maximum number of tokens to generate; 0 means up to the context length." default:"128"`
	Stop       []string `help:"Stop string, which ends the generation; repeatable." sep:"none"`
	IgnoreEnd  bool     `help:"Do not stop at end-of-text ids."`
	Format     string   `help:"Output: text or json." enum:"text,json" default:"text"`
	ShowPrompt bool     `help:"Print the prompt before its continuation."`
}

// generated is what --format json prints.
type generated struct {
	Text         string   `json:"text"`
	TokenIDs     []uint32 `json:"token_ids"`
	PromptIDs    []uint32 `json:"prompt_ids"`
	FinishReason string   `json:"finish_reason"`
	Seed         uint64   `json:"seed"`
	Model        string   `json:"model"`
	Fingerprint  string   `json:"fingerprint"`
	Timings      timings  `json:"timings"`
	ToolCalls    []called `json:"tool_calls,omitempty"`
	// Context is what the context policy has dropped; nil without a policy.
	Context *contextUse `json:"context,omitempty"`

	started *routerv1.Started
}

type timings struct {
	QueueMS      float64 `json:"queue_ms"`
	PrefillMS    float64 `json:"prefill_ms"`
	DecodeMS     float64 `json:"decode_ms"`
	PrefillTPS   float64 `json:"prefill_tps"`
	DecodeTPS    float64 `json:"decode_tps"`
	PromptTokens uint32  `json:"prompt_tokens"`
	Tokens       uint32  `json:"tokens"`
}

// event is a message of either stream of the router, Generate or Chat.
type event interface {
	GetStarted() *routerv1.Started
	GetToken() *routerv1.TokenEvent
	GetFinished() *routerv1.Finished
	GetLoading() *routerv1.ModelLoading
}

// Run generates with the router of --router, or with a mesh in this process.
func (c *generateCmd) Run(e *verb.Env) error {
	router, done, err := c.dial(e)
	if err != nil {
		return err
	}
	recv, err := c.ask(e, router)
	if err != nil {
		return errors.Join(rpc.FromStatus(err), done())
	}
	out := e.Stdout
	if c.Format == "json" {
		out = io.Discard
	}
	if c.ShowPrompt && c.Prompt != nil {
		fmt.Fprint(out, *c.Prompt)
	}
	result, err := collect(recv, out, newLoadNotes(e.Stderr))
	if err = errors.Join(err, done()); err != nil {
		return err
	}
	if c.Format == "json" {
		result.ToolCalls = c.calls(result.started, result.Text, result.FinishReason == "length")
		return json.NewEncoder(e.Stdout).Encode(result)
	}
	fmt.Fprintln(e.Stdout)
	result.notify(e)
	return nil
}

// notify tells the user if the model did not see everything.
func (g *generated) notify(e *verb.Env) {
	if text := g.Context.notice(); text != "" {
		fmt.Fprintln(e.Stderr, text)
	}
}

// ask sends the request that the flags describe and returns a function that receives from its
// stream.
func (c *generateCmd) ask(e *verb.Env, router routerv1.RouterServiceClient) (func() (event, error), error) {
	sampling, err := c.sampling(e)
	if err != nil {
		return nil, err
	}
	if c.Messages != "" {
		messages, err := readMessages(e, c.Messages)
		if err != nil {
			return nil, err
		}
		req := &routerv1.ChatRequest{
			Adapter:  c.adapter(),
			Messages: messages, MaxTokens: c.MaxTokens, Sampling: sampling, Stop: c.Stop, ContextPolicy: c.policy(),
			Priority: c.Priority, WaitForCapacity: c.WaitForCapacity,
		}
		if err := c.offer(e, req); err != nil {
			return nil, err
		}
		stream, err := router.Chat(e.Ctx, req)
		return func() (event, error) { return stream.Recv() }, err
	}
	if c.Tools != "" {
		return nil, fault.Field("tools", "use tools with a chat: give --messages FILE")
	}
	req := &routerv1.GenerateRequest{
		Adapter:   c.adapter(),
		MaxTokens: c.MaxTokens, Sampling: sampling, Stop: c.Stop, IgnoreEnd: c.IgnoreEnd, ContextPolicy: c.policy(),
		Priority: c.Priority, WaitForCapacity: c.WaitForCapacity,
	}
	switch {
	case c.IDs != "":
		ids, err := parseIDs(c.IDs)
		if err != nil {
			return nil, err
		}
		req.Prompt = &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: ids}}
	case c.Prompt != nil:
		req.Prompt = &routerv1.GenerateRequest_Text{Text: *c.Prompt}
	default:
		return nil, fault.Field("prompt", "give one of -p TEXT, --ids 1,2,3 or --messages FILE")
	}
	stream, err := router.Generate(e.Ctx, req)
	return func() (event, error) { return stream.Recv() }, err
}

// collect reads a stream to its end and writes the text as it arrives. notes shows the loading of the model.
func collect(recv func() (event, error), out io.Writer, notes *loadNotes) (*generated, error) {
	defer notes.end()
	g := &generated{TokenIDs: []uint32{}}
	finished := false
	for {
		ev, err := recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return g, rpc.FromStatus(err)
		}
		if l := ev.GetLoading(); l != nil {
			notes.show(l, time.Now())
		}
		if s := ev.GetStarted(); s != nil {
			notes.end()
			g.started = s
			g.PromptIDs, g.Seed, g.Model, g.Fingerprint = s.GetPromptIds(), s.GetSeed(), s.GetModel(),
				s.GetFingerprint()
		}
		if t := ev.GetToken(); t != nil {
			g.Text += t.GetText()
			g.TokenIDs = append(g.TokenIDs, t.GetId())
			fmt.Fprint(out, t.GetText())
		}
		if f := ev.GetFinished(); f != nil {
			finished = true
			g.Text += f.GetText()
			fmt.Fprint(out, f.GetText())
			g.finish(f)
		}
	}
	if !finished {
		return g, fault.New(fault.DataLoss, "read the answer: the stream ended without a finish reason")
	}
	return g, nil
}

func (g *generated) finish(f *routerv1.Finished) {
	reasons := map[samplerv1.FinishReason]string{
		samplerv1.FinishReason_FINISH_REASON_STOP:   "stop",
		samplerv1.FinishReason_FINISH_REASON_LENGTH: "length",
	}
	g.FinishReason, g.Context = reasons[f.GetFinishReason()], newContextUse(f.GetContext())
	u, t := f.GetUsage(), f.GetTimings()
	g.Timings = timings{
		QueueMS: float64(t.GetQueueUs()) / 1e3, PrefillMS: float64(t.GetPrefillUs()) / 1e3,
		DecodeMS:     float64(t.GetDecodeUs()) / 1e3,
		PromptTokens: u.GetPromptTokens(), Tokens: u.GetCompletionTokens(),
	}
	if t.GetPrefillUs() > 0 {
		g.Timings.PrefillTPS = float64(u.GetPromptTokens()) / float64(t.GetPrefillUs()) * 1e6
	}
	if t.GetDecodeUs() > 0 && u.GetCompletionTokens() > 1 {
		g.Timings.DecodeTPS = float64(u.GetCompletionTokens()-1) / float64(t.GetDecodeUs()) * 1e6
	}
}

// parseIDs parses token ids that are separated by commas.
func parseIDs(list string) ([]uint32, error) {
	var ids []uint32
	for _, text := range strings.Split(list, ",") {
		id, err := strconv.ParseUint(strings.TrimSpace(text), 10, 31)
		if err != nil {
			return nil, fault.Field("ids", "parse %q: want token ids separated by commas", text)
		}
		ids = append(ids, uint32(id))
	}
	return ids, nil
}

// readMessages reads a list of messages in OpenAI's format from a file.
func readMessages(e *verb.Env, path string) ([]*tokenizerv1.Message, error) {
	text, err := readInput(e, path)
	if err != nil {
		return nil, err
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fault.Field("messages", "parse %s: want a JSON list of messages: %v", path, err)
	}
	var messages []*tokenizerv1.Message
	for i, r := range raw {
		var m struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		}
		if err := json.Unmarshal(r, &m); err != nil || m.Role == "" {
			return nil, fault.Field("messages", "parse %s: message %d: want an object with a role", path, i)
		}
		msg := &tokenizerv1.Message{Role: m.Role, Json: string(r)}
		var content string
		if json.Unmarshal(m.Content, &content) == nil {
			msg.Content = content
		}
		var keys map[string]json.RawMessage
		if json.Unmarshal(r, &keys) == nil && len(keys) == 2 && json.Unmarshal(m.Content, &content) == nil {
			msg.Json = "" // role and content are complete
		}
		messages = append(messages, msg)
	}
	return messages, nil
}

// readInput reads a file, or standard input if path is "-".
func readInput(e *verb.Env, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(e.Stdin)
	}
	return os.ReadFile(path)
}
