package shard_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// TestInfer_TheSameLogGivesTheSameBits computes one log through tables of many kinds. The logits of the
// last positions have the same bits each time.
func TestInfer_TheSameLogGivesTheSameBits(t *testing.T) {
	const length, first = 5*pageLen + 7, 4*pageLen + 3
	log := someIDs(length)
	for _, stages := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(stages, " stages"), func(t *testing.T) {
			p := newInferRig(t, stages, 0).mustOpen(pipelineName(1))
			session := 0
			// from computes positions pos..length-1 of a new or known session, the last ones one by one.
			from := func(name []byte, pos, chunk int, table []uint32) [][]float32 {
				t.Helper()
				var out [][]float32
				for pos < length {
					n := min(chunk, max(1, first-pos))
					e := &shardv1.Entry{Session: name, Epoch: 1, Position: uint32(pos), Pages: table}
					logits := p.compute(e, log[pos:pos+n])
					table = nil
					if pos += n; pos > first {
						out = append(out, logits)
					}
				}
				return out
			}
			fresh := func() []byte {
				session++
				return sessionName(session)
			}
			release := func(name []byte, pages ...uint32) {
				p.release(&shardv1.Release{Sessions: [][]byte{name}, Pages: pages})
			}
			a := fresh()
			want := from(a, 0, length, pageIDs(0, 6))
			same := func(what string, got [][]float32) {
				t.Helper()
				if len(got) == 0 || !slices.EqualFunc(got, want[len(want)-len(got):], slices.Equal[[]float32]) {
					t.Errorf("%s: other bits", what)
				}
			}
			same("the same table again", from(a, 0, 9, nil))
			b := fresh()
			same("pages in another order", from(b, 0, 5, []uint32{15, 8, 13, 9, 10, 7}))
			release(b, 15, 8, 13, 9, 10, 7)
			b = fresh()
			same("a shared prefix", from(b, 3*pageLen, 64, []uint32{0, 1, 2, 9, 8, 7}))
			same("the first after the second has written", from(a, first, 1, nil))
			c := fresh()
			same("a prefix shared by three", from(c, 4*pageLen, 64, []uint32{0, 1, 2, 9, 12, 13}))
			release(a) // its pages stay, some in other tables
			same("the second after the first has ended", from(b, first, 1, nil))
			d := fresh()
			same("pages of an ended session", from(d, first+1, 1, pageIDs(0, 6)))
			release(d, pageIDs(0, 6)...) // b and c still name 0, 1 and 2
			same("a prefix whose pages were released", from(c, first, 1, nil))
			release(b, 9, 8, 7)
			release(c, 12, 13)
			// The rows of another session show that every stage has handled the releases.
			p.compute(&shardv1.Entry{Session: fresh(), Epoch: 1, Pages: []uint32{15}}, log[:1])
			for _, h := range p.held() {
				if h.GetKvPagesUsed() != 1 || h.GetSessions() != 1 || h.GetLeases()[0].GetUsed() != 1 {
					t.Errorf("pages are left: %v", h)
				}
			}
			a = fresh()
			same("dropped and rebuilt", from(a, 0, 11, pageIDs(3, 9)))
			// Grown page by page, and cut and grown again, as a rejected draft does.
			var table []uint32
			g := fresh()
			grown := func(lo, hi int) (out [][]float32) {
				for pos := lo; pos < hi; pos++ {
					e := &shardv1.Entry{Session: g, Epoch: 1, Position: uint32(pos)}
					if pos/pageLen >= len(table) {
						e.PageFrom, e.Pages = uint32(len(table)), []uint32{uint32(9 + len(table))}
						table = append(table, e.GetPages()...)
					}
					if logits := p.compute(e, log[pos:pos+1]); pos >= first {
						out = append(out, logits)
					}
				}
				return out
			}
			same("grown page by page", grown(0, length))
			e := &shardv1.Entry{Session: g, Epoch: 1, Position: 2*pageLen - 3, PageFrom: 2}
			p.compute(e, []uint32{7, 7, 7})
			table = table[:2]
			same("cut and grown again", grown(2*pageLen-3, length))
			release(a, pageIDs(3, 9)...)
			release(g, pageIDs(9, 16)...)
			p.end()
		})
	}
}

// TestInfer_RefusesTablesThatDoNotFit sends hostile tables, each beside a good session, through two stages.
func TestInfer_RefusesTablesThatDoNotFit(t *testing.T) {
	r := newInferRig(t, 2, 0)
	other := r.mustOpen(pipelineName(2)) // its page 9 is not the first pipeline's page 9
	other.compute(&shardv1.Entry{Session: sessionName(9), Epoch: 1, Pages: []uint32{9}}, someIDs(4))
	p := r.mustOpen(pipelineName(1))
	for range r.route { // the pages are divided first
		l := await(other, other.leases, "a smaller lease")
		other.release(&shardv1.Release{Leases: []*shardv1.Lease{l}})
		await(p, p.leases, "a larger lease")
	}
	good := sessionName(1)
	p.compute(&shardv1.Entry{Session: good, Epoch: 1, Pages: []uint32{2}}, []uint32{5})
	million := make([]uint32, 1<<20)
	for i := range million {
		million[i] = uint32(i)
	}
	position := 1
	bad := sessionName(2)
	for what, test := range map[string]struct {
		entry *shardv1.Entry
		code  codes.Code
	}{
		"an id out of range":           {&shardv1.Entry{Pages: []uint32{cachePages}}, codes.InvalidArgument},
		"the largest id":               {&shardv1.Entry{Pages: []uint32{1<<32 - 1}}, codes.InvalidArgument},
		"an id twice":                  {&shardv1.Entry{Pages: []uint32{4, 4}}, codes.InvalidArgument},
		"a million entries":            {&shardv1.Entry{Pages: million}, codes.InvalidArgument},
		"a million repeats":            {&shardv1.Entry{Pages: make([]uint32, 1<<20)}, codes.InvalidArgument},
		"a table beyond all positions": {&shardv1.Entry{PageFrom: 1<<32 - 1, Pages: []uint32{1}}, codes.InvalidArgument},
		"a hole before the table":      {&shardv1.Entry{PageFrom: 1, Pages: []uint32{4}}, codes.FailedPrecondition},
		"no page for the rows":         {&shardv1.Entry{Position: 17, Pages: []uint32{2}}, codes.InvalidArgument},
		"a page of another pipeline": {
			&shardv1.Entry{Position: pageLen, Pages: []uint32{9, 4}}, codes.FailedPrecondition,
		},
		"more than the lease": {&shardv1.Entry{Pages: pageIDs(4, 13)}, codes.ResourceExhausted},
		"an id outside the vocabulary": {
			&shardv1.Entry{Pages: []uint32{4}, Targets: []uint32{1 << 20}}, codes.InvalidArgument,
		},
	} {
		e := test.entry
		e.Session, e.Epoch, e.Rows, e.Logits = bad, 1, 1, 1
		p.batch(
			[]uint32{5, 6},
			&shardv1.Entry{Session: good, Epoch: 1, Position: uint32(position), Rows: 1, Logits: 1},
			e,
		)
		if refused := await(p, p.frames, what).GetRefused(); codes.Code(refused.GetCode()) != test.code {
			t.Errorf("%s: %v", what, refused)
		}
		if row := await(p, p.rows, what); row.GetPosition() != uint32(position) {
			t.Errorf("%s: the other session gets %v", what, row)
		}
		position = (position + 1) % pageLen
		p.release(&shardv1.Release{Sessions: [][]byte{bad, bad}, Pages: []uint32{4, 4, 77, 1<<32 - 1}})
	}
	p.compute(&shardv1.Entry{Session: good, Epoch: 1, Position: uint32(position)}, []uint32{5})
	for _, h := range r.held() {
		if h.GetKvPagesUsed() != 2 {
			t.Errorf("%d pages are used, want one of each pipeline", h.GetKvPagesUsed())
		}
	}
	p.end()
	other.compute(&shardv1.Entry{Session: sessionName(9), Epoch: 1, Position: 4}, []uint32{8})
	other.end()
}

// TestInfer_AcknowledgesAChunkBesideLogits sends a chunk of a prompt in a batch with a row that gives logits.
func TestInfer_AcknowledgesAChunkBesideLogits(t *testing.T) {
	p := newInferRig(t, 2, 0).mustOpen(pipelineName(1))
	chunk := &shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: pageIDs(0, 1), Rows: 5}
	row := &shardv1.Entry{Session: sessionName(2), Epoch: 1, Pages: pageIDs(1, 2), Rows: 1, Logits: 1}
	step := p.batch(someIDs(6), chunk, row)
	if got := await(p, p.rows, "a row"); string(got.GetSession()) != string(row.GetSession()) {
		t.Errorf("got a row of session %s", got.GetSession())
	}
	if got := await(p, p.frames, "computed").GetComputed(); got.GetStep() != step {
		t.Errorf("got %v, want the acknowledgement of step %d", got, step)
	}
	// If the chunk is refused, there is nothing to acknowledge.
	chunk, row = &shardv1.Entry{Session: sessionName(1), Epoch: 1, Position: 99, Rows: 5}, &shardv1.Entry{
		Session: sessionName(2), Epoch: 1, Position: 1, Rows: 1, Logits: 1}
	p.batch(someIDs(6), chunk, row)
	if got := await(p, p.frames, "a refusal").GetRefused(); string(got.GetSession()) != string(chunk.GetSession()) {
		t.Errorf("got %v, want a refusal", got)
	}
	await(p, p.rows, "a row")
	p.end()
	select {
	case f := <-p.frames:
		t.Errorf("got %v", f)
	default:
	}
}

// TestInfer_AnEntryThatWasNotComputedTakesTheTable makes sure that no later entry of the session is computed
// before the router has released it: a table change in one would vouch for rows that are missing.
func TestInfer_AnEntryThatWasNotComputedTakesTheTable(t *testing.T) {
	p := newInferRig(t, 1, 0).mustOpen(pipelineName(1))
	s := sessionName(1)
	log := someIDs(40)
	p.compute(&shardv1.Entry{Session: s, Epoch: 2, Pages: pageIDs(0, 3)}, log)
	want := p.compute(&shardv1.Entry{Session: s, Epoch: 2, Position: 40}, []uint32{9})
	next := func() *shardv1.Entry { return &shardv1.Entry{Session: s, Epoch: 2, Position: 40} }
	rebuild := func(when string) {
		t.Helper()
		p.refused(next(), []uint32{9}, codes.FailedPrecondition)
		e := next()
		e.PageFrom, e.Pages = 2, []uint32{2}
		p.refused(e, []uint32{9}, codes.FailedPrecondition)
		e = next()
		e.Pages = pageIDs(0, 3)
		p.refused(e, []uint32{9}, codes.FailedPrecondition)
		p.release(&shardv1.Release{Sessions: [][]byte{s}})
		if got := p.compute(e, []uint32{9}); !slices.Equal(got, want) {
			t.Errorf("%s: the rebuilt table gives other bits", when)
		}
	}
	p.refused(&shardv1.Entry{Session: s, Epoch: 2, Position: 16, PageFrom: 1, Pages: []uint32{2, 99}}, []uint32{9},
		codes.InvalidArgument)
	rebuild("a refused change")
	// An older epoch has no say.
	p.refused(&shardv1.Entry{Session: s, Epoch: 1, Pages: []uint32{5}}, []uint32{9}, codes.Aborted)
	if got := p.compute(next(), []uint32{9}); !slices.Equal(got, want) {
		t.Error("an entry with an older epoch changed the session")
	}
	p.refused(&shardv1.Entry{Session: s, Epoch: 2, Position: 40}, make([]uint32, 20), codes.InvalidArgument)
	rebuild("a refusal without a table change")
	for tries := 0; !p.lateBatch(s); tries++ {
		if tries == 100 {
			t.Fatal("no batch is late")
		}
		p.compute(&shardv1.Entry{Session: s, Epoch: 2, Pages: pageIDs(0, 3)}, log)
	}
	rebuild("a late batch")
	p.end()
}

// lateBatch sends an entry with a table change behind batches that take longer than its deadline, and
// reports whether it was dropped.
func (p *testPipeline) lateBatch(s []byte) bool {
	p.t.Helper()
	busy := &shardv1.Entry{Session: sessionName(2), Epoch: 1, Pages: pageIDs(3, 16), Rows: 200}
	for range 3 {
		p.batch(someIDs(200), busy)
	}
	p.step++
	p.send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Batch{Batch: &shardv1.Batch{
		Step: p.step, DeadlineMs: 1, Ids: []uint32{9}, Entries: []*shardv1.Entry{{
			Session: s, Epoch: 2, Position: 16, PageFrom: 1, Pages: []uint32{2}, Rows: 1, Logits: 1,
		}},
	}}})
	p.batch([]uint32{9}, &shardv1.Entry{Session: sessionName(2), Epoch: 1, Position: 200, Rows: 1, Logits: 1})
	for range 3 {
		await(p, p.frames, "the batches before")
	}
	if row := await(p, p.rows, "a row"); string(row.GetSession()) == string(s) {
		await(p, p.rows, "the row after it")
		return false
	}
	return true
}

// TestInfer_RandomTables grows, shares, rewinds and drops the tables of sessions at random, with page ids
// that a simple router assigns, and compares all logits with those of sessions that share nothing.
func TestInfer_RandomTables(t *testing.T) {
	const sessions = 3
	p := newInferRig(t, 2, 0).mustOpen(pipelineName(1))
	r := rand.New(rand.NewPCG(7, 7))
	type state struct {
		name  []byte
		log   []uint32
		table []uint32
	}
	all := make([]*state, sessions)
	refs := map[uint32]int{}
	names := 0
	drop := func(table []uint32) (unmapped []uint32) {
		for _, id := range table {
			if refs[id]--; refs[id] == 0 {
				unmapped = append(unmapped, id)
			}
		}
		return unmapped
	}
	take := func() uint32 {
		for {
			if id := uint32(r.IntN(cachePages)); refs[id] == 0 {
				refs[id] = 1
				return id
			}
		}
	}
	for step := range 120 {
		i := r.IntN(sessions)
		s := all[i]
		e := &shardv1.Entry{Epoch: 1}
		switch {
		case s == nil:
			names++
			s = &state{name: sessionName(names)}
			all[i] = s
			if from := all[r.IntN(sessions)]; from != nil && from != s { // share full pages
				n := r.IntN(len(from.log)/pageLen + 1)
				s.log, s.table = slices.Clone(from.log[:n*pageLen]), slices.Clone(from.table[:n])
				for _, id := range s.table {
					refs[id]++
				}
				e.Pages = slices.Clone(s.table)
			}
		case r.IntN(8) == 0:
			p.release(&shardv1.Release{Sessions: [][]byte{s.name}, Pages: drop(s.table)})
			all[i] = nil
			continue
		case r.IntN(4) == 0 && len(s.log) > 1: // rewind within the last page, which nobody shares
			n := min(len(s.log)-1, 1+r.IntN(pageLen-1))
			if (len(s.log)-n)/pageLen == (len(s.log)-1)/pageLen {
				s.log = s.log[:len(s.log)-n]
			}
		}
		rows := min(1+r.IntN(20), 5*pageLen-len(s.log))
		if rows <= 0 {
			p.release(&shardv1.Release{Sessions: [][]byte{s.name}, Pages: drop(s.table)})
			all[i] = nil
			continue
		}
		e.Session, e.Position = s.name, uint32(len(s.log))
		var ids []uint32
		for range rows {
			ids = append(ids, uint32(3+r.IntN(500)))
		}
		s.log = append(s.log, ids...)
		if len(e.GetPages()) == 0 {
			e.PageFrom = uint32(len(s.table))
		}
		before := len(s.table)
		for len(s.table)*pageLen < len(s.log) {
			s.table = append(s.table, take())
		}
		if e.Pages = append(e.Pages, s.table[before:]...); len(e.Pages) == 0 {
			e.PageFrom = 0
		}
		got := p.compute(e, ids)
		names++
		alone := sessionName(names) // on the pages that are left, if they are enough
		table := make([]uint32, 0, 5)
		for id := uint32(0); id < cachePages && len(table)*pageLen < len(s.log); id++ {
			if refs[id] == 0 {
				table = append(table, id)
			}
		}
		if len(table)*pageLen < len(s.log) {
			continue
		}
		want := p.compute(&shardv1.Entry{Session: alone, Epoch: 1, Pages: table}, s.log)
		p.release(&shardv1.Release{Sessions: [][]byte{alone}, Pages: table})
		if !slices.Equal(got, want) {
			t.Fatalf("step %d: session %d of %d tokens has other bits than alone", step, i, len(s.log))
		}
	}
	p.end()
}
