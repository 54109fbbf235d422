package router

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/session"
)

// textOut turns a request's tokens into text, through the tokenizer's DecodeStream
// and the stop texts.
type textOut struct {
	ctx       context.Context
	tokenizer tokenizerv1.TokenizerServiceClient
	digest    string
	stream    grpc.BidiStreamingClient[tokenizerv1.DecodeStreamRequest, tokenizerv1.DecodeStreamResponse]
	stopper   *session.Stopper
}

func openText(ctx context.Context, t tokenizerv1.TokenizerServiceClient, q *request, _ *modelInfo) (*textOut, error) {
	stream, err := t.DecodeStream(ctx)
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	open := &tokenizerv1.DecodeOpen{Model: q.digest, SkipSpecial: true, Prefix: q.prompt}
	if err := stream.Send(&tokenizerv1.DecodeStreamRequest{Frame: &tokenizerv1.DecodeStreamRequest_Open{Open: open}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, rpc.FromStatus(err)
	}
	return &textOut{ctx: ctx, tokenizer: t, digest: q.digest, stream: stream, stopper: session.NewStopper(q.stop)}, nil
}

// push adds a token and returns what may be shown.
func (o *textOut) push(id uint32) (string, bool, error) {
	text, err := o.ask(&tokenizerv1.DecodeStreamRequest{Frame: &tokenizerv1.DecodeStreamRequest_Push{Push: &tokenizerv1.DecodePush{Ids: []uint32{id}}}})
	if err != nil {
		return "", false, err
	}
	show, stopped := o.stopper.Push(text)
	return show, stopped, nil
}

// flush returns what was held back.
func (o *textOut) flush() (string, error) {
	text, err := o.ask(&tokenizerv1.DecodeStreamRequest{Frame: &tokenizerv1.DecodeStreamRequest_Flush{Flush: &tokenizerv1.DecodeFlush{}}})
	if err != nil {
		return "", err
	}
	show, stopped := o.stopper.Push(text)
	if !stopped {
		show += o.stopper.Flush()
	}
	return show, o.stream.CloseSend()
}

func (o *textOut) ask(r *tokenizerv1.DecodeStreamRequest) (string, error) {
	if err := o.stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
		return "", rpc.FromStatus(err)
	}
	resp, err := o.stream.Recv()
	if errors.Is(err, io.EOF) {
		return "", errText
	}
	return resp.GetText(), rpc.FromStatus(err)
}

// candidates names the best candidates' texts.
func (o *textOut) candidates(top []*samplerv1.Candidate) ([]*routerv1.TopCandidate, error) {
	var out []*routerv1.TopCandidate
	for _, c := range top {
		resp, err := o.tokenizer.Decode(o.ctx, &tokenizerv1.DecodeRequest{Model: o.digest, Ids: []uint32{c.GetId()}})
		if err != nil {
			return nil, rpc.FromStatus(err)
		}
		out = append(out, &routerv1.TopCandidate{Id: c.GetId(), Text: resp.GetText(), Logprob: c.GetLogprob()})
	}
	return out, nil
}
