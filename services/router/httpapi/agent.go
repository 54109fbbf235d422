package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/services/router/agent"
)

// parallelCalls is how many calls of one turn run at a time.
const parallelCalls = 4

// Ran is a call of a tool that the server has run. Its result has no more text than a model sees of it, and none of its
// sources.
type Ran struct {
	Tool   *agent.Tool
	Call   toolcall.Call
	Result toolloop.Result
}

// AgentHooks get what happens in a chat whose tools the server runs. Any of them may be nil.
type AgentHooks struct {
	Started func(*routerv1.Started) error // once, when the first turn has started
	Delta   func(toolcall.Delta) error    // what was added to the answer, without calls of the server's tools
	Ran     func(Ran) error               // in the order of the calls
	// Running is told again and again, while tools run, which ones. Clients and proxies take a stream that is silent
	// for long for a broken one.
	Running func(names []string) error
	// Joined puts a blank line between what two turns say, for APIs with one text for the whole answer.
	Joined bool
}

// AgentOutcome is a chat with tools of the server that has ended.
type AgentOutcome struct {
	Started            *routerv1.Started  // of the first turn
	Finished           *routerv1.Finished // of the last turn, with the usage of all turns
	Content, Reasoning string             // of all turns
	Turns              []Turn             // that were added to the chat, without the last one
	Last               Turn               // the last turn of the model
	Calls              []toolcall.Call    // of the client's tools
	Ran                []Ran
	Citations          []toolloop.Citation // in Content
}

// AgentTools returns the definitions of a request's tools: those of the client, which may be none, and those of set.
func AgentTools(client string, set *agent.Set) (string, error) {
	var list []json.RawMessage
	if client != "" {
		if err := json.Unmarshal([]byte(client), &list); err != nil {
			return "", fault.Field("tools", "want a list of tools")
		}
	}
	tools := make([]Tool, len(set.Tools))
	for i, t := range set.Tools {
		tools[i] = Tool{Name: t.Name, Description: t.Description, Parameters: t.Parameters}
	}
	own, err := ToolsJSON(tools)
	if err != nil || client == "" {
		return own, err
	}
	var more []json.RawMessage
	if own != "" {
		if err := json.Unmarshal([]byte(own), &more); err != nil {
			return "", fault.Wrap(fault.Internal, err, "read the tools of the server")
		}
	}
	text, err := json.Marshal(append(list, more...))
	if err != nil {
		return "", fault.Field("tools", "%v", err)
	}
	return string(text), nil
}

// agentRun is the state of RunAgent.
type agentRun struct {
	backend Chatter
	set     *agent.Set
	loop    *toolloop.Loop
	hooks   AgentHooks
	out     AgentOutcome
	usage   routerv1.Usage
	left    time.Duration // for calls

	content, reasoning strings.Builder // of all turns, which become those of out
}

// RunAgent runs a chat whose tools the server runs: turn after turn, until the model answers or calls a tool of the
// client. r has all tools; client are the definitions of the client's own, empty for none. A tool choice applies to
// the first turn. The limit of tokens is that of all turns.
func RunAgent(
	ctx context.Context, b Chatter, r *routerv1.ChatRequest, g Parsing, client string, set *agent.Set, hooks AgentHooks,
) (*AgentOutcome, error) {
	a := &agentRun{
		backend: b, set: set, loop: toolloop.New(set.Limits(), set.Names()), hooks: hooks, left: set.Time(),
	}
	turn := proto.CloneOf(r)
	for round := 0; ; round++ {
		if round > 0 {
			turn.ToolChoice = nil
		}
		if !a.loop.Offers() {
			turn.ToolsJson = client
		}
		answer, finished, err := a.turn(ctx, turn, g, round)
		if err != nil {
			return nil, err
		}
		step := a.loop.Turn(answer.Calls, Truncated(finished))
		used := a.usage.GetCompletionTokens()
		if len(step.Run) > 0 && r.GetMaxTokens() > 0 && used >= r.GetMaxTokens() { // nothing is left for an answer
			finished.FinishReason, step.Run = samplerv1.FinishReason_FINISH_REASON_LENGTH, nil
		}
		if len(step.Run) == 0 {
			finished.Usage = &a.usage
			a.out.Content, a.out.Reasoning = a.content.String(), a.reasoning.String()
			a.out.Finished, a.out.Calls = finished, step.Client
			a.out.Citations = a.loop.Citations(a.out.Content)
			a.out.Last = Turn{Role: "assistant", Content: answer.Content(), Reasoning: answer.Reasoning(),
				Calls: slices.DeleteFunc(slices.Clone(step.Client), func(c toolcall.Call) bool {
					return !json.Valid([]byte(c.Arguments)) // it was cut off
				})}
			return &a.out, nil
		}
		results, err := a.call(ctx, step.Run)
		if err != nil {
			return nil, err
		}
		turn = proto.CloneOf(turn) // the backend may keep the request of the turn before
		for _, m := range a.loop.Results(toolloop.Message{
			Content: answer.Content(), Reasoning: answer.Reasoning(), Calls: valid(answer.Calls),
		}, results) {
			message, err := Turn(m).Message()
			if err != nil {
				return nil, err
			}
			a.out.Turns = append(a.out.Turns, Turn(m))
			turn.Messages = append(turn.Messages, message)
		}
		if r.GetMaxTokens() > 0 {
			turn.MaxTokens = r.GetMaxTokens() - used
		}
	}
}

// valid returns calls with arguments that chat templates can read.
func valid(calls []toolcall.Call) []toolcall.Call {
	out := make([]toolcall.Call, len(calls))
	for i, c := range calls {
		if !json.Valid([]byte(c.Arguments)) {
			c.Arguments = "{}"
		}
		out[i] = c
	}
	return out
}

// turn runs one turn of the model and passes on what the client sees of it.
func (a *agentRun) turn(
	ctx context.Context, r *routerv1.ChatRequest, g Parsing, round int,
) (*Answer, *routerv1.Finished, error) {
	g.Tools = r.GetToolsJson()
	id := g.CallID
	if id == nil {
		id = CallID
	}
	if round > 0 { // the turns of a request have one id
		g.CallID = func(request string, choice, index int) string {
			return id(fmt.Sprintf("%s.%d", request, round), choice, index)
		}
	}
	shown := shownTurn{own: a.set.Names(), run: a, index: map[int]int{}, joined: a.hooks.Joined}
	end, err := Run(ctx, a.backend, r, g, func(s *routerv1.Started) error {
		if round > 0 {
			return nil
		}
		a.out.Started = s
		if a.hooks.Started == nil {
			return nil
		}
		return a.hooks.Started(s)
	}, func(d toolcall.Delta) error {
		if d = shown.add(d); d.Empty() || a.hooks.Delta == nil {
			return nil
		}
		return a.hooks.Delta(d)
	})
	if err != nil {
		return nil, nil, err
	}
	u := end.Finished.GetUsage()
	a.usage.PromptTokens += u.GetPromptTokens()
	a.usage.CachedTokens += u.GetCachedTokens()
	a.usage.CompletionTokens += u.GetCompletionTokens()
	return end.Answer, proto.CloneOf(end.Finished), nil
}

// shownTurn turns the deltas of a turn into those of the whole answer.
type shownTurn struct {
	own                map[string]bool
	run                *agentRun
	content, reasoning bool        // the turn has added some
	index              map[int]int // of the client's calls: their index in the turn to that in the answer
	joined             bool
}

// add adds a delta to the answer, and returns what the client gets.
func (s *shownTurn) add(d toolcall.Delta) toolcall.Delta {
	gap := func(text string, begun *bool, before *strings.Builder) string {
		if s.joined && text != "" && !*begun {
			if *begun = true; before.Len() > 0 && !strings.HasSuffix(before.String(), "\n") {
				text = "\n\n" + text
			}
		}
		before.WriteString(text)
		return text
	}
	d.Content = gap(d.Content, &s.content, &s.run.content)
	d.Reasoning = gap(d.Reasoning, &s.reasoning, &s.run.reasoning)
	var calls []toolcall.CallDelta
	for _, c := range d.Calls {
		if c.Name != "" && !s.own[c.Name] {
			s.index[c.Index] = len(s.index)
		}
		if at, shown := s.index[c.Index]; shown {
			c.Index = at
			calls = append(calls, c)
		}
	}
	d.Calls = calls
	return d
}

// runningEvery is how often a stream says that tools run.
var runningEvery = 10 * time.Second

// call runs the calls of a turn, several at a time, and returns their results in order.
func (a *agentRun) call(ctx context.Context, calls []toolcall.Call) ([]toolloop.Result, error) {
	begin := time.Now()
	limited, cancel := context.WithTimeout(ctx, a.left)
	defer cancel()
	results := make([]toolloop.Result, len(calls))
	before := a.loop.Sources()
	slots := make(chan struct{}, parallelCalls)
	var wg sync.WaitGroup
	for i, c := range calls {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			out, err := a.set.Call(limited, a.set.Find(c.Name), c.Arguments, before)
			if err != nil {
				out = toolloop.Result{Text: "the time for tools is used up", Failed: true}
			}
			results[i] = a.loop.Bound(out)
		})
	}
	if err := a.wait(&wg, calls); err != nil { // the client has gone
		cancel()
		wg.Wait()
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "run the tools of the chat")
	}
	if a.left -= time.Since(begin); a.left <= 0 || limited.Err() != nil {
		a.loop.Close()
	}
	for i, c := range calls {
		ran := Ran{a.set.Find(c.Name), c, results[i]}
		ran.Result.Sources = slices.Clone(ran.Result.Sources)
		for j := range ran.Result.Sources {
			ran.Result.Sources[j].Text = ""
		}
		a.out.Ran = append(a.out.Ran, ran)
		if a.hooks.Ran != nil {
			if err := a.hooks.Ran(ran); err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

// wait waits for the calls, and tells the client meanwhile that they run. It returns early if that fails.
func (a *agentRun) wait(wg *sync.WaitGroup, calls []toolcall.Call) error {
	if a.hooks.Running == nil {
		wg.Wait()
		return nil
	}
	names := make([]string, len(calls))
	for i, c := range calls {
		names[i] = c.Name
	}
	done := make(chan struct{})
	go func() { // it ends with the calls, which the caller joins
		wg.Wait()
		close(done)
	}()
	tick := time.NewTicker(runningEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-tick.C:
			if err := a.hooks.Running(names); err != nil {
				return err
			}
		}
	}
}
