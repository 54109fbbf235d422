package router_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
)

// fakeTokenizer is a tokenizer whose tokens are bytes.
type fakeTokenizer struct {
	tokenizerv1.UnimplementedTokenizerServiceServer
	calls *atomic.Int64 // other than Describe
}

func (f fakeTokenizer) register(r grpc.ServiceRegistrar) {
	tokenizerv1.RegisterTokenizerServiceServer(r, f)
}

func (fakeTokenizer) Describe(context.Context, *tokenizerv1.DescribeRequest) (*tokenizerv1.DescribeResponse, error) {
	return &tokenizerv1.DescribeResponse{Vocabularies: []*tokenizerv1.Vocabulary{
		{Model: "fake", Digest: digest, Kind: "char", Size: vocab, EndIds: []uint32{endID}},
		{Model: "like", Digest: "sha256:like", Kind: "char", Size: vocab, EndIds: []uint32{endID}},
		{Model: "other", Digest: "sha256:other", Kind: "char", Size: vocab, EndIds: []uint32{endID}},
	}}, nil
}

func (f fakeTokenizer) Encode(_ context.Context, r *tokenizerv1.EncodeRequest) (*tokenizerv1.EncodeResponse, error) {
	f.calls.Add(1)
	out := &tokenizerv1.EncodeResponse{}
	if r.Suffix != nil {
		return nil, fault.Field("suffix", "model %q has no fill-in-the-middle tokens", r.GetModel())
	}
	for _, b := range []byte(r.GetText()) {
		out.Ids = append(out.Ids, uint32(b))
	}
	return out, nil
}

// EncodeBatch refuses texts that begin with "bad".
func (f fakeTokenizer) EncodeBatch(
	_ context.Context, r *tokenizerv1.EncodeBatchRequest,
) (*tokenizerv1.EncodeBatchResponse, error) {
	for i, text := range r.GetTexts() {
		if strings.HasPrefix(text, "bad") {
			return nil, fault.Field(fmt.Sprintf("texts[%d]", i), "is bad")
		}
	}
	return &tokenizerv1.EncodeBatchResponse{}, nil
}

// Tokens lists the bytes. The vocabulary "sha256:other" differs in one token.
func (f fakeTokenizer) Tokens(
	r *tokenizerv1.TokensRequest, stream grpc.ServerStreamingServer[tokenizerv1.TokensResponse],
) error {
	f.calls.Add(1)
	part := &tokenizerv1.TokensResponse{}
	for b := range vocab {
		part.Tokens = append(part.Tokens, []byte{byte(b)})
	}
	if r.GetModel() == "sha256:other" {
		part.Tokens[100] = []byte("other")
	}
	return stream.Send(part)
}

// fakeSampler picks the best candidate.
type fakeSampler struct {
	samplerv1.UnimplementedSamplerServiceServer
	mu        sync.Mutex
	pipelines map[string]*fakeSampling
	refuse    func(*samplerv1.AddSession) *samplerv1.SessionFailed // nil refuses none
	faults    []string                                             // the router's violations of the protocol
}

func (s *fakeSampler) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Sprintf(format, args...))
}

type fakeSampling struct {
	sampler *fakeSampler
	mu      sync.Mutex
	stream  grpc.BidiStreamingServer[samplerv1.SampleRequest, samplerv1.SampleResponse]
	adds    map[string]*samplerv1.AddSession
	counts  map[string]int
	last    map[string]fakePick
}

// fakePick is the last token picked for a session.
type fakePick struct {
	position, id uint32
}

func newFakeSampler() *fakeSampler { return &fakeSampler{pipelines: map[string]*fakeSampling{}} }

func (s *fakeSampler) register(r grpc.ServiceRegistrar) { samplerv1.RegisterSamplerServiceServer(r, s) }

func (s *fakeSampler) Sample(stream grpc.BidiStreamingServer[samplerv1.SampleRequest, samplerv1.SampleResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	name := string(first.GetOpen().GetPipeline())
	p := &fakeSampling{
		sampler: s,
		stream:  stream,
		adds:    map[string]*samplerv1.AddSession{},
		counts:  map[string]int{},
		last:    map[string]fakePick{},
	}
	s.mu.Lock()
	s.pipelines[name] = p
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pipelines[name] == p {
			delete(s.pipelines, name)
		}
	}()
	if err := stream.Send(
		&samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Opened{Opened: &samplerv1.SampleOpened{}}},
	); err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		refuse := s.refuse
		s.mu.Unlock()
		if add := r.GetAdd(); add != nil && refuse != nil {
			if f := refuse(add); f != nil {
				f.Session, f.Epoch = add.GetSession(), add.GetEpoch()
				p.mu.Lock()
				err := stream.Send(&samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Failed{Failed: f}})
				p.mu.Unlock()
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := p.take(r); err != nil {
			return err
		}
	}
}

func (p *fakeSampling) take(r *samplerv1.SampleRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch f := r.GetFrame().(type) {
	case *samplerv1.SampleRequest_Add:
		name := f.Add.GetSession()
		p.adds[string(name)], p.counts[string(name)] = f.Add, len(f.Add.GetEmitted())
		delete(p.last, string(name))
		return p.stream.Send(
			&samplerv1.SampleResponse{
				Frame: &samplerv1.SampleResponse_Added{
					Added: &samplerv1.SessionAdded{Session: name, Epoch: f.Add.GetEpoch()},
				},
			},
		)
	case *samplerv1.SampleRequest_Remove:
		delete(p.adds, string(f.Remove.GetSession()))
	}
	return nil
}

func (s *fakeSampler) Push(stream grpc.BidiStreamingServer[samplerv1.PushRequest, samplerv1.PushResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	p := s.pipelines[string(first.GetOpen().GetPipeline())]
	s.mu.Unlock()
	if p == nil {
		return fault.New(fault.FailedPrecondition, "open push: no router has opened the pipeline")
	}
	if err := stream.Send(
		&samplerv1.PushResponse{Frame: &samplerv1.PushResponse_Opened{Opened: &samplerv1.PushOpened{}}},
	); err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, row := range r.GetRows().GetRows() {
			if err := p.pick(row); err != nil {
				return err
			}
		}
	}
}

func (p *fakeSampling) pick(row *samplerv1.Row) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := string(row.GetSession())
	add := p.adds[name]
	if add == nil || row.GetEpoch() < add.GetEpoch() {
		return nil
	}
	if row.GetEpoch() > add.GetEpoch() {
		p.sampler.fault("a row of session %x has epoch %d, and the session %d", name, row.GetEpoch(), add.GetEpoch())
	}
	if row.Target != nil {
		return p.stream.Send(&samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Score{Score: &samplerv1.Score{
			Session: row.GetSession(), Epoch: row.GetEpoch(), Position: row.GetPosition() + 1, Id: row.GetTarget(),
			Logprob: -float32(row.GetPosition()),
			Top:     []*samplerv1.Candidate{{Id: row.GetIds()[0], Logprob: -0.25}},
		}}})
	}
	last, had := p.last[name]
	if had && row.GetPosition() <= last.position || row.DraftId != nil &&
		(row.GetPosition() != last.position+1 || row.GetDraftId() != last.id) {
		return nil
	}
	id := row.GetIds()[0]
	if len(add.GetPrompt()) > 0 { // that of a draft session is empty
		id = picked(id, p.counts[name])
		// A token is drawn by its place in the whole log, which the position and the dropped tokens give.
		if len(add.GetPrompt())+p.counts[name] != int(row.GetPosition()+1+add.GetDropped()) {
			id = '!'
		}
	}
	p.last[name] = fakePick{row.GetPosition(), id}
	p.counts[name]++
	t := &samplerv1.Token{
		Session: row.GetSession(), Epoch: row.GetEpoch(), Position: row.GetPosition() + 1, Id: id, Logprob: -0.5,
	}
	if add.GetRules().GetTopLogprobs() > 0 {
		t.Top = []*samplerv1.Candidate{{Id: id, Logprob: -0.5}}
	}
	if limit := add.GetRules().GetMaxTokens(); limit > 0 && p.counts[name] >= int(limit) {
		t.FinishReason = samplerv1.FinishReason_FINISH_REASON_LENGTH
	}
	return p.stream.Send(&samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Token{Token: t}})
}
