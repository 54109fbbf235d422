package shard_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/fixtures"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/pkg/wire"
	"github.com/lamina-mesh/lamina/services/shard"
)

const (
	modelDigest = "sha256:test"
	cachePages  = 16
	pageLen     = 16
)

// inferRig is a chain of shards that hold a small model, and a sampler that hands every row to the test.
// The test plays the router.
type inferRig struct {
	t       *testing.T
	network *memnet.Network
	ctx     context.Context
	shards  []shardv1.ShardServiceClient
	route   []*shardv1.Hop
	sampler *rowSink
	metrics *prometheus.Registry                    // of stages that have kernel sets of their own
	hold    func(i int, name string, lo, hi uint32) // starts a shard that becomes stage i of the route
}

// rowSink is a sampler that picks nothing.
type rowSink struct {
	samplerv1.UnimplementedSamplerServiceServer
	mu   sync.Mutex
	rows map[string]chan *samplerv1.Row // by pipeline
	asks int                            // how often it asks for the whole row of every row with candidates
	ask  func()                         // called before it does; nil for nothing
}

func (s *rowSink) of(pipeline []byte) chan *samplerv1.Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rows[string(pipeline)] == nil {
		s.rows[string(pipeline)] = make(chan *samplerv1.Row, 1024)
	}
	return s.rows[string(pipeline)]
}

func (s *rowSink) Push(up grpc.BidiStreamingServer[samplerv1.PushRequest, samplerv1.PushResponse]) error {
	var rows chan *samplerv1.Row
	for {
		r, err := up.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		if open := r.GetOpen(); open != nil {
			rows = s.of(open.GetPipeline())
			frame := &samplerv1.PushResponse_Opened{Opened: &samplerv1.PushOpened{}}
			if err := up.Send(&samplerv1.PushResponse{Frame: frame}); err != nil {
				return err
			}
		}
		for _, row := range r.GetRows().GetRows() {
			rows <- row
			if s.asks > 0 && len(row.GetIds()) > 0 && s.ask != nil {
				s.ask()
			}
			for i := 0; i < s.asks && len(row.GetIds()) > 0; i++ {
				wanted := &samplerv1.PushResponse_RowWanted{RowWanted: &samplerv1.RowWanted{Session: row.GetSession(),
					Position: row.GetPosition()}}
				if err := up.Send(&samplerv1.PushResponse{Frame: wanted}); err != nil {
					return err
				}
			}
		}
	}
}

// newInferRig starts the shards. Without a limit for leases nothing depends on how soon a router answers or comes back.
func newInferRig(t *testing.T, stages int, leaseLimit time.Duration) *inferRig {
	t.Helper()
	return newInferRigWith(t, stages, shard.Config{LeaseLimit: cmp.Or(leaseLimit, time.Hour), Grace: time.Hour})
}

// newInferRigWith starts the shards with a configuration. Stages have kernel sets of their own as far as there are any.
func newInferRigWith(t *testing.T, stages int, cfg shard.Config, sets ...kernel.Set[float32]) *inferRig {
	t.Helper()
	files, err := model.Open(fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	set := cfg.Kernels
	if set == nil {
		cpus := cpu.New(1)
		t.Cleanup(cpus.Close) // after what follows
		set = cpus
	}
	network := memnet.New()
	dialer := rpc.NewDialer(rpc.DialOptions{Net: network})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	r := &inferRig{t: t, network: network, ctx: ctx, sampler: &rowSink{rows: map[string]chan *samplerv1.Row{}},
		metrics: prometheus.NewRegistry()}
	var servers sync.WaitGroup
	serve := func(name string, register func(grpc.ServiceRegistrar)) {
		server := rpc.NewServer(rpc.ServerOptions{Log: slog.New(slog.DiscardHandler)})
		register(server)
		l, err := rpc.Listen(name, rpc.ListenOptions{Net: network})
		if err != nil {
			t.Fatal(err)
		}
		servers.Go(func() {
			if err := rpc.Serve(ctx, server, l, func() {}, rpc.DrainLimit(time.Second)); err != nil {
				t.Error(err)
			}
		})
	}
	serve("mem:sampler", func(s grpc.ServiceRegistrar) { samplerv1.RegisterSamplerServiceServer(s, r.sampler) })
	cfg.Dialer, cfg.Kernels, cfg.KVPositions = dialer, set, cachePages*pageLen
	r.hold = func(i int, name string, lo, hi uint32) {
		cfg := cfg
		if i < len(sets) {
			cfg.Kernels = sets[i]
			cfg.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"shard": name}, r.metrics)
		}
		s := shard.New(cfg)
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := s.Hold("stories", modelDigest, files, model.Range{Lo: int(lo), Hi: int(hi)}); err != nil {
			t.Fatal(err)
		}
		serve(name, s.Register)
		conn, err := dialer.Dial(name)
		if err != nil {
			t.Fatal(err)
		}
		r.shards[i] = shardv1.NewShardServiceClient(conn)
		r.route[i] = &shardv1.Hop{Address: name, Lo: lo, Hi: hi}
	}
	spans := model.Split(len(files.Spec.Layers), stages)
	r.shards, r.route = make([]shardv1.ShardServiceClient, len(spans)), make([]*shardv1.Hop, len(spans))
	for i, span := range spans {
		r.hold(i, fmt.Sprintf("mem:shard-%d", i), uint32(span.Lo), uint32(span.Hi))
	}
	t.Cleanup(func() {
		cancel()
		servers.Wait()
		if err := errors.Join(dialer.Close(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// held describes what each stage holds.
func (r *inferRig) held() []*shardv1.Held {
	r.t.Helper()
	var out []*shardv1.Held
	for _, s := range r.shards {
		d, err := s.Describe(r.ctx, &shardv1.DescribeRequest{}, grpc.WaitForReady(true))
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, d.GetHeld()...)
	}
	return out
}

// testPipeline is an open pipeline, seen by its router.
type testPipeline struct {
	*inferRig
	stream grpc.BidiStreamingClient[shardv1.InferRequest, shardv1.InferResponse]
	opened *shardv1.InferOpened
	step   uint64
	rows   chan *samplerv1.Row
	frames chan *shardv1.InferResponse // refused and computed
	leases chan *shardv1.Lease
	ended  chan error
}

func pipelineName(n int) []byte { return fmt.Appendf(nil, "pipeline%08d", n) }

func sessionName(n int) []byte { return fmt.Appendf(nil, "session%09d", n) }

// open opens a pipeline through all stages.
func (r *inferRig) open(name []byte) (*testPipeline, error) {
	r.t.Helper()
	return r.openFrom(0, name, 0)
}

// openFrom opens a pipeline through the stages from the given one on, under an epoch.
func (r *inferRig) openFrom(stage int, name []byte, epoch uint64) (*testPipeline, error) {
	r.t.Helper()
	return r.openWith(stage, &shardv1.InferOpen{Pipeline: name, Epoch: epoch})
}

// openWith opens a pipeline with what is set, and through the stages from the given one on.
func (r *inferRig) openWith(stage int, open *shardv1.InferOpen) (*testPipeline, error) {
	r.t.Helper()
	stream, err := r.shards[stage].Infer(r.ctx)
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	p := &testPipeline{
		inferRig: r, stream: stream, rows: r.sampler.of(open.GetPipeline()),
		frames: make(chan *shardv1.InferResponse, 1024), leases: make(chan *shardv1.Lease, 1024),
		ended: make(chan error, 1),
	}
	open.Digest, open.Route, open.Sampler = modelDigest, r.route[stage:], "mem:sampler"
	p.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Open{Open: open}})
	first, err := stream.Recv()
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	p.opened = first.GetOpened()
	go func() { // ends with the stream
		for {
			f, err := stream.Recv()
			if err != nil {
				p.ended <- err
				return
			}
			if l := f.GetLease(); l != nil {
				p.leases <- l
			} else {
				p.frames <- f
			}
		}
	}()
	return p, nil
}

func (r *inferRig) mustOpen(name []byte) *testPipeline {
	r.t.Helper()
	p, err := r.open(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (p *testPipeline) send(f *shardv1.InferRequest) {
	p.t.Helper()
	if err := p.stream.Send(f); err != nil && !errors.Is(err, io.EOF) {
		p.t.Fatal(err)
	}
}

func (p *testPipeline) release(r *shardv1.Release) {
	p.t.Helper()
	p.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Release{Release: r}})
}

// batch sends entries of which each gets ids as many as it has rows.
func (p *testPipeline) batch(ids []uint32, entries ...*shardv1.Entry) uint64 {
	p.t.Helper()
	return p.replay(0, ids, entries...)
}

// replay sends entries that are computed up to a layer.
func (p *testPipeline) replay(until uint32, ids []uint32, entries ...*shardv1.Entry) uint64 {
	p.t.Helper()
	p.step++
	p.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Batch{Batch: &shardv1.Batch{
		Step: p.step, Entries: entries, Ids: ids, ReplayUntil: until,
	}}})
	return p.step
}

// await returns what a channel receives, or fails when the pipeline ends or nothing comes.
func await[T any](p *testPipeline, c chan T, what string) (v T) {
	p.t.Helper()
	select {
	case v = <-c:
	case err := <-p.ended:
		p.t.Fatalf("wait for %s: the stream ended: %v", what, err)
	case <-time.After(2 * time.Minute):
		p.t.Fatalf("wait for %s: nothing came", what)
	}
	return v
}

// compute runs one entry and returns the logits of its last row.
func (p *testPipeline) compute(e *shardv1.Entry, ids []uint32) []float32 {
	p.t.Helper()
	e.Rows, e.Logits = uint32(len(ids)), 1
	p.batch(ids, e)
	select {
	case row := <-p.rows:
		if string(row.GetSession()) != string(e.GetSession()) || row.GetPosition() != e.GetPosition()+e.GetRows()-1 {
			p.t.Fatalf("got the row of %s at %d", row.GetSession(), row.GetPosition())
		}
		x, err := wire.Whole(row.GetLogits(), nil)
		if err != nil {
			p.t.Fatal(err)
		}
		return x
	case f := <-p.frames:
		p.t.Fatalf("compute %d rows of %s at %d: %v", len(ids), e.GetSession(), e.GetPosition(), f)
	case err := <-p.ended:
		p.t.Fatalf("compute: the stream ended: %v", err)
	}
	return nil
}

// refused runs one entry that has to be refused with a code.
func (p *testPipeline) refused(e *shardv1.Entry, ids []uint32, want codes.Code) string {
	p.t.Helper()
	e.Rows, e.Logits = uint32(len(ids)), 1
	step := p.batch(ids, e)
	r := await(p, p.frames, "a refusal").GetRefused()
	if codes.Code(r.GetCode()) != want || r.GetStep() != step || string(r.GetSession()) != string(e.GetSession()) {
		p.t.Errorf("got %v, want a refusal with %v", r, want)
	}
	if c := await(p, p.frames, "the end of the batch").GetComputed(); c.GetStep() != step {
		p.t.Errorf("after a refusal: %v", c)
	}
	return r.GetMessage()
}

// end closes the pipeline and waits until all stages have ended it.
func (p *testPipeline) end() {
	p.t.Helper()
	if err := p.stream.CloseSend(); err != nil {
		p.t.Fatal(err)
	}
	select {
	case err := <-p.ended:
		if !errors.Is(err, io.EOF) {
			p.t.Errorf("the pipeline ended with %v", err)
		}
	case <-time.After(2 * time.Minute):
		p.t.Fatal("the pipeline does not end")
	}
}

// someIDs returns ids that look random and are the same every time.
func someIDs(n int) []uint32 {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(3 + i*i*31%500)
	}
	return ids
}

// pageIDs returns the ids from lo to hi-1.
func pageIDs(lo, hi int) []uint32 {
	var ids []uint32
	for i := lo; i < hi; i++ {
		ids = append(ids, uint32(i))
	}
	return ids
}

func TestInfer_PipelineNamesAreUniqueWhileOpen(t *testing.T) {
	r := newInferRig(t, 2, 0)
	p := r.mustOpen(pipelineName(1))
	if _, err := r.open(pipelineName(1)); fault.CodeOf(err) != fault.AlreadyExists {
		t.Errorf("the same name: %v", err)
	}
	p.compute(&shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: []uint32{3}}, someIDs(5))
	p.end()
	p = r.mustOpen(pipelineName(1))
	for _, h := range r.held() {
		if h.GetKvPagesUsed() != 0 || h.GetSessions() != 0 {
			t.Errorf("the former pipeline left something: %v", h)
		}
	}
	p.end()
}
