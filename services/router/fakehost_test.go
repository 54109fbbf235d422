package router_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// Sizes of the models of a fakeHost. A layer with its KV cache takes less than 2 kB.
const (
	fakeLayers     = 2
	fakeLayerBytes = 1000
	fakeKVBytes    = 1
)

// fakeHost is a shard that takes assignments. Each span that it holds is a fakeShard.
type fakeHost struct {
	shardv1.UnimplementedShardServiceServer
	mesh   *mesh
	id     string
	memory uint64

	encoder bool // its models are encoders

	mu      sync.Mutex
	offers  map[string]string // names of models by digest
	spans   map[string]*fakeShard
	load    time.Duration    // of a span
	refuse  map[string]error // of loads, by digest
	refused int              // loads
	busy    int              // calls of Embed that are refused before the others are answered
	lows    []bool           // which of those that were answered have no priority
	ruin    func(*fakeShard) // is called with each new span
	started map[string]bool  // digests of which a span was loaded
	loading []*shardv1.Loading
	late    func() time.Duration // of an answer to Describe; nil for none
	frozen  bool                 // it answers no Describe
	closed  map[string]bool      // digests of which no pipeline can be opened
}

// addHost starts a host with room for some whole models, which offers models by their digests.
func (m *mesh) addHost(name string, models int, offers map[string]string) *fakeHost {
	kv := fakeLayers * fakeKVBytes * contextLen
	memory := uint64(float64(models*(fakeLayers*fakeLayerBytes+kv)+kv/2) / 0.8)
	h := &fakeHost{mesh: m, id: name, memory: memory, offers: offers, spans: map[string]*fakeShard{},
		refuse: map[string]error{}, started: map[string]bool{}, closed: map[string]bool{}}
	m.add(name, func(r grpc.ServiceRegistrar) { shardv1.RegisterShardServiceServer(r, h) })
	return h
}

func spanKey(digest string, lo, hi uint32) string { return fmt.Sprintf("%s %d-%d", digest, lo, hi) }

func (h *fakeHost) Describe(ctx context.Context, _ *shardv1.DescribeRequest) (*shardv1.DescribeResponse, error) {
	h.mu.Lock()
	late, frozen := h.late, h.frozen
	h.mu.Unlock()
	if frozen {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if late != nil {
		time.Sleep(late()) // virtual time
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	out := &shardv1.DescribeResponse{KernelClass: "fake/1", Instance: h.id, Inventory: &shardv1.Inventory{
		Assignable: true, MemoryBytes: h.memory, Loading: slices.Clone(h.loading),
	}}
	for digest, name := range h.offers {
		out.Inventory.Offers = append(out.Inventory.Offers, &shardv1.Offer{
			Model: name, Digest: digest, LayerBytes: []uint64{fakeLayerBytes, fakeLayerBytes}, KvBytes: fakeKVBytes,
			HiddenBytes: 4, Context: contextLen, Encoder: h.encoder,
		})
		out.Inventory.Times = append(out.Inventory.Times,
			&shardv1.LayerTime{Digest: digest, LayerBytes: fakeLayerBytes, DecodeMs: 1, RowMs: 0.25})
	}
	for _, s := range h.spans {
		held := s.held()
		held.Assigned, held.WeightBytes = true, fakeLayerBytes*uint64(held.GetHi()-held.GetLo())
		out.Held = append(out.Held, held)
	}
	slices.SortFunc(out.Held, func(a, b *shardv1.Held) int { return int(a.GetLo()) - int(b.GetLo()) })
	return out, nil
}

// holds reports whether a span of a model is held.
func (h *fakeHost) holds(digest string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.spans {
		if s.digest == digest {
			return true
		}
	}
	return false
}

// shut ends all pipelines over the spans of a model and lets nobody open others, or lets them again.
func (h *fakeHost) shut(digest string, shut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed[digest] = shut
	for _, s := range h.spans {
		s.mu.Lock()
		for _, p := range s.streams {
			if shut && s.digest == digest {
				p.cancel()
			}
		}
		s.mu.Unlock()
	}
}

func (h *fakeHost) Assign(r *shardv1.AssignRequest, stream grpc.ServerStreamingServer[shardv1.AssignResponse]) error {
	h.mu.Lock()
	err, took, name := h.refuse[r.GetDigest()], h.load, h.offers[r.GetDigest()]
	if err != nil {
		h.refused++
	}
	kv := uint64(fakeLayers * fakeKVBytes * contextLen)
	if n := uint64(len(h.spans) + 1); err == nil && n*(fakeLayers*fakeLayerBytes+kv) > h.memory {
		err = fault.New(fault.Exhausted, "assign layers: %d spans do not fit", n)
	}
	l := &shardv1.Loading{Digest: r.GetDigest(), Lo: r.GetLo(), Hi: r.GetHi(), DoneBytes: 100, TotalBytes: 1000}
	if err == nil && took > 0 {
		h.loading = append(h.loading, l)
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	time.Sleep(took) // virtual time
	h.mu.Lock()
	h.loading = slices.DeleteFunc(h.loading, func(other *shardv1.Loading) bool { return other == l })
	s := newFakeShard(h.mesh.dialer, int(r.GetLo()), int(r.GetHi()))
	s.model, s.digest, s.answer, s.encoder = name, r.GetDigest(), answerOf(r.GetDigest()), h.encoder
	s.cost = func(int) time.Duration { return 20 * time.Millisecond }
	if h.ruin != nil {
		h.ruin(s)
	}
	h.spans[spanKey(r.GetDigest(), r.GetLo(), r.GetHi())] = s
	h.started[r.GetDigest()] = true
	h.mu.Unlock()
	return stream.Send(&shardv1.AssignResponse{Frame: &shardv1.AssignResponse_Held{Held: s.held()}})
}

func (h *fakeHost) Unload(r *shardv1.UnloadRequest, stream grpc.ServerStreamingServer[shardv1.UnloadResponse]) error {
	key := spanKey(r.GetDigest(), r.GetLo(), r.GetHi())
	h.mu.Lock()
	s := h.spans[key]
	delete(h.spans, key)
	h.mu.Unlock()
	if s == nil {
		return stream.Send(&shardv1.UnloadResponse{Done: true})
	}
	if err := stream.Send(&shardv1.UnloadResponse{Pipelines: 1}); err != nil {
		return err
	}
	end := time.Now().Add(time.Duration(r.GetGraceMs()) * time.Millisecond)
	for {
		s.mu.Lock()
		open := len(s.streams)
		if !time.Now().Before(end) {
			for _, p := range s.streams {
				p.cancel()
			}
		}
		s.mu.Unlock()
		if open == 0 {
			return stream.Send(&shardv1.UnloadResponse{Done: true})
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// firstRead is a stream whose first frame was read already.
type firstRead[Req, Resp any] struct {
	grpc.BidiStreamingServer[Req, Resp]
	first *Req
}

func (f *firstRead[Req, Resp]) Recv() (*Req, error) {
	if first := f.first; first != nil {
		f.first = nil
		return first, nil
	}
	return f.BidiStreamingServer.Recv()
}

func (h *fakeHost) Infer(up grpc.BidiStreamingServer[shardv1.InferRequest, shardv1.InferResponse]) error {
	first, err := up.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	hop := open.GetRoute()[0]
	h.mu.Lock()
	s, closed := h.spans[spanKey(open.GetDigest(), hop.GetLo(), hop.GetHi())], h.closed[open.GetDigest()]
	h.mu.Unlock()
	if closed {
		return fault.New(fault.Internal, "open pipeline: the device is out of memory")
	}
	if s == nil {
		return fault.New(fault.NotFound, "open pipeline: layers %d-%d of %s are not held", hop.GetLo(), hop.GetHi(),
			open.GetDigest())
	}
	return s.Infer(&firstRead[shardv1.InferRequest, shardv1.InferResponse]{up, first})
}

// Embed refuses the calls that are too many, and answers others with zeros.
func (h *fakeHost) Embed(stream grpc.BidiStreamingServer[shardv1.EmbedRequest, shardv1.EmbedResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	h.mu.Lock()
	busy := h.busy > 0
	h.busy = max(0, h.busy-1)
	if !busy {
		h.lows = append(h.lows, first.GetOpen().GetLow())
	}
	h.mu.Unlock()
	if busy {
		return fault.New(fault.Unavailable, "embed texts: 16 calls are running").Because("QUEUE_FULL")
	}
	open, rows := first.GetOpen(), 0
	for _, n := range open.GetLengths() {
		rows += int(n)
	}
	if open.GetHi() == fakeLayers {
		rows = len(open.GetLengths())
	}
	head, chunks := wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{rows, 1}, make([]float32, rows))
	if err := stream.Send(&shardv1.EmbedResponse{Frame: &shardv1.EmbedResponse_Result{Result: head}}); err != nil {
		return err
	}
	for _, c := range chunks {
		if err := stream.Send(&shardv1.EmbedResponse{Frame: &shardv1.EmbedResponse_Chunk{Chunk: c}}); err != nil {
			return err
		}
	}
	return nil
}

// LoadAdapter loads an adapter into the span that it is for.
func (h *fakeHost) LoadAdapter(
	up grpc.BidiStreamingServer[shardv1.LoadAdapterRequest, shardv1.LoadAdapterResponse],
) error {
	first, err := up.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	h.mu.Lock()
	s := h.spans[spanKey(open.GetDigest(), open.GetLo(), open.GetHi())]
	h.mu.Unlock()
	if s == nil {
		return fault.New(fault.NotFound, "load adapter: layers %d-%d of %s are not held", open.GetLo(), open.GetHi(),
			open.GetDigest())
	}
	return s.LoadAdapter(&firstRead[shardv1.LoadAdapterRequest, shardv1.LoadAdapterResponse]{up, first})
}

// answerOf returns the fake model of a digest. Models of other digests than the usual one give other tokens.
func answerOf(d string) func([]uint32) uint32 {
	if d == digest {
		return next
	}
	shift := uint32(len(d))
	return func(log []uint32) uint32 { return 'a' + (next(log)-'a'+shift)%26 }
}

// expectOf returns the text of n tokens that the fake model of a digest gives after a prompt.
func expectOf(d, prompt string, n int) string {
	answer := answerOf(d)
	var log []uint32
	for _, b := range []byte(prompt) {
		log = append(log, uint32(b))
	}
	var text []byte
	for i := range n {
		id := picked(answer(log), i)
		log = append(log, id)
		text = append(text, byte(id))
	}
	return string(text)
}
