package router

import (
	"context"
	"fmt"
	"unicode/utf8"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// Generate continues a prompt.
func (s *Service) Generate(
	r *routerv1.GenerateRequest, stream grpc.ServerStreamingServer[routerv1.GenerateResponse],
) error {
	out := newOutbox(s.cfg.ReadLimit, stream.Send)
	return out.end(s.generate(stream.Context(), r, false, out.send))
}

// Chat answers a list of messages.
func (s *Service) Chat(r *routerv1.ChatRequest, stream grpc.ServerStreamingServer[routerv1.ChatResponse]) error {
	out := newOutbox(s.cfg.ReadLimit, stream.Send)
	return out.end(s.chat(stream.Context(), r, false, out.send))
}

// sink receives the events of a request and sends them to the stream of Generate or Chat.
type sink struct {
	started  func(*routerv1.Started) error
	prompt   func(*routerv1.PromptTokens) error // nil for a chat
	loading  func(*routerv1.ModelLoading) error // before started; nil for a request that is taken over
	token    func(*routerv1.TokenEvent) error
	finished func(*routerv1.Finished) error
}

// generate runs a request. paid says that the caller's budget has paid for the prompt: another choice did.
func (s *Service) generate(
	ctx context.Context, r *routerv1.GenerateRequest, paid bool, send func(*routerv1.GenerateResponse) error,
) error {
	_, isText := r.GetPrompt().(*routerv1.GenerateRequest_Text)
	switch {
	case r.Suffix != nil && !isText:
		return fault.Field("suffix", "requires a prompt that is text")
	case (r.GetPromptLogprobs() || r.GetPromptOnly()) && !r.GetEcho():
		return fault.Field("echo", "is required by prompt_logprobs and prompt_only")
	}
	q := &request{
		service: s, model: r.GetModel(), adapterName: r.GetAdapter(), paid: paid, maxTokens: r.GetMaxTokens(),
		sampling: r.GetSampling(), stop: r.GetStop(),
		top:       r.GetTopLogprobs(),
		ignoreEnd: r.GetIgnoreEnd(), field: "prompt",
		echo:     echo{on: r.GetEcho(), logprobs: r.GetPromptLogprobs(), only: r.GetPromptOnly(), special: !isText},
		context:  contextPolicy{asked: r.GetContextPolicy()},
		priority: int(r.GetPriority()), wait: r.WaitForCapacity,
		sink: sink{
			started: func(e *routerv1.Started) error {
				return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Started{Started: e}})
			},
			prompt: func(e *routerv1.PromptTokens) error {
				return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Prompt{Prompt: e}})
			},
			token: func(e *routerv1.TokenEvent) error {
				return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Token{Token: e}})
			},
			finished: func(e *routerv1.Finished) error {
				return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Finished{Finished: e}})
			},
			loading: func(e *routerv1.ModelLoading) error {
				return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Loading{Loading: e}})
			},
		},
	}
	return q.launch(ctx, r.GetResumable(), r.GetClientState(), func(
		ctx context.Context, t tokenizerv1.TokenizerServiceClient,
	) ([]uint32, error) {
		switch prompt := r.GetPrompt().(type) {
		case *routerv1.GenerateRequest_TokenIds:
			return prompt.TokenIds.GetIds(), nil
		case *routerv1.GenerateRequest_Text:
			resp, err := t.Encode(ctx,
				&tokenizerv1.EncodeRequest{Model: q.digest, Text: prompt.Text, Special: r.GetSpecial(),
					Suffix: r.Suffix})
			return resp.GetIds(), rpc.FromStatus(err)
		}
		return nil, fault.Field("prompt", "give text or token_ids")
	})
}

// chat is generate for a chat.
func (s *Service) chat(
	ctx context.Context, r *routerv1.ChatRequest, paid bool, send func(*routerv1.ChatResponse) error,
) error {
	if len(r.GetMessages()) == 0 {
		return fault.Field("messages", "give at least one")
	}
	q := &request{
		service: s, model: r.GetModel(), adapterName: r.GetAdapter(), paid: paid, maxTokens: r.GetMaxTokens(),
		sampling: r.GetSampling(), stop: r.GetStop(),
		top:   r.GetTopLogprobs(),
		field: "messages", context: contextPolicy{asked: r.GetContextPolicy()},
		priority: int(r.GetPriority()), wait: r.WaitForCapacity,
		sink: sink{
			started: func(e *routerv1.Started) error {
				return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Started{Started: e}})
			},
			token: func(e *routerv1.TokenEvent) error {
				return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Token{Token: e}})
			},
			finished: func(e *routerv1.Finished) error {
				return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Finished{Finished: e}})
			},
			loading: func(e *routerv1.ModelLoading) error {
				return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Loading{Loading: e}})
			},
		},
	}
	use, err := readToolUse(r)
	if err != nil {
		return err
	}
	q.keepMarkers = r.GetKeepMarkers()
	q.constrain = func(ctx context.Context, info *modelInfo, from []tokenizerv1.TokenizerServiceClient) error {
		return q.constrainCalls(ctx, use, info, from)
	}
	return q.launch(ctx, r.GetResumable(), r.GetClientState(), func(
		ctx context.Context, t tokenizerv1.TokenizerServiceClient,
	) ([]uint32, error) {
		return q.chatPrompt(ctx, r, use, t)
	})
}

// hexID formats a session's id as the logs of all services do.
func hexID(id []byte) string { return fmt.Sprintf("%x", id) }

// endOf returns the last KiB of a text, in whole characters.
func endOf(text string) string {
	from := max(0, len(text)-1024)
	for from < len(text) && !utf8.RuneStart(text[from]) {
		from++
	}
	return text[from:]
}
