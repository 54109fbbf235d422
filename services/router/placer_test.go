package router

// This test is internal because the placer is not exported.

import (
	"context"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// TestPlacer_FencesGrowWhenTheRegistryHasLostItsData takes the lock of an empty registry, whose tokens have begun anew,
// while this router or a shard knows a higher fence. The next holder goes on from there.
func TestPlacer_FencesGrowWhenTheRegistryHasLostItsData(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	known, told, fresh := New(Config{}), New(Config{}), New(Config{})
	told.held["s"] = described{resp: &shardv1.DescribeResponse{Inventory: &shardv1.Inventory{Fence: 900}}}
	hostile := &shardv1.DescribeResponse{Inventory: &shardv1.Inventory{Fence: 1<<64 - 1}}
	told.held["hostile"] = described{resp: hostile}
	for name, tc := range map[string]struct {
		s     *Service
		doc   *plan.Document
		above uint64
	}{
		"known": {known, &plan.Document{Fence: 900, Version: 7}, 900}, "told by a shard": {told, nil, 900},
		"a new mesh": {fresh, nil, 0},
	} {
		registry := discovery.NewMemory()
		claim := func(s *Service, doc *plan.Document, token uint64) *leader {
			t.Helper()
			p := newPlacer(s, Placement{Registry: registry})
			p.doc = doc
			l := &leader{placer: p, token: token}
			if err := l.claim(ctx); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return l
		}
		first := claim(tc.s, tc.doc, 3)
		if first.fence <= tc.above || first.doc.Fence != first.fence || tc.above == 0 && first.fence != 3 {
			t.Errorf("%s: the fence is %d, that of the plan %d", name, first.fence, first.doc.Fence)
		}
		if second := claim(fresh, nil, 4); second.fence != first.fence+1 {
			t.Errorf("%s: the fence of the next placer is %d after %d", name, second.fence, first.fence)
		}
	}
}
