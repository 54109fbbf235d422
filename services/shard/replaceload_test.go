package shard

// This test is internal because a load cannot be held up from outside.

import (
	"errors"
	"sync"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// replaceRig is a shard that holds layers 3 and 4 of stories260K by assignment, and the bytes of their cache.
type replaceRig struct {
	s     *Service
	h     *held
	o     *offer
	files *model.Files
	cache int64
}

func newReplaceRig(t *testing.T) *replaceRig {
	t.Helper()
	set := cpu.New(1)
	t.Cleanup(set.Close) // after what follows
	return newReplaceRigOn(t, set, 1<<40)
}

func newReplaceRigOn(t *testing.T, set kernel.Set[float32], memory int64) *replaceRig {
	t.Helper()
	files, err := model.Open(fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Kernels: set, KVPositions: 64, ID: "shard", Assignable: true, Memory: memory})
	t.Cleanup(func() {
		for _, err := range []error{s.Close(), files.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	s.Offer("stories", "digest", files)
	if err := s.Hold("stories", "digest", files, model.Range{Lo: 3, Hi: 5}); err != nil {
		t.Fatal(err)
	}
	h, o := s.held[0], s.offers["digest"]
	h.assigned, h.weightBytes = true, files.SpanBytes(h.stage.Range)
	return &replaceRig{s, h, o, files, h.kvBytes(o)}
}

// gate holds up the first read of a source, and fails all reads after the first of a tensor.
type gate struct {
	weights.Source
	reached, pass chan struct{} // closed at the first read, and to let it pass
	fail          bool

	mu   sync.Mutex
	read map[string]bool
}

func (g *gate) Data(name string) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.read) == 0 {
		close(g.reached)
		<-g.pass
	}
	if g.fail && g.read[name] {
		return nil, errors.New("read it again: the disk is gone")
	}
	g.read[name] = true
	return g.Source.Data(name)
}

// hold puts a gate in front of the model's files.
func (r *replaceRig) hold() *gate {
	g := &gate{Source: r.files.Source, reached: make(chan struct{}), pass: make(chan struct{}), read: map[string]bool{}}
	r.files.Source = g
	return g
}

// TestService_LoadsThatReplaceTheSameSpan lets a second placer replace a span that the load of the first one is about
// to replace. Its KV cache makes room for one of them, and it stays if the first placer has gone.
func TestService_LoadsThatReplaceTheSameSpan(t *testing.T) {
	r := newReplaceRig(t)
	s, h, o, files := r.s, r.h, r.o, r.files
	old, next := model.Range{Lo: 3, Hi: 5}, model.Range{Lo: 2, Hi: 5}
	s.mu.Lock()
	first := &load{digest: "digest", span: model.Range{Lo: 1, Hi: 5}, replaced: []*held{h}}
	s.loads = append(s.loads, first)
	all, _ := s.used()
	// Room for the new span, if the old cache went a second time.
	s.cfg.Memory = all + files.SpanBytes(next, old) + r.cache/int64(old.Len())*int64(next.Len()) - r.cache
	s.mu.Unlock()
	_, _, err := s.beginLoad(o, next, &shardv1.AssignRequest{Replaces: []*shardv1.Span{{Lo: 3, Hi: 5}}})
	if fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("a second load in place of the same span: %v", err)
	}
	if _, err := s.makeRoom(first); fault.CodeOf(err) != fault.Aborted || s.holds("digest", old) == nil {
		t.Errorf("a load for which no placer waits: %v, and the old span is %v", err, s.holds("digest", old))
	}
	first.waiting = 1
	if _, err := s.makeRoom(first); err != nil || s.holds("digest", old) != nil {
		t.Errorf("a load for which a placer waits: %v, and the old span is %v", err, s.holds("digest", old))
	}
}

// TestService_ALoadThatFailsLeavesTheOldSpan lets loads in place of a span fail after all has been read. Where both
// have room beside the old cache the old span serves on; where the cache had to go first, the span is taken back.
func TestService_ALoadThatFailsLeavesTheOldSpan(t *testing.T) {
	for name, tc := range map[string]struct {
		next  model.Range
		spare int64 // bytes beside the new span in place of the old one
		taken bool  // the old span goes
		back  bool  // and comes back
	}{
		"room for the weights": {next: model.Range{Lo: 2, Hi: 5}, spare: 1 << 20, back: true},
		"no room":              {next: model.Range{Lo: 0, Hi: 1}, taken: true, back: true},
		"memory is gone":       {next: model.Range{Lo: 0, Hi: 1}, taken: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplaceRig(t)
			g := r.hold()
			g.fail = true
			s, old := r.s, r.h.stage.Range
			s.mu.Lock()
			all, _ := s.used()
			s.cfg.Memory = all - r.cache + r.files.SpanBytes(tc.next, old) +
				r.cache/int64(old.Len())*int64(tc.next.Len()) + tc.spare
			s.mu.Unlock()
			l, _, err := s.beginLoad(r.o, tc.next, &shardv1.AssignRequest{
				Lo: uint32(tc.next.Lo), Hi: uint32(tc.next.Hi), Replaces: []*shardv1.Span{{Lo: 3, Hi: 5}}})
			if err != nil {
				t.Fatal(err)
			}
			<-g.reached
			if tc.taken && !tc.back {
				s.mu.Lock()
				s.cfg.Memory = r.files.SpanBytes(old)
				s.mu.Unlock()
			}
			close(g.pass)
			<-l.done
			s.leaveLoad(l)
			if fault.CodeOf(l.err) != fault.FailedPrecondition {
				t.Errorf("the load: %v", l.err)
			}
			h := s.holds("digest", old)
			if (h != nil) != tc.back || tc.back && (h != r.h) != tc.taken {
				t.Errorf("the old span is %p, before it was %p", h, r.h)
			}
			if h != nil && (h.unloaded || !h.assigned || h.weightBytes != r.h.weightBytes ||
				h.kvBytes(r.o) != r.cache) {
				t.Errorf("the span that is back: assigned %v, %d bytes", h.assigned, h.weightBytes)
			}
			if now, _ := s.used(); tc.back && now != all {
				t.Errorf("it counts %d bytes, before it was %d", now, all)
			}
		})
	}
}

// TestService_ALoadInPlaceOfOthersEndsWithItsPlacer gives up a replacement while it reads: nobody waits for it any
// more, since the plan wants the old span again.
func TestService_ALoadInPlaceOfOthersEndsWithItsPlacer(t *testing.T) {
	r := newReplaceRig(t)
	g := r.hold()
	l, _, err := r.s.beginLoad(r.o, model.Range{Lo: 2, Hi: 5},
		&shardv1.AssignRequest{Replaces: []*shardv1.Span{{Lo: 3, Hi: 5}}})
	if err != nil {
		t.Fatal(err)
	}
	<-g.reached
	r.s.leaveLoad(l)
	close(g.pass)
	<-l.done
	if fault.CodeOf(l.err) != fault.Aborted || r.s.holds("digest", model.Range{Lo: 3, Hi: 5}) != r.h {
		t.Errorf("the load ended with %v", l.err)
	}
	if got, want := len(g.read), len(r.files.Span(l.span, r.h.stage.Range)); got >= want {
		t.Errorf("%d of %d tensors were read", got, want)
	}
}

// TestService_AGPUTakesTheOldSpanBackWithoutRoomForTheNewOne has something else take the memory of a GPU that the old
// span has freed for the new one.
func TestService_AGPUTakesTheOldSpanBackWithoutRoomForTheNewOne(t *testing.T) {
	set, err := cuda.Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), cuda.Config{KV: kernel.KVAuto})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	r := newReplaceRigOn(t, set, 0)
	s, old := r.s, r.h.stage.Range
	before := set.Device().Reserved
	l := &load{digest: "digest", span: model.Range{Lo: 4, Hi: 5}, replaced: []*held{r.h}, waiting: 1,
		room: &room{kv: 1 << 50, later: 1 << 50}} // no GPU has it
	_, room, err := s.loadSpan(l, r.o, []*model.Stage[float32]{r.h.stage}, 1, nil)
	if fault.CodeOf(err) != fault.Exhausted || !room || s.holds("digest", old) != nil {
		t.Fatalf("the load ends with %v, the old span is unloaded: %v", err, room)
	}
	s.mu.Lock()
	s.takeBack(l)
	s.mu.Unlock()
	if s.holds("digest", old) == nil || set.Device().Reserved != before {
		t.Errorf("the old span is %v, %d bytes are reserved, %d before", s.holds("digest", old),
			set.Device().Reserved, before)
	}
}
