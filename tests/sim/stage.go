package sim

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// stage is a shard's part of a pipeline.
type stage struct {
	shard    *shard
	p        *pipe
	index    int
	lease    *kvcache.Lease[float64]
	sessions map[sched.ID]*held
	pages    map[uint32]*page
	up, down *stream
	life     int    // of the shard
	prev     *stage // upstream
	next     *stage // downstream
	ended    bool
	kept     bool          // its stream broke, and it keeps the pages
	asked    time.Duration // when the router was asked to shrink its lease; 0 for not
}

// held is a session on a stage.
type held struct {
	epoch uint64
	table *kvcache.Table[float64]
	ids   []uint32
	lost  bool // an entry of it was not computed: further ones are refused until it is released
}

// page is what the simulator knows about a page that is mapped: for each position the hash of the
// tokens up to it, or 0 if it was not computed, and the token itself.
type page struct {
	states   []state
	tokens   []int32
	refs     int // tables that name it
	released bool
}

// batch is a batch on its way through the chain.
type batch struct {
	sched.Batch
	rows   []row
	logits bool // a row of it needs logits
	chunks bool // an entry of it needs none
}

// row is a position of an entry, with the hidden state that the stage before has computed.
type row struct {
	token  int32
	hidden state
}

// granted is the number of pages that the lease of a stage was granted when it was opened.
func (st *stage) granted() int {
	for _, l := range st.shard.cache.Leases() {
		if l.Name == st.p.name {
			return l.Granted
		}
	}
	return 0
}

// leaseLimit is how long a router may take to give pages back before it is taken for dead.
const leaseLimit = 10 * time.Second

func (st *stage) watch() {
	st.asked = st.shard.w.now
	asked := st.asked
	st.shard.after(leaseLimit, func() {
		if st.ended || st.asked != asked {
			return
		}
		if st.granted() > st.shard.w.sc.Pages/len(st.shard.stages) && st.granted() > 0 {
			st.shard.w.log("%s ends %s, which has not shrunk its lease", st.shard.name, st.p.name)
			st.p.breakAt(st.index, "its lease was not acknowledged")
		}
	})
}

// send sends a frame to the router, through the stages before this one.
func (st *stage) send(kind frame, do func()) {
	if st.index == 0 {
		st.up.send(kind, do)
		return
	}
	st.up.send(control, func() { st.prev.send(kind, do) })
}

// receive queues a frame from upstream.
func (st *stage) receive(wk work) {
	wk.st, wk.arrived = st, st.shard.w.now
	st.shard.queue = append(st.shard.queue, wk)
	st.shard.work()
}

// compute runs a batch.
func (st *stage) compute(b *batch) {
	w := st.shard.w
	out := &batch{Batch: b.Batch}
	out.Entries = nil
	at := 0
	var lost []sched.Entry
	for _, e := range b.Entries {
		rows := b.rows[at : at+e.Rows]
		at += e.Rows
		var reason string
		retry := w.chance(w.sc.Refuse)
		if retry {
			reason = "injected: no KV memory"
			st.p.tainted = true
		} else {
			reason = st.admit(e)
		}
		if reason != "" {
			if !st.p.tainted {
				w.violate("%s refuses an entry of %s at position %d of step %d: %s", st.shard.name, e.ID, e.Position,
					b.Step, reason)
			}
			w.log("%s refuses %s at position %d in step %d: %s", st.shard.name, e.ID, e.Position, b.Step, reason)
			lost = append(lost, e)
			out := result{lost: reason} // no process has ended, so the request is not blamed
			if retry {
				out = result{err: "no memory: " + reason}
			}
			refused := sched.Refused{ID: e.ID, Step: b.Step, Retry: retry, Data: out}
			st.send(control, func() { st.p.tell(refused) })
			continue
		}
		if deadly, ok := w.poisoned[e.ID]; ok && st.next == nil && b.ReplayUntil == 0 &&
			e.Position <= deadly && deadly < e.Position+e.Rows {
			st.p.tainted = true // the rest of the batch is not computed
			st.shard.harm(w.owner[e.ID])
			return
		}
		st.write(e, rows, b.ReplayUntil > 0)
		if w.err != nil {
			return
		}
		out.Entries = append(out.Entries, e)
		out.rows = append(out.rows, rows...)
		out.logits = out.logits || e.Logits > 0
		out.chunks = out.chunks || e.Logits == 0
	}
	st.forget(lost)
	st.shard.notify()
	last := st.next == nil || b.ReplayUntil == st.shard.span.Hi
	if last && out.logits {
		st.down.send(data, func() { st.p.sampler.rows(st.p, out) })
	}
	switch {
	case len(out.Entries) == 0, last && out.chunks:
		step := b.Step
		st.send(data, func() { st.p.tell(sched.Computed{Step: step}) })
	case !last:
		st.down.send(once, func() { st.next.receive(work{batch: out}) })
	}
}

// admit changes the block table of an entry's session, as services/shard does. It returns the reason
// why the entry is refused.
func (st *stage) admit(e sched.Entry) string {
	s := st.sessions[e.ID]
	if s == nil {
		s = &held{}
	}
	if e.Epoch < s.epoch {
		return "its epoch is over"
	}
	if s.lost {
		return "an earlier entry of it was not computed"
	}
	s.epoch = e.Epoch
	if e.PageFrom > 0 || len(e.Pages) > 0 {
		if s.table == nil {
			s.table = st.lease.NewTable()
		}
		if err := s.table.Change(e.PageFrom, e.Pages, e.Position, e.Rows); err != nil {
			return err.Error()
		}
		st.rename(s, e)
	} else {
		switch {
		case s.table == nil || s.table.Pages() == 0:
			return "it has no block table"
		case e.Position > s.table.Len():
			return "the position is beyond the cached length"
		case s.table.Reserve(e.Position+e.Rows) != nil:
			return "the position is beyond the block table"
		}
		s.table.Truncate(e.Position)
	}
	st.sessions[e.ID] = s
	s.table.Extend(e.Position + e.Rows)
	return ""
}

// rename keeps the simulator's own view of a table.
func (st *stage) rename(s *held, e sched.Entry) {
	dropped := append([]uint32(nil), s.ids[e.PageFrom:]...)
	s.ids = append(s.ids[:e.PageFrom:e.PageFrom], e.Pages...)
	for _, id := range e.Pages {
		p := st.pages[id]
		if p == nil {
			n := st.shard.w.sc.PageLen
			p = &page{states: make([]state, n), tokens: make([]int32, n)}
			st.pages[id] = p
		}
		p.refs++
		p.released = false
	}
	st.drop(dropped)
}

func (st *stage) drop(ids []uint32) {
	for _, id := range ids {
		p := st.pages[id]
		if p.refs--; p.refs == 0 && p.released {
			delete(st.pages, id)
		}
	}
}

// write computes the rows of an entry: it reads the position before each, and writes its own.
func (st *stage) write(e sched.Entry, rows []row, replay bool) {
	w, n := st.shard.w, st.shard.w.sc.PageLen
	ids := st.sessions[e.ID].ids
	before := w.roots[e.ID]
	for i := range e.Position / n { // the pages before have to follow one another
		p := st.pages[ids[i]]
		if p.states[0] == 0 || p.states[n-1] == 0 || before.extend(p.tokens[0]) != p.states[0] {
			w.violate("%s reads positions %d to %d of %s from page %d, which does not hold them", st.shard.name, i*n,
				i*n+n-1, e.ID, ids[i])
			return
		}
		before = p.states[n-1]
	}
	for i := range rows {
		pos := e.Position + i
		p := st.pages[ids[pos/n]]
		if pos%n > 0 {
			before = p.states[pos%n-1]
		}
		if before == 0 {
			w.violate("%s reads position %d of %s from page %d, which was not computed", st.shard.name, pos-1, e.ID,
				ids[(pos-1)/n])
			return
		}
		// After a refusal, later stages keep a table of the session that the router has changed since. No
		// entry of it reaches them.
		// A replay writes again what is there.
		if p.refs > 1 && !st.p.tainted && !replay {
			w.violate("%s writes position %d of %s to page %d, which %d tables share", st.shard.name, pos, e.ID,
				ids[pos/n], p.refs)
			return
		}
		before = before.extend(rows[i].token)
		if st.index > 0 && rows[i].hidden != before {
			w.violate("%s has other keys and values before position %d of %s than the stage before it", st.shard.name,
				pos, e.ID)
			return
		}
		if was := p.states[pos%n]; replay && p.refs > 1 && was != 0 && was != before {
			w.violate("%s replays position %d of %s over other keys and values in page %d, which %d tables share",
				st.shard.name, pos, e.ID, ids[pos/n], p.refs)
			return
		}
		p.states[pos%n], p.tokens[pos%n] = before, rows[i].token
		rows[i].hidden = before
	}
}

// forget drops the tables of entries that were not computed.
func (st *stage) forget(entries []sched.Entry) {
	for _, e := range entries {
		s := st.sessions[e.ID]
		if s != nil && s.table != nil {
			s.table.Free()
			st.drop(s.ids)
			s.ids, s.lost = nil, true
		}
	}
}

func (st *stage) release(r sched.Release) {
	for _, id := range r.Sessions {
		if s := st.sessions[id]; s != nil {
			if s.table != nil {
				s.table.Free()
			}
			st.drop(s.ids)
			delete(st.sessions, id)
		}
	}
	for _, id := range r.Pages {
		p := st.pages[id]
		if p == nil {
			continue
		}
		p.released = true
		if p.refs == 0 {
			delete(st.pages, id)
		} else if !st.p.tainted {
			st.shard.w.violate("%s is told to unmap page %d, which %d tables name", st.shard.name, id, p.refs)
		}
	}
	st.lease.Release(r.Pages)
	for _, l := range r.Leases {
		if l.Lo == st.shard.span.Lo {
			st.asked = 0
			st.lease.Acknowledge(l.Pages)
		}
	}
	st.shard.notify()
}

// end frees everything of a pipeline's stage.
func (st *stage) end() {
	if st.ended {
		st.giveUp()
		return
	}
	st.leave()
	if st.next != nil {
		st.next.later(st.shard.node, (*stage).end)
	}
	st.lease.Close()
	st.shard.notify()
}

// later does something in a stage when it learns from a process that its stream is gone.
func (st *stage) later(from *node, do func(*stage)) {
	w := st.shard.w
	life := st.shard.life
	w.after(w.delay(), func() {
		if st.shard.life != life {
			return
		}
		if w.cut(from, st.shard.node) && !from.dead {
			w.onHeal = append(w.onHeal, func() { st.later(from, do) })
			return
		}
		st.shard.awake(func() { do(st) })
	})
}

func (st *stage) mapped() int { return len(st.pages) }
