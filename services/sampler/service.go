package sampler

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

// Config holds the settings of a Service.
type Config struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil measures nothing
	Tracer  *trace.Tracer         // nil traces nothing
}

// Limits of a pipeline.
const (
	idLen       = 16   // bytes of pipeline and session names
	maxSessions = 4096 // of one pipeline
	queueLen    = 256  // replies waiting for a slow reader
)

// Service implements lamina.sampler.v1.SamplerService.
type Service struct {
	samplerv1.UnimplementedSamplerServiceServer
	log    *slog.Logger
	tracer *trace.Tracer
	tokens prometheus.Counter
	rows   prometheus.Counter
	bytes  prometheus.Counter

	library *library

	mu        sync.Mutex
	pipelines map[string]*pipeline
}

// New returns a sampler without pipelines.
func New(c Config) *Service {
	s := &Service{
		log: c.Log, tracer: c.Tracer, pipelines: map[string]*pipeline{}, library: newLibrary(),
		tokens: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "lamina_sampler_tokens_total", Help: "Tokens picked."}),
		rows: prometheus.NewCounter(
			prometheus.CounterOpts{
				Name: "lamina_sampler_whole_rows_total",
				Help: "Full logits rows asked for because candidates were too few.",
			},
		),
		bytes: prometheus.NewCounter(
			prometheus.CounterOpts{
				Name: "lamina_sampler_row_bytes_total", Help: "Bytes of the row messages that last stages sent.",
			},
		),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics != nil {
		c.Metrics.MustRegister(s.tokens, s.rows, s.bytes)
	}
	return s
}

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { samplerv1.RegisterSamplerServiceServer(r, s) }

// pipeline is the state that the streams Sample and Push share.
type pipeline struct {
	tracer  *trace.Tracer
	replies chan *samplerv1.SampleResponse // to the router
	done    chan struct{}                  // closed when the router's side ends

	adding sync.WaitGroup // sessions in pending; none is added once the pipeline is closed

	mu       sync.Mutex
	closed   bool
	sessions map[string]*session
	pending  map[string]*samplerv1.AddSession // sessions that are not answered yet, since a grammar takes time
}

// session is one generation.
type session struct {
	epoch   uint64
	picker  *sample.Picker
	matcher *grammar.Matcher // nil without a grammar
	mask    []uint64
	ends    map[int32]bool
	limit   int
	top     int // candidates to report
	emitted int
	last    int64 // the last position for which a token was picked; -1 before the first
	dropped int   // ids of the log that the rows' positions do not count
	history *sample.History
	span    *trace.Span // nil if the request is not traced
	began   int         // tokens that were emitted before
}

// Sample implements the stream of the router.
func (s *Service) Sample(stream grpc.BidiStreamingServer[samplerv1.SampleRequest, samplerv1.SampleResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil || len(open.GetPipeline()) != idLen {
		return fault.Field("open.pipeline", "the first frame must name a pipeline with %d bytes", idLen)
	}
	p := &pipeline{
		tracer: s.tracer, replies: make(chan *samplerv1.SampleResponse, queueLen), done: make(chan struct{}),
		sessions: map[string]*session{},
		pending:  map[string]*samplerv1.AddSession{},
	}
	if err := s.add(string(open.GetPipeline()), p); err != nil {
		return err
	}
	defer p.adding.Wait() // bounded by the CPU time of a grammar
	defer s.remove(string(open.GetPipeline()), p)

	received := make(chan error, 1)
	go func() { received <- s.receive(stream, p) }()
	opened := &samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Opened{Opened: &samplerv1.SampleOpened{}}}
	if err := stream.Send(opened); err != nil {
		return err
	}
	for {
		select {
		case reply := <-p.replies:
			if err := stream.Send(reply); err != nil {
				return err
			}
		case err := <-received:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (s *Service) add(name string, p *pipeline) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pipelines[name] != nil {
		return fault.New(fault.AlreadyExists, "open pipeline %x: a router has opened it", name)
	}
	s.pipelines[name] = p
	return nil
}

func (s *Service) remove(name string, p *pipeline) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pipelines, name)
	close(p.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, n := range p.sessions {
		n.endSpan()
	}
}

// receive handles the router's frames until the router closes its side. An error of a session or a
// vocabulary is answered with failed for the sessions concerned.
func (s *Service) receive(
	stream grpc.BidiStreamingServer[samplerv1.SampleRequest, samplerv1.SampleResponse], p *pipeline,
) error {
	parts := incoming{}
	for {
		req, err := stream.Recv()
		if err != nil {
			return eof(err)
		}
		switch frame := req.GetFrame().(type) {
		case *samplerv1.SampleRequest_Add:
			p.add(stream.Context(), frame.Add, s.library)
		case *samplerv1.SampleRequest_Tokens:
			if err := s.library.take(parts, frame.Tokens); err != nil {
				s.log.Warn("drop vocabulary", "digest", frame.Tokens.GetDigest(), "error", err)
			}
		case *samplerv1.SampleRequest_Remove:
			p.mu.Lock()
			delete(p.pending, string(frame.Remove.GetSession()))
			p.drop(string(frame.Remove.GetSession()))
			p.mu.Unlock()
		default:
			return fault.Field("frame", "%T is not allowed after open", frame)
		}
	}
}

// reply queues a frame to the router. It waits for a slow reader, but not after the router's side
// has ended.
func (p *pipeline) reply(r *samplerv1.SampleResponse) {
	select {
	case p.replies <- r:
	case <-p.done:
	}
}

// add adds a session and answers the router. For a session with a grammar, a goroutine of its own
// does both, so that no other session waits while the grammar is compiled.
func (p *pipeline) add(ctx context.Context, a *samplerv1.AddSession, l *library) {
	if err := p.expect(a); err != nil {
		p.reply(refused(a, err))
		return
	}
	finish := func() {
		defer p.adding.Done()
		p.finishAdd(ctx, a, l)
	}
	if a.GetRules().GetGrammar() == nil {
		finish()
		return
	}
	go finish()
}

// expect records that a session is about to be added.
func (p *pipeline) expect(a *samplerv1.AddSession) error {
	name := string(a.GetSession())
	if len(name) != idLen {
		return fault.New(fault.Internal, "add session: a name of %d bytes, want %d", len(name), idLen)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old, waiting := p.sessions[name], p.pending[name]
	if epoch := a.GetEpoch(); old != nil && old.epoch > epoch || waiting.GetEpoch() > epoch {
		return fault.New(
			fault.Aborted, "add session %x: epoch %d is below %d", name, epoch,
			max(waiting.GetEpoch(), old.lastEpoch()),
		)
	}
	if old == nil && waiting == nil && len(p.sessions)+len(p.pending) >= maxSessions {
		return fault.New(fault.Exhausted, "add session %x: the pipeline has %d", name, maxSessions)
	}
	if p.closed {
		return fault.New(fault.Canceled, "add session %x: the pipeline has ended", name)
	}
	p.pending[name] = a
	p.adding.Add(1)
	return nil
}

// finishAdd creates the session and answers, unless it was removed or added again meanwhile.
func (p *pipeline) finishAdd(ctx context.Context, a *samplerv1.AddSession, l *library) {
	name := string(a.GetSession())
	n, err := newSession(ctx, a, l)
	p.mu.Lock()
	current := p.pending[name] == a
	if current {
		delete(p.pending, name)
		if err == nil {
			p.sessions[name].endSpan()
			p.sessions[name] = n
			if !p.closed {
				n.span = p.tracer.Adopt(a.GetTraceparent(), "lamina/sampler", "sample")
				n.span.Set(attribute.String("lamina.session", hex.EncodeToString(a.GetSession())),
					attribute.Int64("lamina.epoch", int64(a.GetEpoch())))
			}
		}
	}
	p.mu.Unlock()
	switch {
	case !current:
	case err != nil:
		p.reply(refused(a, err))
	default:
		added := &samplerv1.SessionAdded{Session: a.GetSession(), Epoch: a.GetEpoch()}
		p.reply(&samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Added{Added: added}})
	}
}

// newSession creates a session with its sampling parameters. A panic ends only the session and not
// the stream.
func newSession(ctx context.Context, a *samplerv1.AddSession, l *library) (n *session, err error) {
	defer func() {
		if r := recover(); r != nil {
			n, err = nil, fault.New(fault.Internal, "add session %x: %v", a.GetSession(), r)
		}
	}()
	rules, err := samplerules.Read("", a.GetRules())
	if err != nil {
		return nil, err
	}
	picker, err := sample.NewPicker(rules)
	if err != nil {
		return nil, err
	}
	matcher, mask, err := l.matcher(ctx, a)
	if err != nil {
		return nil, err
	}
	logprobs := make([]float64, len(a.GetEmittedLogprobs()))
	for i, v := range a.GetEmittedLogprobs() {
		logprobs[i] = float64(v)
	}
	n = &session{
		epoch: a.GetEpoch(), picker: picker, ends: map[int32]bool{}, limit: int(a.GetRules().GetMaxTokens()),
		top:     rules.TopLogprobs,
		emitted: len(a.GetEmitted()), began: len(a.GetEmitted()),
		last: -1, dropped: int(a.GetDropped()), matcher: matcher, mask: mask,
		history: sample.NewHistory(ids(a.GetPrompt()), ids(a.GetEmitted()), logprobs...),
	}
	for _, id := range a.GetRules().GetEndIds() {
		n.ends[int32(id)] = true
	}
	return n, nil
}

// drop forgets a session, if there is one of the name, and ends its span. The caller holds mu.
func (p *pipeline) drop(name string) {
	p.sessions[name].endSpan()
	delete(p.sessions, name)
}

// endSpan ends the span of a session, which may be nil. The caller holds the pipeline's mu.
func (n *session) endSpan() {
	if n == nil || n.span == nil {
		return
	}
	n.span.Set(attribute.Int("lamina.tokens", n.emitted-n.began))
	n.span.End(nil)
	n.span = nil
}

// lastEpoch returns the epoch of a session, or 0 for a nil session.
func (n *session) lastEpoch() uint64 {
	if n == nil {
		return 0
	}
	return n.epoch
}

// refused returns the answer for a session that is not added.
func refused(a *samplerv1.AddSession, err error) *samplerv1.SampleResponse {
	return failed(a.GetSession(), a.GetEpoch(), err)
}

// failed returns the answer for a session that is refused or cannot go on. It names the field if
// the request is the cause.
func failed(name []byte, epoch uint64, err error) *samplerv1.SampleResponse {
	f := &samplerv1.SessionFailed{
		Session: name, Epoch: epoch, Code: uint32(rpc.Code(fault.CodeOf(err))), Message: err.Error(),
	}
	var named *fault.Error
	if errors.As(err, &named) && named.Field != "" {
		f.Field, f.Message = named.Field, named.Msg
	}
	return &samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Failed{Failed: f}}
}

func ids(wire []uint32) []int32 {
	out := make([]int32, len(wire))
	for i, id := range wire {
		out[i] = int32(id)
	}
	return out
}
