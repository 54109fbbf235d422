// Package evaluate runs the tasks of pkg/eval on a router: it asks for log-likelihoods and texts over several
// streams at once, keeps the result of every doc in a journal, so that a run that was stopped goes on, and writes
// and compares results.
package evaluate

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// Client asks a router.
type Client struct {
	Router routerv1.RouterServiceClient
	Model  string // name or digest; empty for the only one
	// Adapter is the name or digest of an adapter of the model; empty for none.
	Adapter string
}

// Model finds the model on the router.
func (c *Client) Find(ctx context.Context) (*routerv1.Model, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	list, err := c.Router.ListModels(ctx, &routerv1.ListModelsRequest{})
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	all := list.GetModels()
	if c.Model == "" && len(all) == 1 {
		return all[0], nil
	}
	var names []string
	for _, m := range all {
		if c.Model != "" && (m.GetName() == c.Model || m.GetDigest() == c.Model) {
			return m, nil
		}
		names = append(names, m.GetName())
	}
	return nil, fault.New(fault.NotFound, "find model %q: the router serves %q", c.Model, names)
}

// AdapterDigest returns the digest of the client's adapter, or an empty string for none.
func (c *Client) AdapterDigest(m *routerv1.Model) (string, error) {
	if c.Adapter == "" {
		return "", nil
	}
	var names []string
	for _, a := range m.GetAdapters() {
		if a.GetName() == c.Adapter || a.GetDigest() == c.Adapter {
			return a.GetDigest(), nil
		}
		names = append(names, a.GetName())
	}
	return "", fault.New(fault.NotFound, "find adapter %q of model %q: it has %q", c.Adapter, m.GetName(), names)
}

const (
	attempts = 6
	capacity = uint32(60) // seconds that the router waits for a pipeline
)

// retry calls do again while the router refuses for a while. The pauses grow and the context ends them.
func retry(ctx context.Context, do func() error) error {
	pause := 200 * time.Millisecond
	for try := 1; ; try++ {
		err := do()
		code := fault.CodeOf(err)
		if err == nil || try == attempts ||
			code != fault.Unavailable && code != fault.Exhausted && code != fault.Aborted {
			return err
		}
		var f *fault.Error
		if errors.As(err, &f) && f.RetryAfter > pause {
			pause = f.RetryAfter
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			pause *= 2
		}
	}
}

// Score returns the log-likelihood of the ids from an index on, given those before, and whether each of them is the
// most likely one. from is at least 1.
func (c *Client) Score(ctx context.Context, ids []int32, from int) (sum float64, greedy bool, err error) {
	err = retry(ctx, func() error {
		sum, greedy, err = c.score(ctx, ids, from)
		return err
	})
	return sum, greedy, err
}

func (c *Client) score(ctx context.Context, ids []int32, from int) (sum float64, greedy bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	prompt := &routerv1.TokenIds{Ids: make([]uint32, len(ids))}
	for i, id := range ids {
		prompt.Ids[i] = uint32(id)
	}
	wait := capacity
	stream, err := c.Router.Generate(ctx, &routerv1.GenerateRequest{
		Model:           c.Model,
		Adapter:         c.Adapter,
		WaitForCapacity: &wait,
		Prompt: &routerv1.GenerateRequest_TokenIds{
			TokenIds: prompt,
		},
		Echo:           true,
		PromptLogprobs: true,
		PromptOnly:     true,
		TopLogprobs:    1,
	})
	if err != nil {
		return 0, false, rpc.FromStatus(err)
	}
	greedy = true
	scored := from
	finished := false
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, false, rpc.FromStatus(err)
		}
		finished = finished || event.GetFinished() != nil
		for i, t := range event.GetPrompt().GetTokens() {
			at := int(event.GetPrompt().GetFirst()) + i
			if at < from {
				continue
			}
			if at != scored || t.Logprob == nil || len(t.GetTop()) == 0 { //nolint:protogetter // absent is not zero
				return 0, false, fault.New(
					fault.DataLoss,
					"score ids: the router left out the log-probability at %d",
					scored,
				)
			}
			sum += float64(t.GetLogprob())
			greedy = greedy && t.GetTop()[0].GetId() == t.GetId()
			scored++
		}
	}
	if !finished || scored != len(ids) {
		return 0, false, fault.New(fault.DataLoss, "score ids: the stream ended after %d of %d ids", scored, len(ids))
	}
	return sum, greedy, nil
}

// Request asks for a text.
type Request struct {
	Prompt    string
	Chat      bool // the prompt is a message of a user
	MaxTokens uint32
	Stop      []string
	Sampling  *routerv1.Sampling
}

// event is a message of either stream.
type event interface {
	GetToken() *routerv1.TokenEvent
	GetFinished() *routerv1.Finished
}

// Generate returns a text and the number of its tokens.
func (c *Client) Generate(ctx context.Context, r Request) (text string, tokens int, err error) {
	err = retry(ctx, func() error {
		text, tokens, err = c.generate(ctx, r)
		return err
	})
	return text, tokens, err
}

func (c *Client) generate(ctx context.Context, r Request) (text string, tokens int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var recv func() (event, error)
	wait := capacity
	if r.Chat {
		stream, err := c.Router.Chat(ctx, &routerv1.ChatRequest{Model: c.Model, Adapter: c.Adapter,
			MaxTokens: r.MaxTokens, Stop: r.Stop,
			Sampling: r.Sampling, WaitForCapacity: &wait,
			Messages: []*tokenizerv1.Message{{Role: "user", Content: r.Prompt}}})
		if err != nil {
			return "", 0, rpc.FromStatus(err)
		}
		recv = func() (event, error) { return stream.Recv() }
	} else {
		stream, err := c.Router.Generate(
			ctx,
			&routerv1.GenerateRequest{Model: c.Model, Adapter: c.Adapter, MaxTokens: r.MaxTokens, Stop: r.Stop,
				Sampling: r.Sampling, WaitForCapacity: &wait, Prompt: &routerv1.GenerateRequest_Text{Text: r.Prompt}},
		)
		if err != nil {
			return "", 0, rpc.FromStatus(err)
		}
		recv = func() (event, error) { return stream.Recv() }
	}
	for finished := false; ; {
		ev, err := recv()
		if errors.Is(err, io.EOF) && finished {
			return text, tokens, nil
		}
		if errors.Is(err, io.EOF) {
			return "", 0, fault.New(fault.DataLoss, "read the answer: the stream ended without a finish reason")
		}
		if err != nil {
			return "", 0, rpc.FromStatus(err)
		}
		if t := ev.GetToken(); t != nil {
			text += t.GetText()
			tokens++
		}
		if f := ev.GetFinished(); f != nil {
			text, finished = text+f.GetText(), true
		}
	}
}
