package shard_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
	"github.com/lamina-mesh/lamina/services/shard"
)

// onTwin returns a set on a twin that stands for a process in a container.
func onTwin(t *testing.T, container string, memory int64) *cuda.Set {
	t.Helper()
	d := twin.New(twin.Config{Devices: 1, Machine: twin.Simulated, Container: container})
	set, err := cuda.Open(d, cuda.Config{KV: kernel.KVAuto, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return set
}

// skipRace skips a test with the race detector, under which many steps of an interpreter take minutes. Others put the
// same memory and goroutines to use.
func skipRace(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("stages that an interpreter computes")
	}
}

// twins is a chain of two stages on twins.
func twins(t *testing.T, cfg shard.Config, containers ...string) *inferRig {
	t.Helper()
	cfg.Host = "here"
	var sets []kernel.Set[float32]
	for _, c := range containers {
		sets = append(sets, onTwin(t, c, 0))
	}
	return newInferRigWith(t, 2, cfg, sets...)
}

// sent returns how many hidden states the first stage has sent on a path.
func (r *inferRig) sent(path string) (n int) {
	r.t.Helper()
	all, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() != "lamina_shard_hidden_frames_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "path" && l.GetValue() == path {
					n += int(m.GetCounter().GetValue())
				}
			}
		}
	}
	return n
}

// device describes the device of the first stage.
func (r *inferRig) device() *shardv1.Device {
	r.t.Helper()
	d, err := r.shards[0].Describe(r.ctx, &shardv1.DescribeRequest{}, grpc.WaitForReady(true))
	if err != nil || len(d.GetInventory().GetAccelerators()) != 1 {
		r.t.Fatalf("%v: %v", d, err)
	}
	return d.GetInventory().GetAccelerators()[0]
}

// Hidden states have the same bits from device to device as over the wire.
func TestInfer_HiddenStatesFromDeviceToDevice(t *testing.T) {
	skipRace(t)
	const prompt = 3
	log := someIDs(pageLen)
	run := func(t *testing.T, path, why string, containers ...string) (all [][]float32) {
		r := twins(t, shard.Config{}, containers...)
		p := r.mustOpen(pipelineName(1))
		if got := r.device().GetOnWire(); (got == "") != (why == "") || !strings.Contains(got, why) {
			t.Errorf("hidden states go over the wire because of %q, want %q", got, why)
		}
		first := &shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: pageIDs(1, 2)}
		all = append(all, p.compute(first, log[:prompt]))
		// Chunks without logits: the last stage returns nothing of them that it would have to wait for.
		const chunks = 7
		for at := range chunks {
			e := &shardv1.Entry{Session: sessionName(4), Epoch: 1, Position: uint32(at), Rows: 1}
			if at == 0 {
				e.Pages = pageIDs(8, 9)
			}
			p.batch(log[at:at+1], e)
		}
		last := &shardv1.Entry{Session: sessionName(4), Epoch: 1, Position: chunks, Rows: 1, Logits: 1}
		p.batch(log[chunks:chunks+1], last)
		all = append(all, p.logits())
		for range chunks {
			if f := await(p, p.frames, "the end of a chunk"); f.GetComputed() == nil {
				t.Errorf("a chunk is answered by %v", f)
			}
		}
		p.batch(log[:3], &shardv1.Entry{Session: sessionName(2), Epoch: 1, Rows: 1, Logits: 1, Pages: pageIDs(4, 5)},
			&shardv1.Entry{Session: sessionName(3), Epoch: 1, Rows: 2, Logits: 1, Pages: pageIDs(6, 7)})
		for range 2 {
			all = append(all, p.logits())
		}
		// A step that is repeated gives the same. The slots have to be used again and again.
		for steps := 0; steps < 2 || r.sent(path) < chunks+3; steps++ {
			x := p.compute(&shardv1.Entry{Session: sessionName(1), Epoch: 1, Position: prompt}, log[prompt:prompt+1])
			if steps < 2 {
				all = append(all, x)
			}
		}
		if path == "wire" && r.sent("device") > 0 {
			t.Errorf("%d hidden states went from device to device", r.sent("device"))
		}
		p.end()
		return all
	}
	var want [][]float32
	t.Run("wire", func(t *testing.T) { want = run(t, "wire", "CUDA_ERROR_INVALID_VALUE", "a", "b") })
	t.Run("device", func(t *testing.T) {
		if got := run(t, "device", "", "a", "a"); !slices.EqualFunc(got, want, slices.Equal) {
			t.Error("other bits from device to device")
		}
	})
}

// Why hidden states go over the wire is said, and they do.
func TestInfer_WhatCannotBeSharedGoesOverTheWire(t *testing.T) {
	skipRace(t)
	alone := newInferRigWith(t, 2, shard.Config{}, onTwin(t, "", 0)).device().GetReservedBytes()
	for why, start := range map[string]func(t *testing.T) *inferRig{
		"the next stage is on another host or on no device": func(t *testing.T) *inferRig {
			return newInferRigWith(t, 2, shard.Config{Host: "here"}, onTwin(t, "", 0))
		},
		"cuda:0: out of device memory: want 2097152 bytes": func(t *testing.T) *inferRig {
			tight := onTwin(t, "", int64(alone)+1<<20)
			return newInferRigWith(t, 2, shard.Config{Host: "here"}, tight, onTwin(t, "", 0))
		},
		"CUDA_ERROR_INVALID_CONTEXT": func(t *testing.T) *inferRig { // two shards of one process
			set := onTwin(t, "", 0)
			return newInferRigWith(t, 2, shard.Config{Host: "here"}, set, set)
		},
	} {
		t.Run(why, func(t *testing.T) {
			r := start(t)
			before := r.device().GetReservedBytes()
			p := r.mustOpen(pipelineName(1))
			p.compute(&shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: pageIDs(1, 2)}, someIDs(2))
			if d := r.device(); !strings.Contains(d.GetOnWire(), why) || d.GetReservedBytes() != before {
				t.Errorf("%d bytes are reserved, %d before, and the reason is %q", d.GetReservedBytes(), before,
					d.GetOnWire())
			}
			if r.sent("device") != 0 || r.sent("wire") != 1 {
				t.Errorf("%d frames from device to device and %d over the wire", r.sent("device"), r.sent("wire"))
			}
			p.end()
		})
	}
}

// slotted is an upstream stage that a test plays: it offers memory and sends batches in its slots.
type slotted struct {
	*testPipeline
	set    *cuda.Set
	memory kernel.Exported[float32]
	width  int
}

const (
	testSlots = 2
	testRows  = 3 // of a slot
)

// offered opens a stream to the second stage as its upstream, with an offer that the test may change.
func offered(t *testing.T, r *inferRig, set *cuda.Set, change func(*shardv1.SharedMemory)) *slotted {
	t.Helper()
	s := &slotted{set: set, width: 64}
	var err error
	if s.memory, err = s.set.Export(testSlots * testRows * s.width); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.memory.Close)
	offer := &shardv1.SharedMemory{Handle: s.memory.Handle(), Slots: testSlots, Rows: testRows, DeviceHost: "here"}
	if change != nil {
		change(offer)
	}
	if s.testPipeline, err = r.openWith(1, &shardv1.InferOpen{Pipeline: pipelineName(1), Memory: offer}); err != nil {
		t.Fatal(err)
	}
	return s
}

// hidden returns rows that differ from each other.
func (s *slotted) hidden(rows int) []float32 {
	x := make([]float32, rows*s.width)
	for i := range x {
		x[i] = float32(i%17-8) / 8
	}
	return x
}

// frame returns a batch of one session with rows in a slot.
func (s *slotted) frame(slot uint32, rows int) *shardv1.Batch {
	s.step++
	return &shardv1.Batch{Step: s.step, Slot: proto.Uint32(slot), Entries: []*shardv1.Entry{{
		Session: sessionName(1), Epoch: 1, Rows: uint32(rows), Logits: 1, Pages: pageIDs(1, 2)}}}
}

// logits returns the next row that the sampler gets.
func (p *testPipeline) logits() []float32 {
	p.t.Helper()
	x, err := wire.Whole(await(p, p.rows, "a row").GetLogits(), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return x
}

func (s *slotted) sendBatch(b *shardv1.Batch) {
	s.t.Helper()
	s.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Batch{Batch: b}})
}

// A stage reads the slots that its upstream names, says when it has read them, also if it drops a batch, and gives what
// it gives for the same rows on the wire.
func TestInfer_AStageReadsSlots(t *testing.T) {
	r := twins(t, shard.Config{}, "a", "a")
	s := offered(t, r, onTwin(t, "a", 0), nil)
	if !s.opened.GetReadsMemory() || s.opened.GetMemoryRefused() != "" {
		t.Fatalf("the stage refuses the memory: %s", s.opened.GetMemoryRefused())
	}
	x := s.hidden(testRows)
	s.memory.Put(testRows*s.width, s.set.FromHost(x))
	s.memory.Put(0, s.set.FromHost(x[:2*s.width]))
	for round := range 2 {
		var got, want [][]float32
		for slot, rows := range []int{2, 3} {
			s.sendBatch(s.frame(uint32(slot), rows))
			got = append(got, s.logits())
		}
		for slot := range uint32(2) {
			if f := await(s.testPipeline, s.frames, "a slot"); f.GetTaken() == nil ||
				f.GetTaken().GetSlot() != slot {
				t.Fatalf("round %d: got %v, want slot %d", round, f, slot)
			}
		}
		for _, rows := range []int{2, 3} {
			b := s.frame(0, rows)
			b.Slot = nil
			b.Hidden, _ = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{rows, s.width}, x[:rows*s.width])
			s.sendBatch(b)
			want = append(want, s.logits())
		}
		// The row in the middle is left out.
		entries := func(b *shardv1.Batch) *shardv1.Batch {
			b.Entries = nil
			for i := range testRows {
				e := &shardv1.Entry{Session: sessionName(1 + i), Epoch: 1, Rows: 1, Logits: 1, Pages: pageIDs(1+i, 2+i)}
				b.Entries = append(b.Entries, e)
			}
			b.Entries[1].Logits = 2
			return b
		}
		s.sendBatch(entries(s.frame(1, testRows)))
		got = append(got, s.logits(), s.logits())
		onWire := entries(s.frame(1, testRows))
		onWire.Slot = nil
		onWire.Hidden, _ = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{testRows, s.width}, x)
		s.sendBatch(onWire)
		want = append(want, s.logits(), s.logits())
		for range 3 { // both refusals, and the slot
			await(s.testPipeline, s.frames, "the answers to a batch with a gap")
		}
		if !slices.EqualFunc(got, want, slices.Equal) {
			t.Error("other bits from a slot")
		}
	}
	refused := s.frame(1, 2)
	refused.Entries[0].Logits = 5
	s.sendBatch(refused)
	var said []string
	for range 3 {
		f := await(s.testPipeline, s.frames, "the end of a batch that is refused")
		said = append(said, fmt.Sprintf("%T", f.GetFrame()))
	}
	slices.Sort(said)
	if !slices.Equal(said, []string{"*shardv1.InferResponse_Computed", "*shardv1.InferResponse_Refused",
		"*shardv1.InferResponse_Taken"}) {
		t.Errorf("a batch that is refused is answered by %v", said)
	}
	s.end()
}

// A batch that does not fit the memory breaks the stream, and nothing else.
func TestInfer_SlotsAreChecked(t *testing.T) {
	r, set := twins(t, shard.Config{}, "a", "a"), onTwin(t, "a", 0)
	for what, send := range map[string]func(s *slotted){
		"batch.slot: slot 2 is not open":       func(s *slotted) { s.sendBatch(s.frame(2, 1)) },
		"4 rows are more than the 3 of a slot": func(s *slotted) { s.sendBatch(s.frame(0, 4)) },
		"the batch has a slot besides": func(s *slotted) {
			b := s.frame(0, 1)
			b.Hidden, _ = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{1, s.width}, s.hidden(1))
			s.sendBatch(b)
		},
		"slot 1 has not been taken yet": func(s *slotted) {
			for range 200 { // more than the stage can have taken before it sees the next
				s.sendBatch(s.frame(1, 1))
			}
		},
	} {
		s := offered(t, r, set, nil)
		send(s)
		if err := s.over(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: the stream ends with %v", what, err)
		}
	}
	p := r.mustOpen(pipelineName(3))
	p.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Batch{Batch: &shardv1.Batch{Step: 1, Ids: []uint32{5},
		Slot: proto.Uint32(0), Entries: []*shardv1.Entry{{Session: sessionName(1), Epoch: 1, Rows: 1, Logits: 1}}}}})
	if err := p.over(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "slot 0 is not open") {
		t.Errorf("a slot for the first stage: %v", err)
	}
	p = r.mustOpen(pipelineName(4)) // the shards are as they were
	p.compute(&shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: pageIDs(1, 2)}, someIDs(3))
	p.end()
}

// An offer that a stage cannot use is refused with a reason, and the pipeline opens.
func TestInfer_OffersAreChecked(t *testing.T) {
	skipRace(t)
	r, set := twins(t, shard.Config{}, "a", "a"), onTwin(t, "a", 0)
	for want, change := range map[string]func(*shardv1.SharedMemory){
		"open.memory.slots: 0 are not":      func(m *shardv1.SharedMemory) { m.Slots = 0 },
		"open.memory.slots: 65 are not":     func(m *shardv1.SharedMemory) { m.Slots = 65 },
		"open.memory.rows: 0 are not":       func(m *shardv1.SharedMemory) { m.Rows = 0 },
		"open.memory.rows: 4097 are not":    func(m *shardv1.SharedMemory) { m.Rows = 4097 },
		"it has 2097152 bytes":              func(m *shardv1.SharedMemory) { m.Slots, m.Rows = 64, 4096 },
		"of another host":                   func(m *shardv1.SharedMemory) { m.DeviceHost = "there" },
		"not what the handle was made for":  func(m *shardv1.SharedMemory) { m.Handle[len(m.Handle)-1]++ },
		"a handle of 3 bytes":               func(m *shardv1.SharedMemory) { m.Handle = m.Handle[:3] },
		"CUDA_ERROR_INVALID_VALUE (1): unk": func(m *shardv1.SharedMemory) { m.Handle[0]++ },
	} {
		s := offered(t, r, set, change)
		if said := s.opened.GetMemoryRefused(); s.opened.GetReadsMemory() || !strings.Contains(said, want) {
			t.Errorf("the stage says %q, want %q", said, want)
		}
		b := s.frame(0, 1)
		b.Slot = nil
		b.Hidden, _ = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{1, s.width}, s.hidden(1))
		s.sendBatch(b)
		await(s.testPipeline, s.rows, "a row")
		s.end()
	}
}

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
