package router

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/session"
)

// maxPieces bounds the texts of candidates that a request remembers.
const maxPieces = 4096

// textPause is the wait after a round of tokenizers of which none answered.
const textPause = 100 * time.Millisecond

// tokenizers are clients of those who know a model now.
func (s *Service) tokenizers(digest string) ([]tokenizerv1.TokenizerServiceClient, error) {
	s.mu.Lock()
	m := s.models[digest]
	s.mu.Unlock()
	if m == nil {
		return nil, fault.New(fault.Unavailable, "find the tokenizer of model %s: none is known", digest).After(time.Second)
	}
	var out []tokenizerv1.TokenizerServiceClient
	for _, addr := range m.tokenizers {
		conn, err := s.cfg.Dialer.Dial(addr)
		if err != nil {
			return nil, err
		}
		out = append(out, tokenizerv1.NewTokenizerServiceClient(conn))
	}
	return out, nil
}

// textOut turns a request's tokens into text, through a tokenizer's DecodeStream and
// the stop texts. The text is a function of the ids, so when a tokenizer is lost
// another is pushed all of them, and what was had already is cut off.
type textOut struct {
	ctx        context.Context
	service    *Service
	tokenizers []tokenizerv1.TokenizerServiceClient
	opened     int // conversations so far: tokenizers take turns
	digest     string
	markers    bool // are kept in the text
	prompt     []uint32
	ids        []uint32
	had        int // bytes of their text
	stream     grpc.BidiStreamingClient[tokenizerv1.DecodeStreamRequest, tokenizerv1.DecodeStreamResponse]
	stopper    *session.Stopper
	pieces     map[uint32]string
}

func openText(ctx context.Context, t []tokenizerv1.TokenizerServiceClient, q *request) (*textOut, error) {
	o := &textOut{ctx: ctx, service: q.service, tokenizers: t, digest: q.digest, markers: q.keepMarkers, prompt: q.prompt, stopper: session.NewStopper(q.stop), pieces: map[uint32]string{}}
	_, err := o.persist("", o.open(), func() (string, error) { return "", o.open() })
	return o, err
}

// open starts a conversation with the next tokenizer.
func (o *textOut) open() error {
	t := o.tokenizers[o.opened%len(o.tokenizers)]
	o.opened++
	stream, err := t.DecodeStream(o.ctx)
	if err != nil {
		return rpc.FromStatus(err)
	}
	o.stream = stream
	open := &tokenizerv1.DecodeOpen{Model: o.digest, SkipSpecial: true, KeepMarkers: o.markers, Prefix: o.prompt}
	if err := stream.Send(&tokenizerv1.DecodeStreamRequest{Frame: &tokenizerv1.DecodeStreamRequest_Open{Open: open}}); err != nil && !errors.Is(err, io.EOF) {
		return rpc.FromStatus(err)
	}
	return nil
}

// push adds a token and returns what may be shown.
func (o *textOut) push(id uint32) (string, bool, error) {
	o.ids = append(o.ids, id)
	text, err := o.ask(pushed(id))
	if text, err = o.persist(text, err, o.again); err != nil {
		return "", false, err
	}
	o.had += len(text)
	show, stopped := o.stopper.Push(text)
	return show, stopped, nil
}

// flush returns what was held back.
func (o *textOut) flush() (string, error) {
	end := &tokenizerv1.DecodeStreamRequest{Frame: &tokenizerv1.DecodeStreamRequest_Flush{Flush: &tokenizerv1.DecodeFlush{}}}
	text, err := o.ask(end)
	text, err = o.persist(text, err, func() (string, error) {
		if _, err := o.again(); err != nil {
			return "", err
		}
		return o.ask(end)
	})
	if err != nil {
		return "", err
	}
	show, stopped := o.stopper.Push(text)
	if !stopped {
		show += o.stopper.Flush()
	}
	return show, o.stream.CloseSend()
}

// persist tries again, with each tokenizer in turn, while that may help and until
// moveLimit has passed. It returns what the first try gave if that did not fail.
func (o *textOut) persist(text string, err error, try func() (string, error)) (string, error) {
	if !fault.Retryable(err) {
		return text, err
	}
	limit := time.NewTimer(moveLimit)
	defer limit.Stop()
	for round := o.opened; ; {
		if text, err = try(); !fault.Retryable(err) {
			return text, err
		}
		if o.opened < round+len(o.tokenizers) {
			continue
		}
		round = o.opened
		pause := time.NewTimer(textPause)
		select {
		case <-pause.C:
		case <-limit.C:
			pause.Stop()
			return "", err
		case <-o.ctx.Done():
			pause.Stop()
			return "", o.ctx.Err()
		}
		if t, err := o.service.tokenizers(o.digest); err == nil { // others may have come
			o.tokenizers = t
		}
	}
}

// again repeats the conversation with the next tokenizer and returns what is new.
func (o *textOut) again() (string, error) {
	if err := o.open(); err != nil {
		return "", err
	}
	text, err := o.ask(pushed(o.ids...))
	if err != nil {
		return "", err
	}
	if len(text) < o.had {
		return "", fault.New(fault.Internal, "decode text: tokenizers of model %s differ", o.digest)
	}
	return text[o.had:], nil
}

func pushed(ids ...uint32) *tokenizerv1.DecodeStreamRequest {
	return &tokenizerv1.DecodeStreamRequest{Frame: &tokenizerv1.DecodeStreamRequest_Push{Push: &tokenizerv1.DecodePush{Ids: ids}}}
}

func (o *textOut) ask(r *tokenizerv1.DecodeStreamRequest) (string, error) {
	if err := o.stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
		return "", rpc.FromStatus(err)
	}
	resp, err := o.stream.Recv()
	if errors.Is(err, io.EOF) {
		return "", fault.New(fault.Unavailable, "decode text: the tokenizer closed the stream")
	}
	return resp.GetText(), rpc.FromStatus(err)
}

// candidates names the best candidates' texts.
func (o *textOut) candidates(top []*samplerv1.Candidate) ([]*routerv1.TopCandidate, error) {
	var out []*routerv1.TopCandidate
	for _, c := range top {
		text, known := o.pieces[c.GetId()]
		if !known {
			var err error
			if text, err = o.piece(c.GetId()); err != nil {
				return nil, err
			}
			if len(o.pieces) < maxPieces {
				o.pieces[c.GetId()] = text
			}
		}
		out = append(out, &routerv1.TopCandidate{Id: c.GetId(), Text: text, Logprob: c.GetLogprob()})
	}
	return out, nil
}

func (o *textOut) piece(id uint32) (text string, err error) {
	for _, t := range o.tokenizers {
		var resp *tokenizerv1.DecodeResponse
		if resp, err = t.Decode(o.ctx, &tokenizerv1.DecodeRequest{Model: o.digest, Ids: []uint32{id}}); err == nil {
			return resp.GetText(), nil
		}
		if err = rpc.FromStatus(err); !fault.Retryable(err) {
			return "", err
		}
	}
	return "", err
}
