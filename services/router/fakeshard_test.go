package router_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// fakeShard is a stage whose KV cache is the ids themselves; they travel as hidden
// states of width 1. It keeps them in pages, as the router's block tables say.
type fakeShard struct {
	shardv1.UnimplementedShardServiceServer
	dialer *rpc.Dialer
	model  string
	digest string
	lo, hi uint32
	layers uint32 // of the model
	// encoder says that the model generates no text.
	encoder bool
	pages   uint32
	answer  func(log []uint32) uint32    // the best candidate after a log
	cost    func(rows int) time.Duration // how long a batch takes; nil for no time

	mu       sync.Mutex
	tables   map[string][]uint32 // block tables by session
	most     int                 // largest number of entries in a batch
	batches  int                 // batches received
	rows     uint64              // rows computed
	took     time.Duration       // for all of them
	again    int                 // rows of replays among them
	asked    int                 // descriptions given
	fault    func()              // the fault, which happens once
	at       int                 // the batch in which it happens
	silent   bool                // takes frames and answers none of them
	spoilt   bool                // computes rows, of which none is usable
	refuse   bool                // refuses every entry
	poison   uint32              // an id that ends the stream of whoever sends it; 0 for none
	poisoned int                 // how often it came
	busy     time.Duration       // what its last batch takes
	struck   int                 // sessions held when the fault happened
	lend     time.Duration       // how long a new pipeline waits for its pages
	faults   []string            // the router's violations of the protocol

	streams map[string]*fakePipeline // by the pipeline's name
	kept    map[string]*fakePipeline // of streams that broke
	forgets bool                     // it keeps nothing when a stream breaks

	adapters     map[string]string // the names of loaded adapters by digest
	loads        int               // adapters loaded so far
	refuseLoad   error             // for every adapter
	pauseLoad    chan struct{}     // closed when loads may go on; nil for at once
	unknownNamed int               // entries refused because of their adapter
}

func newFakeShard(d *rpc.Dialer, lo, hi int) *fakeShard {
	return &fakeShard{
		dialer: d, model: "fake", digest: digest, lo: uint32(lo), hi: uint32(hi), layers: 2, pages: 1024, answer: next,
		adapters: map[string]string{}, tables: map[string][]uint32{}, streams: map[string]*fakePipeline{},
		kept: map[string]*fakePipeline{},
	}
}

func (s *fakeShard) register(r grpc.ServiceRegistrar) { shardv1.RegisterShardServiceServer(r, s) }

func (s *fakeShard) sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tables)
}

// strike schedules a fault for a batch. The next batch is number 1.
func (s *fakeShard) strike(at int, fault func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.fault, s.struck = s.batches+at, fault, 0
}

// freeze makes the shard silent from a batch on: it gives no answer and no error.
func (s *fakeShard) freeze(at int) {
	s.strike(at, s.mute)
}

// mute makes the shard silent from the batch that it computes on.
func (s *fakeShard) mute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = true
}

// count counts a batch and runs the fault that is due.
func (s *fakeShard) count() (silent bool) {
	s.mu.Lock()
	s.batches++
	fault := s.fault
	if s.batches != s.at {
		fault = nil
	}
	if fault != nil {
		s.struck = len(s.tables)
	}
	s.mu.Unlock()
	if fault != nil {
		fault()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.silent
}

func (s *fakeShard) held() *shardv1.Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := &shardv1.Held{
		Adapters: s.heldAdapters(), Model: s.model, Digest: s.digest, Lo: s.lo, Hi: s.hi, Layers: s.layers, Width: 1,
		Vocab: vocab, Context: contextLen,
		Positions: contextLen, KvPages: s.pages, KvPageLen: pageLen, Sessions: uint32(len(s.tables)),
		Rows: s.rows, ComputeUs: uint64(s.took.Microseconds()), Encoder: s.encoder,
	}
	if s.encoder {
		held.EmbedTokens = contextLen
	}
	return held
}

func (s *fakeShard) Describe(context.Context, *shardv1.DescribeRequest) (*shardv1.DescribeResponse, error) {
	held := s.held()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return &shardv1.DescribeResponse{Held: []*shardv1.Held{held}, KernelClass: "fake/1"}, nil
}

// Infer is one pipeline. Its answers from downstream are relayed by a goroutine that
// ends with the stream.
func (s *fakeShard) Infer(up grpc.BidiStreamingServer[shardv1.InferRequest, shardv1.InferResponse]) (err error) {
	first, err := up.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	ctx, cancel := context.WithCancel(up.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	p := &fakePipeline{shard: s, up: up, names: map[string]bool{}, pages: map[uint32][]uint32{}, cancel: cancel,
		name: string(open.GetPipeline()), epoch: open.GetEpoch(), left: make(chan struct{})}
	if err := p.attach(ctx); err != nil {
		return err
	}
	defer func() {
		if err = rpc.FromStatus(err); errors.Is(err, io.EOF) { // of a Send
			err = fault.New(fault.Unavailable, "the stream downstream has ended")
		}
		p.end(err)
	}()
	opened, err := p.connect(ctx, open)
	if err != nil {
		return err
	}
	if err := p.answer(&shardv1.InferResponse{Frame: &shardv1.InferResponse_Opened{Opened: opened}}); err != nil {
		return err
	}
	if opened.GetStages()[0].Lease != nil {
		wg.Go(func() { p.grant(ctx) })
	}
	failed := make(chan error, 1)
	wg.Go(func() {
		failed <- p.relay()
		cancel()
	})
	work := make(chan *shardv1.InferRequest)
	go func() { // ends with the handler: Recv does
		defer close(work)
		for {
			r, err := up.Recv()
			if err != nil {
				return
			}
			select {
			case work <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case r, ok := <-work:
			if !ok {
				return up.Context().Err() // nil after a clean end
			}
			if err := p.take(ctx, r); err != nil {
				return err
			}
		case <-ctx.Done():
			select {
			case err := <-failed:
				return err
			default:
				return ctx.Err()
			}
		}
	}
}
