// Package httpapitest holds a rig for tests of the HTTP APIs, and a backend that answers with scripted text and
// remembers the requests that it got.
package httpapitest

import (
	"context"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
)

// Backend answers chats. Its fields are set before it is used.
type Backend struct {
	Pieces []string   // the text of the tokens
	Rest   string     // the text of the finished event
	Turns  [][]string // the tokens of the first chat, the second and so on, in place of Pieces
	Format *tokenizerv1.ChatFormat
	End    string // of the prompt
	Stop   string // the stop string that ended the answer
	Length bool   // the answer was ended by its limit
	Fail   error  // with FailAt pieces sent
	FailAt int
	Hang   chan struct{} // closed when the chat has ended, which waits for the end of its context; nil does not wait

	Loading []*routerv1.ModelLoading // reports before a chat starts

	Plain    bool // the model has no chat template
	Adapters []*routerv1.Adapter

	mu          sync.Mutex
	chats       []*routerv1.ChatRequest
	generations []*routerv1.GenerateRequest
}

// Chats returns the requests so far.
func (b *Backend) Chats() []*routerv1.ChatRequest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*routerv1.ChatRequest(nil), b.chats...)
}

// Last returns the last request.
func (b *Backend) Last() *routerv1.ChatRequest {
	all := b.Chats()
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1]
}

// Chat sends the script.
func (b *Backend) Chat(ctx context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error {
	return b.answer(ctx, r, r.GetTopLogprobs(), send)
}

// answer sends the script, with as many candidates for each token as top says.
func (b *Backend) answer(
	ctx context.Context, r *routerv1.ChatRequest, top uint32, send func(*routerv1.ChatResponse) error,
) error {
	b.mu.Lock()
	pieces := b.Pieces
	if len(b.Turns) > 0 {
		pieces = b.Turns[min(len(b.chats), len(b.Turns)-1)]
	}
	b.chats = append(b.chats, r)
	b.mu.Unlock()
	if b.Hang != nil {
		defer close(b.Hang) // also if the client has gone before all pieces are sent
	}
	if b.Fail != nil && b.FailAt == 0 {
		return b.Fail
	}
	for _, m := range b.Loading {
		if err := send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Loading{Loading: m}}); err != nil {
			return err
		}
	}
	if err := send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Started{Started: &routerv1.Started{
		RequestId: "r", Model: "m", Fingerprint: "f", PromptIds: []uint32{1, 2, 3, 4, 5}, Format: b.Format,
		PromptEnd: b.End,
	}}}); err != nil {
		return err
	}
	for i, piece := range pieces {
		if b.Fail != nil && i == b.FailAt {
			return b.Fail
		}
		if err := send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Token{
			Token: &routerv1.TokenEvent{Text: piece, Id: uint32(i), Index: uint32(i), Logprob: -1,
				Top: []*routerv1.TopCandidate{{Text: piece, Logprob: -1}, {Text: "z", Logprob: -2}}[:min(top, 2)]},
		}}); err != nil {
			return err
		}
	}
	if b.Hang != nil {
		<-ctx.Done()
		return ctx.Err()
	}
	reason := samplerv1.FinishReason_FINISH_REASON_STOP
	if b.Length {
		reason = samplerv1.FinishReason_FINISH_REASON_LENGTH
	}
	return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Finished{Finished: &routerv1.Finished{
		FinishReason: reason, Text: b.Rest, StopString: b.Stop,
		Usage:   &routerv1.Usage{PromptTokens: 5, CachedTokens: 2, CompletionTokens: uint32(len(pieces))},
		Timings: &routerv1.Timings{QueueUs: 1, PrefillUs: 2, DecodeUs: 3},
	}}})
}

// Generations returns the requests without a chat template so far.
func (b *Backend) Generations() []*routerv1.GenerateRequest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*routerv1.GenerateRequest(nil), b.generations...)
}

// Generate sends the script.
func (b *Backend) Generate(
	ctx context.Context, r *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error,
) error {
	b.mu.Lock()
	b.generations = append(b.generations, r)
	b.mu.Unlock()
	return b.answer(ctx, nil, r.GetTopLogprobs(), func(e *routerv1.ChatResponse) error {
		switch {
		case e.GetLoading() != nil:
			return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Loading{Loading: e.GetLoading()}})
		case e.GetStarted() != nil:
			return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Started{Started: e.GetStarted()}})
		case e.GetToken() != nil:
			return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Token{Token: e.GetToken()}})
		}
		return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Finished{Finished: e.GetFinished()}})
	})
}

// Prompt returns an id for each byte of the messages.
func (b *Backend) Prompt(_ context.Context, r *routerv1.ChatRequest) ([]uint32, error) {
	var ids []uint32
	for _, m := range r.GetMessages() {
		for _, c := range []byte(m.GetContent()) {
			ids = append(ids, uint32(c))
		}
	}
	if r.GetModel() == "unknown" {
		return nil, fault.New(fault.NotFound, "find model %q: no such model is served", r.GetModel())
	}
	return ids, nil
}

// Encode returns an id for each byte of the text.
func (b *Backend) Encode(_ context.Context, _, text string, _, _ bool) ([]uint32, error) {
	var ids []uint32
	for _, c := range []byte(text) {
		ids = append(ids, uint32(c))
	}
	return ids, b.Fail
}

// Decode is the inverse of Encode.
func (b *Backend) Decode(_ context.Context, _ string, ids []uint32, _ bool) (string, error) {
	text := make([]byte, len(ids))
	for i, id := range ids {
		text[i] = byte(id)
	}
	return string(text), b.Fail
}

// Embed returns for each input the number of its bytes or ids, and the number of the input.
func (b *Backend) Embed(_ context.Context, r *routerv1.EmbedRequest) (*routerv1.EmbedResponse, error) {
	if b.Fail != nil {
		return nil, b.Fail
	}
	out := &routerv1.EmbedResponse{Model: "m", Fingerprint: "f"}
	for i, in := range r.GetInputs() {
		n := len(in.GetText()) + len(in.GetTokenIds().GetIds())
		out.Embeddings = append(out.Embeddings,
			&routerv1.Embedding{Values: []float32{float32(n), float32(i)}, Tokens: uint32(n)})
	}
	return out, nil
}

// Ready returns Fail.
func (b *Backend) Ready() error { return b.Fail }

// Models returns one model.
func (b *Backend) Models(context.Context) ([]*routerv1.Model, error) {
	return []*routerv1.Model{
		{
			Name:         "m",
			Digest:       "sha256:1",
			Architecture: "llama",
			Layers:       2,
			Context:      64,
			Vocab:        99,
			Chat:         !b.Plain,
			Format:       b.Format,
			Pipelines:    1,
			MaxContext:   60,
			EndIds:       []uint32{2},
			Adapters:     b.Adapters,
		},
	}, nil
}
