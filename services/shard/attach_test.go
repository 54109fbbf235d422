package shard_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/shard"
)

// mustOpenEpoch opens a pipeline under an epoch.
func (r *inferRig) mustOpenEpoch(name []byte, epoch uint64) *testPipeline {
	r.t.Helper()
	p, err := r.openFrom(0, name, epoch)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// reopen opens a pipeline again until the broken connections are back, as a router does: each try has a
// higher epoch.
func (r *inferRig) reopen(name []byte, epoch uint64) *testPipeline {
	r.t.Helper()
	for limit := time.Now().Add(time.Minute); ; epoch++ {
		p, err := r.openFrom(0, name, epoch)
		switch {
		case err == nil:
			return p
		case time.Now().After(limit):
			r.t.Fatal(err)
		}
	}
}

// resumed returns what each stage says about a pipeline that was opened again.
func (p *testPipeline) resumed() (all []bool) {
	for _, h := range p.opened.GetStages() {
		all = append(all, h.GetResumed())
	}
	return all
}

// over waits for the end of a pipeline's stream.
func (p *testPipeline) over() error {
	p.t.Helper()
	select {
	case err := <-p.ended:
		return rpc.FromStatus(err)
	case <-time.After(2 * time.Minute):
		p.t.Fatal("the stream does not end")
	}
	return nil
}

// eventually polls what the stages hold until a condition is true for each of them.
func (r *inferRig) eventually(what string, ok func(*shardv1.Held) bool) {
	r.t.Helper()
	for limit := time.After(2 * time.Minute); ; {
		held := r.held()
		if !slices.ContainsFunc(held, func(h *shardv1.Held) bool { return !ok(h) }) {
			return
		}
		select {
		case <-limit:
			r.t.Fatalf("%s: %v", what, held)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// breakLink breaks all connections to a service and lets new ones through.
func (r *inferRig) breakLink(name string) {
	r.network.Cut(name, true)
	r.network.Cut(name, false)
}

// TestInfer_ReattachesAfterABrokenLink breaks each link of a chain in turn. Every stage keeps its pages,
// and the session goes on with the same bits from the position that it had reached.
func TestInfer_ReattachesAfterABrokenLink(t *testing.T) {
	log, s := someIDs(3*pageLen), sessionName(1)
	for _, name := range []string{"shard-0", "shard-1", "shard-2", "sampler"} {
		t.Run(name, func(t *testing.T) {
			r := newInferRig(t, 3, 0)
			p := r.mustOpenEpoch(pipelineName(1), 1)
			if got := p.resumed(); slices.Contains(got, true) {
				t.Errorf("a new pipeline resumed %v", got)
			}
			const at = 2*pageLen + 5 // the last page is not full
			p.compute(&shardv1.Entry{Session: s, Epoch: 1, Pages: pageIDs(4, 7)}, log[:at])
			want := p.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: at}, log[at:])

			r.breakLink(name)
			_ = p.over()
			p = r.reopen(pipelineName(1), 2)
			if got := p.resumed(); slices.Contains(got, false) {
				t.Fatalf("resumed %v", got)
			}
			p.refused(&shardv1.Entry{Session: s, Epoch: 1, Position: at}, log[at:], codes.FailedPrecondition)
			got := p.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: at, Pages: pageIDs(4, 7)}, log[at:])
			if !slices.Equal(got, want) {
				t.Error("other bits on the pages that were kept")
			}
			// Pages that were not mapped before are not vouched for.
			e := &shardv1.Entry{Session: sessionName(2), Epoch: 1, Position: at, Pages: pageIDs(7, 10)}
			p.refused(e, log[at:], codes.FailedPrecondition)
			p.end()
			for _, h := range r.held() {
				if h.GetKvPagesUsed() != 0 || h.GetSessions() != 0 || h.GetPipelines() != 0 {
					t.Errorf("the pipeline left something: %v", h)
				}
			}
		})
	}
}

// TestInfer_AHigherEpochFencesTheFormerStream opens a pipeline again while its stream lives.
func TestInfer_AHigherEpochFencesTheFormerStream(t *testing.T) {
	r := newInferRig(t, 2, 0)
	log, s := someIDs(2*pageLen), sessionName(1)
	old := r.mustOpenEpoch(pipelineName(1), 7)
	want := old.compute(&shardv1.Entry{Session: s, Epoch: 1, Pages: pageIDs(0, 2)}, log)
	for _, epoch := range []uint64{0, 1, 7} {
		if _, err := r.openFrom(0, pipelineName(1), epoch); fault.CodeOf(err) != fault.AlreadyExists {
			t.Errorf("epoch %d after 7: %v", epoch, err)
		}
	}
	// A route that does not fit ends nothing.
	route := r.route
	r.route = route[:1]
	if _, err := r.openFrom(0, pipelineName(1), 8); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a route that does not fit: %v", err)
	}
	r.route = route
	old.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: 3}, log[3:])

	p := r.mustOpenEpoch(pipelineName(1), 8)
	if got := p.resumed(); slices.Contains(got, false) {
		t.Errorf("resumed %v", got)
	}
	// A late frame on the old stream writes to no page and gives no row.
	old.batch(
		[]uint32{9, 9},
		&shardv1.Entry{Session: s, Epoch: 2, Position: 3, Rows: 2, Logits: 1, Pages: pageIDs(0, 2)},
	)
	if err := old.over(); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("the old stream ended with %v", err)
	}
	e := &shardv1.Entry{Session: s, Epoch: 1, Position: 2*pageLen - 1, Pages: pageIDs(0, 2)}
	got := p.compute(e, log[2*pageLen-1:])
	if !slices.Equal(got, want) {
		t.Error("other bits after a late frame")
	}
	if _, err := r.openFrom(0, pipelineName(1), 8); fault.CodeOf(err) != fault.AlreadyExists {
		t.Errorf("the same epoch again: %v", err)
	}
	last := r.mustOpenEpoch(pipelineName(1), math.MaxUint64)
	_ = p.over()
	last.end()
}

// TestInfer_ADetachedPipelineIsFreed shows when a stage keeps nothing.
func TestInfer_ADetachedPipelineIsFreed(t *testing.T) {
	open := func(t *testing.T, grace time.Duration, epoch uint64) (*inferRig, *testPipeline) {
		r := newInferRigWith(t, 2, shard.Config{Grace: grace})
		p := r.mustOpenEpoch(pipelineName(1), epoch)
		p.compute(&shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: pageIDs(0, 2)}, someIDs(20))
		return r, p
	}
	empty := func(t *testing.T, r *inferRig) {
		t.Helper()
		p := r.reopen(pipelineName(1), 100)
		if got := p.resumed(); slices.Contains(got, true) {
			t.Errorf("resumed %v", got)
		}
		for i, h := range r.held() {
			if h.GetKvPagesUsed() != 0 {
				t.Errorf("stage %d still holds %d pages", i, h.GetKvPagesUsed())
			}
		}
		p.end()
	}
	t.Run("after the grace period", func(t *testing.T) {
		r, p := open(t, 50*time.Millisecond, 1)
		r.breakLink("shard-0")
		_ = p.over()
		r.eventually("the pages are freed", func(h *shardv1.Held) bool { return h.GetKvPagesUsed() == 0 })
		empty(t, r)
	})
	t.Run("for a pipeline of another name", func(t *testing.T) {
		r, p := open(t, time.Hour, 1)
		r.breakLink("shard-1")
		_ = p.over()
		r.eventually("the pipeline is detached", func(h *shardv1.Held) bool { return h.GetSessions() == 0 })
		for { // through the second stage alone
			if other, err := r.openFrom(1, pipelineName(2), 1); err == nil {
				if h := other.opened.GetStages()[0]; h.GetLease() != cachePages || h.GetKvPagesUsed() != 0 {
					t.Errorf("the other pipeline opened with %v", h)
				}
				other.end()
				break
			}
		}
		p = r.reopen(pipelineName(1), 2)
		if got := fmt.Sprint(p.resumed()); got != "[true false]" {
			t.Errorf("resumed %v", got)
		}
		p.end()
	})
	t.Run("with epoch 0", func(t *testing.T) {
		r, p := open(t, time.Hour, 0)
		r.breakLink("shard-0")
		_ = p.over()
		empty(t, r)
	})
	t.Run("after a clean end", func(t *testing.T) {
		r, p := open(t, time.Hour, 1)
		p.end()
		empty(t, r)
	})
	t.Run("after its own fault", func(t *testing.T) {
		r, p := open(t, time.Hour, 1)
		p.batch(nil, &shardv1.Entry{Session: sessionName(1), Epoch: 1, Rows: 1})
		_ = p.over()
		q := r.reopen(pipelineName(1), 2)
		if got := q.resumed(); got[0] {
			t.Errorf("resumed %v", got)
		}
		q.end()
	})
	t.Run("that owes pages", func(t *testing.T) {
		r, p := open(t, time.Hour, 1)
		q := r.mustOpenEpoch(pipelineName(2), 1)
		p.wantLeases(cachePages / 2)
		r.breakLink("shard-1") // which breaks both
		_ = p.over()
		_ = q.over()
		q = r.reopen(pipelineName(2), 2)
		if got := q.resumed(); slices.Contains(got, false) {
			t.Errorf("the other pipeline resumed %v", got)
		}
		r.eventually("the other pipeline has all pages", func(h *shardv1.Held) bool {
			return h.GetPipelines() == 1 && h.GetLeases()[0].GetPages() == cachePages
		})
		q.end()
	})
}

// TestInfer_LeasesAfterAReattachment lets a detached pipeline come back to a span that it shares.
func TestInfer_LeasesAfterAReattachment(t *testing.T) {
	r := newInferRig(t, 2, 0)
	a := r.mustOpenEpoch(pipelineName(1), 1)
	b := r.mustOpenEpoch(pipelineName(2), 1)
	a.release(&shardv1.Release{Leases: a.wantLeases(cachePages / 2)})
	b.wantLeases(cachePages / 2)
	a.compute(&shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: pageIDs(0, 8)}, someIDs(20))
	next := r.mustOpenEpoch(pipelineName(1), 2) // while the other one lives
	_ = a.over()
	for _, h := range next.opened.GetStages() {
		if !h.GetResumed() || h.GetLease() != cachePages/2 || h.GetPipelines() != 2 {
			t.Errorf("after the re-attachment: %v", h)
		}
	}
	r.checkGrants()
	e := &shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: []uint32{9}}
	next.refused(e, someIDs(3), codes.ResourceExhausted)
	next.release(&shardv1.Release{Pages: pageIDs(0, 16)})
	next.compute(&shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: []uint32{9}}, someIDs(3))
	b.end()
	next.wantLeases(cachePages)
	next.end()
}
