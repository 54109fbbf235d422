package router

// This test is internal because the placer is not exported.

import (
	"context"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
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

// TestPlacer_FencesGrowWhenTheRegistryIsOld takes the lock of a registry that was restored from an older snapshot: its
// plan has a lower fence than what this router or a shard knows. A placer that was deposed, in a registry that has the
// plan of its successor, still writes nothing.
func TestPlacer_FencesGrowWhenTheRegistryIsOld(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pipeline := func(host string) plan.Plan {
		return plan.Plan{Pipelines: []plan.Pipeline{{Digest: "d", Stages: []plan.Stage{{Host: host, Hi: 1}}}}}
	}
	for name, tc := range map[string]struct {
		stored uint64 // fence of the plan in the registry
		known  *plan.Document
		told   uint64 // by a shard
		want   fault.Code
		host   string // of the plan that is written
	}{
		"told by a shard": {stored: 5, told: 900, host: "old"},
		"known": {stored: 5, known: &plan.Document{Fence: 900, Version: 70, Plan: pipeline("new")}, told: 900,
			host: "new"},
		"deposed": {stored: 900, told: 900, want: fault.Aborted},
	} {
		registry := discovery.NewMemory()
		text, err := (&plan.Document{Fence: tc.stored, Version: 4, Plan: pipeline("old")}).Encode()
		if err == nil {
			err = registry.Swap(ctx, planKey, text, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		s := New(Config{})
		s.held["s"] = described{resp: &shardv1.DescribeResponse{Inventory: &shardv1.Inventory{Fence: tc.told}}}
		p := newPlacer(s, Placement{Registry: registry})
		p.doc = tc.known
		l := &leader{placer: p, token: 6}
		if err := l.claim(ctx); fault.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		doc, err := ReadPlan(ctx, registry)
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != fault.Unspecified:
			if doc.Fence != tc.stored || doc.Version != 4 {
				t.Errorf("%s: it has written %+v", name, doc)
			}
		case doc.Fence <= tc.told || doc.Fence != l.fence || doc.Plan.Pipelines[0].Stages[0].Host != tc.host:
			t.Errorf("%s: it has written %+v under fence %d, want the plan of %s", name, doc, l.fence, tc.host)
		}
	}
}
