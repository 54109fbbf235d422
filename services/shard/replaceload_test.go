package shard

// This test is internal because a load cannot be held up from outside.

import (
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// TestService_LoadsThatReplaceTheSameSpan lets a second placer replace a span that the load of the first one is about
// to replace. Its KV cache makes room for one of them, and it stays if the first placer has gone.
func TestService_LoadsThatReplaceTheSameSpan(t *testing.T) {
	files, err := model.Open(fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	set := cpu.New(1)
	s := New(Config{Kernels: set, KVPositions: 64, ID: "shard", Assignable: true, Memory: 1 << 40})
	defer func() {
		for _, err := range []error{s.Close(), files.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
		set.Close()
	}()
	old, next := model.Range{Lo: 3, Hi: 5}, model.Range{Lo: 2, Hi: 5}
	s.Offer("stories", "digest", files)
	if err := s.Hold("stories", "digest", files, old); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	h, o := s.held[0], s.offers["digest"]
	h.assigned = true
	cache := h.kvBytes(o)
	first := &load{digest: "digest", span: model.Range{Lo: 1, Hi: 5}, replaced: []*held{h}}
	s.loads = append(s.loads, first)
	all, _ := s.used()
	// Room for the new span, if the old cache went a second time.
	s.cfg.Memory = all + files.SpanBytes(next, old) + cache/int64(old.Len())*int64(next.Len()) - cache
	s.mu.Unlock()
	_, _, err = s.beginLoad(o, next, &shardv1.AssignRequest{Replaces: []*shardv1.Span{{Lo: 3, Hi: 5}}})
	if fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("a second load in place of the same span: %v", err)
	}
	if err := s.makeRoom(first); fault.CodeOf(err) != fault.Aborted || s.holds("digest", old) == nil {
		t.Errorf("a load for which no placer waits: %v, and the old span is %v", err, s.holds("digest", old))
	}
	first.waiting = 1
	if err := s.makeRoom(first); err != nil || s.holds("digest", old) != nil {
		t.Errorf("a load for which a placer waits: %v, and the old span is %v", err, s.holds("digest", old))
	}
}
