package shard_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
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
	skipRace(t)
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
	skipRace(t)
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
