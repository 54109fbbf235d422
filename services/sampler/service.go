package sampler

import (
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

// Config is what the service is given from outside.
type Config struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil measures nothing
}

// Limits of a pipeline.
const (
	idLen       = 16   // bytes of pipeline and session names
	maxSessions = 4096 // of one pipeline
	queueLen    = 256  // replies waiting for a slow reader
	maxTop      = 20
	maxVocab    = 1 << 24
)

// Service implements lamina.sampler.v1.SamplerService.
type Service struct {
	samplerv1.UnimplementedSamplerServiceServer
	log    *slog.Logger
	tokens prometheus.Counter
	rows   prometheus.Counter
	bytes  prometheus.Counter

	library library

	mu        sync.Mutex
	pipelines map[string]*pipeline
}

// New returns a sampler without pipelines.
func New(c Config) *Service {
	s := &Service{
		log: c.Log, pipelines: map[string]*pipeline{},
		tokens: prometheus.NewCounter(prometheus.CounterOpts{Name: "lamina_sampler_tokens_total", Help: "Tokens picked."}),
		rows:   prometheus.NewCounter(prometheus.CounterOpts{Name: "lamina_sampler_whole_rows_total", Help: "Whole rows asked for because candidates were too few."}),
		bytes:  prometheus.NewCounter(prometheus.CounterOpts{Name: "lamina_sampler_row_bytes_total", Help: "Bytes of the rows that last stages sent, as messages."}),
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

// pipeline is what the two conversations share.
type pipeline struct {
	replies chan *samplerv1.SampleResponse // to the router
	done    chan struct{}                  // closed when the router's side ends

	mu       sync.Mutex
	sessions map[string]*session
}

// session is one generation.
type session struct {
	name    []byte
	epoch   uint64
	picker  *sample.Picker
	matcher *grammar.Matcher // nil: the text is held to nothing
	mask    []uint64
	ends    map[int32]bool
	limit   int
	emitted int
	last    int64 // position last picked for; -1 before
	history *sample.History
}

// Sample is the router's conversation.
func (s *Service) Sample(stream grpc.BidiStreamingServer[samplerv1.SampleRequest, samplerv1.SampleResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil || len(open.GetPipeline()) != idLen {
		return fault.Field("open.pipeline", "the first frame must name a pipeline by %d bytes", idLen)
	}
	p := &pipeline{replies: make(chan *samplerv1.SampleResponse, queueLen), done: make(chan struct{}), sessions: map[string]*session{}}
	if err := s.add(string(open.GetPipeline()), p); err != nil {
		return err
	}
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
}

// receive takes the router's frames until it closes its side.
func (s *Service) receive(stream grpc.BidiStreamingServer[samplerv1.SampleRequest, samplerv1.SampleResponse], p *pipeline) error {
	parts := map[string][][]byte{} // vocabularies that have not come to their end
	for {
		req, err := stream.Recv()
		if err != nil {
			return eof(err)
		}
		switch frame := req.GetFrame().(type) {
		case *samplerv1.SampleRequest_Add:
			if err := p.addSession(frame.Add, &s.library); err != nil {
				return err
			}
			p.reply(&samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Added{Added: &samplerv1.SessionAdded{Session: frame.Add.GetSession()}}})
		case *samplerv1.SampleRequest_Tokens:
			if err := s.library.take(parts, frame.Tokens); err != nil {
				return err
			}
		case *samplerv1.SampleRequest_Remove:
			p.mu.Lock()
			delete(p.sessions, string(frame.Remove.GetSession()))
			p.mu.Unlock()
		default:
			return fault.Field("frame", "%T is not allowed after open", frame)
		}
	}
}

// reply queues a frame to the router; it waits for a slow one, and gives up when
// the router's side has ended.
func (p *pipeline) reply(r *samplerv1.SampleResponse) {
	select {
	case p.replies <- r:
	case <-p.done:
	}
}

func (p *pipeline) addSession(a *samplerv1.AddSession, l *library) error {
	if len(a.GetSession()) != idLen {
		return fault.Field("add.session", "%d bytes, want %d", len(a.GetSession()), idLen)
	}
	rules, err := samplerules.Read("add.rules.", a.GetRules())
	if err != nil {
		return err
	}
	picker, err := sample.NewPicker(rules)
	if err != nil {
		return err
	}
	matcher, words, err := l.matcher(a)
	if err != nil {
		return err
	}
	logprobs := make([]float64, len(a.GetEmittedLogprobs()))
	for i, v := range a.GetEmittedLogprobs() {
		logprobs[i] = float64(v)
	}
	n := &session{
		name: a.GetSession(), epoch: a.GetEpoch(), picker: picker, ends: map[int32]bool{}, limit: int(a.GetRules().GetMaxTokens()),
		emitted: len(a.GetEmitted()), last: -1, matcher: matcher, mask: make([]uint64, words), history: sample.NewHistory(ids(a.GetPrompt()), ids(a.GetEmitted()), logprobs...),
	}
	for _, id := range a.GetRules().GetEndIds() {
		n.ends[int32(id)] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.sessions[string(n.name)]
	if old != nil && old.epoch > n.epoch {
		return fault.New(fault.Aborted, "add session %x: epoch %d is below %d", n.name, n.epoch, old.epoch)
	}
	if old == nil && len(p.sessions) >= maxSessions {
		return fault.New(fault.Exhausted, "add session %x: the pipeline has %d", n.name, maxSessions)
	}
	p.sessions[string(n.name)] = n
	return nil
}

func ids(wire []uint32) []int32 {
	out := make([]int32, len(wire))
	for i, id := range wire {
		out[i] = int32(id)
	}
	return out
}
