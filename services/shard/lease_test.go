package shard_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// wantLeases waits for one lease of each stage and compares their pages.
func (p *testPipeline) wantLeases(pages uint32) []*shardv1.Lease {
	p.t.Helper()
	var out []*shardv1.Lease
	for range p.route {
		l := await(p, p.leases, "a lease")
		if l.GetPages() != pages {
			p.t.Errorf("lease %v, want %d pages", l, pages)
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b *shardv1.Lease) int { return int(a.GetLo()) - int(b.GetLo()) })
	for i, hop := range p.route {
		if out[i].GetLo() != hop.GetLo() {
			p.t.Errorf("leases %v are not one of each stage", out)
		}
	}
	return out
}

// checkGrants compares the grants of all stages with the pages that there are.
func (r *inferRig) checkGrants() {
	r.t.Helper()
	for _, h := range r.held() {
		granted := uint32(0)
		for _, l := range h.GetLeases() {
			granted += l.GetPages()
			if l.GetUsed() > l.GetPages() {
				r.t.Errorf("a pipeline has mapped more than it is granted: %v", h)
			}
		}
		if granted > cachePages || int(h.GetPipelines()) != len(h.GetLeases()) || h.GetKvPagesUsed() > cachePages {
			r.t.Errorf("more is granted than there is: %v", h)
		}
	}
}

// TestInfer_ASecondPipelineGetsItsShare opens a pipeline while another one holds every page. Both go on.
func TestInfer_ASecondPipelineGetsItsShare(t *testing.T) {
	r := newInferRig(t, 3, 0)
	a := r.mustOpen(pipelineName(1))
	for _, h := range a.opened.GetStages() {
		if h.Lease == nil || h.GetLease() != cachePages {
			t.Errorf("the first pipeline opened with %v", h)
		}
	}
	log := someIDs(cachePages * pageLen)
	s := sessionName(1)
	a.compute(&shardv1.Entry{Session: s, Epoch: 1, Pages: pageIDs(0, cachePages)}, log[:8*pageLen-1])
	want := a.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: 8*pageLen - 1}, []uint32{11})

	b := r.mustOpen(pipelineName(2))
	for _, h := range b.opened.GetStages() {
		if h.Lease == nil || h.GetLease() != 0 || h.GetPipelines() < 2 {
			t.Errorf("the second pipeline opened with %v", h)
		}
	}
	first := func() *shardv1.Entry { return &shardv1.Entry{Session: sessionName(2), Epoch: 1, Pages: []uint32{0}} }
	b.refused(first(), log[:3], codes.ResourceExhausted)
	leases := a.wantLeases(cachePages / 2)
	// Until it has shrunk, the first pipeline uses what it has.
	if got := a.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: 8*pageLen - 1}, []uint32{11}); !slices.Equal(got,
		want) {
		t.Error("other bits while it is asked to shrink")
	}
	// It drops half of the pages in one frame with the acknowledgements. The table drops them first.
	a.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: 8*pageLen - 2, PageFrom: 8}, log[:1])
	a.release(&shardv1.Release{Pages: pageIDs(8, cachePages), Leases: leases[1:2]})
	a.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: 8*pageLen - 2}, log[:1])
	for i, h := range r.held() { // each stage waits for its own acknowledgement
		if want := [...]uint32{16, 8, 16}[i]; h.GetLeases()[0].GetPages() != want {
			t.Errorf("after the acknowledgement of stage 1, stage %d grants %v", i, h.GetLeases())
		}
	}
	a.release(&shardv1.Release{Leases: []*shardv1.Lease{leases[2], leases[0]}})
	b.wantLeases(cachePages / 2)
	r.checkGrants()
	b.compute(first(), log[:3])
	e := &shardv1.Entry{Session: sessionName(2), Epoch: 1, Position: 3, PageFrom: 1, Pages: pageIDs(1, 8)}
	b.compute(e, log[3:7*pageLen])
	e = &shardv1.Entry{Session: sessionName(3), Epoch: 1, Pages: []uint32{9}}
	b.refused(e, log[:3], codes.ResourceExhausted)
	a.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: 8*pageLen - 2}, log[8*pageLen-2:8*pageLen-1])
	if got := a.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: 8*pageLen - 1}, []uint32{11}); !slices.Equal(got,
		want) {
		t.Error("other bits after it has shrunk")
	}
	r.checkGrants()
	b.end()
	a.wantLeases(cachePages)
	e = &shardv1.Entry{Session: s, Epoch: 1, Position: 8 * pageLen, PageFrom: 8, Pages: pageIDs(8, cachePages)}
	a.compute(e, log[:7*pageLen])
	a.end()
}

// TestInfer_ALeaseIsAcknowledgedInTime ends a pipeline that holds pages and does not answer, so that
// another one gets its share.
func TestInfer_ALeaseIsAcknowledgedInTime(t *testing.T) {
	r := newInferRig(t, 2, 50*time.Millisecond)
	silent := r.mustOpen(pipelineName(1))
	silent.compute(&shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: []uint32{0}}, someIDs(4))
	b := r.mustOpen(pipelineName(2))
	if err := rpc.FromStatus(await(b, silent.ended, "the end of the silent pipeline")); fault.CodeOf(err) !=
		fault.DeadlineExceeded {
		t.Errorf("the silent pipeline ended with %v", err)
	}
	b.wantLeases(cachePages)
	b.compute(&shardv1.Entry{Session: sessionName(2), Epoch: 1, Pages: pageIDs(0, cachePages)}, someIDs(9))
	b.end()
}

// fleetRouter is a router of the random test. It believes what it was told, and answers late.
type fleetRouter struct {
	*testPipeline
	may  map[uint32]uint32 // by stage
	acks []*shardv1.Lease
	held int // sessions of one page each, with ids 0..held-1
	name int
}

func (f *fleetRouter) limit() int {
	n := uint32(cachePages)
	for _, pages := range f.may {
		n = min(n, pages)
	}
	return int(n)
}

// listen takes the leases that have arrived.
func (f *fleetRouter) listen() {
	for {
		select {
		case l := <-f.leases:
			if l.GetPages() < f.may[l.GetLo()] {
				f.acks = append(f.acks, proto.CloneOf(l))
			}
			f.may[l.GetLo()] = l.GetPages()
		default:
			return
		}
	}
}

// answer gives pages back and acknowledges.
func (f *fleetRouter) answer() {
	out := &shardv1.Release{Leases: f.acks}
	for f.acks = nil; f.held > f.limit(); {
		f.held--
		out.Sessions = append(out.Sessions, sessionName(f.name*1000+f.held))
		out.Pages = append(out.Pages, uint32(f.held))
	}
	f.release(out)
}

// grow maps a page that the router believes it may have.
func (f *fleetRouter) grow() {
	if f.held < f.limit() {
		e := &shardv1.Entry{Session: sessionName(f.name*1000 + f.held), Epoch: 1, Pages: []uint32{uint32(f.held)}}
		f.compute(e, []uint32{7, 8})
		f.held++
	}
}

// TestInfer_RandomRouters lets routers come, grow, answer late and go. The stages never grant more pages
// than they have, nobody is refused a page that it was told it may have, and no stream ends.
func TestInfer_RandomRouters(t *testing.T) {
	r := newInferRig(t, 2, 0)
	rnd := rand.New(rand.NewPCG(11, 4))
	var all []*fleetRouter
	names := 0
	for range 250 {
		switch i := rnd.IntN(max(1, len(all))); {
		case len(all) == 0 || len(all) < 4 && rnd.IntN(12) == 0:
			names++
			f := &fleetRouter{testPipeline: r.mustOpen(pipelineName(names)), may: map[uint32]uint32{}, name: names}
			for _, h := range f.opened.GetStages() {
				f.may[h.GetLo()] = h.GetLease()
			}
			all = append(all, f)
		case len(all) > 1 && rnd.IntN(25) == 0:
			all[i].end()
			all = slices.Delete(all, i, i+1)
		case rnd.IntN(3) == 0:
			all[i].listen()
		case rnd.IntN(3) == 0:
			all[i].answer()
		default:
			all[i].grow()
		}
		r.checkGrants()
		if t.Failed() {
			return
		}
	}
	for deadline := time.Now().Add(2 * time.Minute); ; { // all have an equal share in the end
		fair := true
		for _, f := range all {
			f.listen()
			f.answer()
			fair = fair && f.limit() == cachePages/len(all)
		}
		if fair {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the leases are not equal: %v", r.held())
		}
	}
	for _, f := range all {
		for f.held < f.limit() {
			f.grow()
		}
	}
	r.checkGrants()
	for _, f := range all {
		f.end()
	}
}
