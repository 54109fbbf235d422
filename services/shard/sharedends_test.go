package shard_test

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/shard"
)

// reading is a next stage that a test plays. It takes memory that it is offered, and what it answers to batches is up
// to the test.
type reading struct {
	shardv1.UnimplementedShardServiceServer
	batches chan *shardv1.Batch
	answers chan *shardv1.InferResponse
}

func (s *reading) Ping(context.Context, *shardv1.PingRequest) (*shardv1.PingResponse, error) {
	return &shardv1.PingResponse{DeviceHost: "here"}, nil
}

func (s *reading) Infer(up grpc.BidiStreamingServer[shardv1.InferRequest, shardv1.InferResponse]) error {
	if _, err := up.Recv(); err != nil {
		return err
	}
	opened := &shardv1.InferOpened{ReadsMemory: true, Stages: []*shardv1.Held{{}}, KernelClasses: []string{""}}
	if err := up.Send(&shardv1.InferResponse{Frame: &shardv1.InferResponse_Opened{Opened: opened}}); err != nil {
		return err
	}
	go func() {
		for {
			r, err := up.Recv()
			if err != nil {
				return
			}
			if b := r.GetBatch(); b != nil {
				s.batches <- b
			}
		}
	}()
	for {
		select {
		case a := <-s.answers:
			if err := up.Send(a); err != nil {
				return err
			}
		case <-up.Context().Done():
			return up.Context().Err()
		}
	}
}

// A next stage that does not give slots back gets further batches over the wire. One that gives back what it does not
// have breaks the stream.
func TestInfer_ANextStageThatKeepsSlots(t *testing.T) {
	skipRace(t)
	for _, slot := range []uint32{0, 4} { // the first one is given back twice
		r := newInferRigWith(t, 2, shard.Config{Host: "here"}, onTwin(t, "a", 0))
		next := &reading{batches: make(chan *shardv1.Batch, 16), answers: make(chan *shardv1.InferResponse, 16)}
		server := rpc.NewServer(rpc.ServerOptions{Log: slog.New(slog.DiscardHandler)})
		shardv1.RegisterShardServiceServer(server, next)
		l, err := rpc.Listen("mem:next", rpc.ListenOptions{Net: r.network})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(r.ctx)
		stopped := make(chan error, 1)
		go func() { stopped <- rpc.Serve(ctx, server, l, func() {}, rpc.DrainLimit(time.Second)) }()
		r.route[1].Address = "mem:next"
		p := r.mustOpen(pipelineName(1))
		for i := range 5 {
			p.batch(someIDs(1), &shardv1.Entry{Session: sessionName(1), Epoch: 1, Rows: 1, Pages: pageIDs(1, 2)})
			b := await(p, next.batches, "a batch")
			if (b.Slot != nil) != (i < 4) || i < 4 && int(b.GetSlot()) != i || (b.GetHidden() != nil) != (i >= 4) {
				t.Errorf("batch %d is in slot %d, with %d bytes besides", i, b.GetSlot(), b.GetHidden().GetSize())
			}
		}
		for range 2 {
			taken := &shardv1.InferResponse_Taken{Taken: &shardv1.Taken{Slot: slot}}
			next.answers <- &shardv1.InferResponse{Frame: taken}
		}
		if err := p.over(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "taken.slot") {
			t.Errorf("slot %d: the stream ends with %v", slot, err)
		}
		stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
}

// The memory of a stream that has ended is given back at once, and that of one that has broken after a while. Not more
// than a few wait so.
func TestInfer_TheMemoryOfABrokenStreamIsKeptForAWhile(t *testing.T) {
	const ring = 2 << 20
	// open opens a pipeline when the connection to the next stage is back.
	open := func(r *inferRig, n int) *testPipeline {
		for limit := time.Now().Add(2 * time.Minute); ; {
			p, err := r.open(pipelineName(n))
			if err == nil && r.device().GetOnWire() != "the next stage does not answer" {
				return p
			}
			if time.Now().After(limit) {
				t.Fatalf("open the next stage again: %v", err)
			}
			if err == nil {
				p.end()
			}
		}
	}
	broken := func(r *inferRig, n int) {
		p := open(r, n)
		if got := r.device().GetOnWire(); got != "" {
			t.Errorf("hidden states go over the wire: %s", got)
		}
		r.breakLink("shard-1")
		_ = p.over()
	}
	r := twins(t, shard.Config{RingGrace: time.Hour}, "a", "a")
	before := r.device().GetReservedBytes()
	p := r.mustOpen(pipelineName(1))
	if got := r.device().GetReservedBytes(); got != before+ring {
		t.Errorf("an open stream has reserved %d bytes, want %d", got-before, ring)
	}
	p.end()
	if got := r.device().GetReservedBytes(); got != before {
		t.Errorf("a stream that has ended has reserved %d bytes", got-before)
	}
	for n := range 4 {
		broken(r, 2+n)
		if got := r.device().GetReservedBytes(); got != before+uint64(n+1)*ring {
			t.Errorf("after %d streams that broke %d bytes are reserved", n+1, got-before)
		}
	}
	p = open(r, 6)
	if got := r.device(); got.GetReservedBytes() != before+4*ring ||
		got.GetOnWire() != "the memory of 4 streams that broke is not free yet" {
		t.Errorf("%d bytes are reserved: %q", got.GetReservedBytes()-before, got.GetOnWire())
	}
	p.end()

	r = twins(t, shard.Config{RingGrace: time.Nanosecond}, "a", "a")
	broken(r, 1)
	for r.device().GetReservedBytes() != before { // until it is free
		runtime.Gosched()
	}
}

// unclosable is a set that cannot close memory of other processes.
type unclosable struct{ *cuda.Set }

type stuck struct{ kernel.Imported[float32] }

func (s stuck) Close() error { return errors.Join(s.Imported.Close(), errors.New("it does not close")) }

func (s unclosable) Import(handle []byte, n int) (kernel.Imported[float32], error) {
	m, err := s.Set.Import(handle, n)
	return stuck{m}, err
}

// A next stage that ends the stream with an error has closed the memory, and it is given back at once. It is kept if
// that stage could not close it, even if the stream ends without an error.
func TestInfer_TheNextStageSaysWhetherTheMemoryIsClosed(t *testing.T) {
	skipRace(t)
	r := twins(t, shard.Config{RingGrace: time.Hour}, "a", "a")
	before, hi := r.device().GetReservedBytes(), r.route[1].GetHi()
	r.route[1].Hi = hi + 1 // it does not hold that
	for n := range 5 {     // more than may wait
		if p, err := r.open(pipelineName(1 + n)); err == nil {
			t.Fatalf("a pipeline opened: %v", p.opened)
		}
		if got := r.device().GetReservedBytes(); got != before {
			t.Fatalf("after stream %d, which was refused, %d bytes are reserved", n, got-before)
		}
	}
	r.route[1].Hi = hi
	p := r.mustOpen(pipelineName(6))
	if got := r.device(); got.GetOnWire() != "" || got.GetReservedBytes() == before {
		t.Errorf("hidden states go over the wire: %q", got.GetOnWire())
	}
	p.end()

	r = newInferRigWith(t, 2, shard.Config{Host: "here", RingGrace: time.Hour}, onTwin(t, "a", 0),
		unclosable{onTwin(t, "a", 0)})
	p = r.mustOpen(pipelineName(1))
	open := r.device().GetReservedBytes()
	p.end()
	if got := r.device().GetReservedBytes(); open == before || got != open {
		t.Errorf("%d bytes are reserved before the stream, %d while it is open and %d when it has ended", before, open,
			got)
	}
}

// When the device of either stage is lost, the pipeline ends, and the other device is as it was.
func TestInfer_TheDeviceOfANeighbourIsLost(t *testing.T) {
	fixtures.Path(t, "models/stories260K/stories260K-f32.gguf") // without it no device is lost
	for lost := range 2 {
		var sets []kernel.Set[float32]
		faults := []*twin.Faults{{}, {}}
		for i := range faults {
			d := twin.New(twin.Config{Devices: 1, Machine: twin.Simulated, Faults: faults[i]})
			set, err := cuda.Open(d, cuda.Config{KV: kernel.KVAuto})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := set.Close(); (err != nil) != (i == lost) {
					t.Errorf("device %d closes with %v", i, err)
				}
			})
			sets = append(sets, set)
		}
		r := newInferRigWith(t, 2, shard.Config{Host: "here"}, sets...)
		p := r.mustOpen(pipelineName(1))
		p.compute(&shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: pageIDs(1, 2)}, someIDs(3))
		if r.sent("device") != 1 {
			t.Fatalf("%d frames from device to device", r.sent("device"))
		}
		faults[lost].FailNext("CUDA_ERROR_ILLEGAL_ADDRESS")
		p.batch(someIDs(1), &shardv1.Entry{Session: sessionName(1), Epoch: 1, Position: 3, Rows: 1, Logits: 1})
		select {
		case err := <-p.ended:
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the pipeline ends with %v", err)
			}
		case <-r.ctx.Done():
			t.Fatal("the pipeline does not end")
		}
		for i, set := range sets {
			if err := set.(*cuda.Set).LostErr(); (err != nil) != (i == lost) {
				t.Errorf("device %d: %v, want that %d is lost", i, err, lost)
			}
		}
		on := sets[1-lost].(*cuda.Set)
		if got := on.Host(on.FromHost([]float32{1})); !slices.Equal(got, []float32{1}) {
			t.Error("the other device does not compute")
		}
	}
}
