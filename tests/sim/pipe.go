package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

const (
	stepTick = 100 * time.Millisecond // the scheduler is asked at least this often
	outLen   = 8                      // results that may wait for a request; services/router has 64
)

// pipe is a pipeline of a router. It carries out what its scheduler decides, as the runner in
// services/router does.
type pipe struct {
	w           *world
	router      *router
	name        string
	chain       plan.Chain
	draft       bool
	sampler     *sampler
	stages      []*stage
	down        *stream // to the first stage
	toSampler   *stream
	fromSampler *stream

	sched    *sched.Scheduler
	events   []sched.Event
	planned  bool // a step is planned
	seqs     map[sched.ID]*sequence
	order    []sched.ID // of seqs, for a defined order
	dead     bool
	listed   bool
	tainted  bool // a fault was injected that explains a refused entry
	spare    bool
	known    bool // the scheduler knows spare
	assigned int
	opened   time.Duration

	reopening   bool
	samplerGone bool   // the sampler's stream has broken
	cause       string // of the last break
	late        bool   // it was a missed deadline
	rebuilt     bool
	fruitless   int  // how often it was opened again since something was computed
	timed       bool // a step is planned for a deadline
	checks      checks
}

// sequence is a session on a pipeline.
type sequence struct {
	id       sched.ID
	log      []int32
	emitted  int
	more     []int32 // tokens since it was submitted
	tenant   string
	out      []result
	limit    int // of out
	paused   bool
	admitted bool
	counted  int // positions that count as service
	draft    bool
	moved    bool   // it comes from another pipeline
	reader   func() // is told that there are results
	scores   int    // that its reader has taken
	suspect  bool   // the scheduler was told that it is one
}

// result is what a pipeline reports to a sequence.
type result struct {
	accepted bool
	token    *token
	score    float64
	scored   bool
	length   bool
	round    uint64
	lost     string
	struck   string // it was in flight when a stage was lost
	blamed   bool
	late     bool        // with blamed and struck: a deadline was missed, and nothing broke
	blame    sched.Blame // with blamed and struck: it may have been the cause
	proven   int         // positions of the log that were computed
	err      string
	after    time.Duration // RetryAfter of err
}

func (p *pipe) start() {
	w := p.w
	c := sched.Config{
		Stages:      len(p.chain),
		Pages:       w.sc.Pages,
		PageLen:     w.sc.PageLen,
		Positions:   w.sc.Pages * w.sc.PageLen,
		Vocab:       vocab,
		Depth:       w.sc.Depth,
		BatchRows:   w.sc.BatchRows,
		ChunkRows:   w.sc.ChunkRows,
		Entries:     w.sc.Entries,
		Queue:       w.sc.Queue,
		TenantQueue: w.sc.TenantQueue,
		CacheIdle:   w.sc.CacheIdle,
	}
	p.sched = sched.New(c)
	p.seqs = map[sched.ID]*sequence{}
	p.opened, p.fruitless = w.now, maxFruitless
	p.checks.emitted = map[sched.ID]bool{}
	for _, st := range p.stages {
		p.events = append(p.events, sched.Lease{Lo: st.shard.span.Lo, Pages: st.granted()})
	}
	p.tick()
	p.wake()
}

func (p *pipe) tick() {
	if p.dead {
		return
	}
	p.router.after(stepTick, func() { p.step(); p.tick() })
}

// tell adds an event, in the router.
func (p *pipe) tell(e sched.Event) {
	if p.dead {
		return
	}
	if _, computed := e.(sched.Computed); computed {
		p.fruitless = 0
	}
	p.events = append(p.events, e)
	p.wake()
}

func (p *pipe) wake() {
	if p.planned || p.dead {
		return
	}
	p.planned = true
	p.router.after(p.w.between(0, p.w.sc.Hop/4+1), func() { p.planned = false; p.step() })
}

// step lets the scheduler decide.
func (p *pipe) step() {
	w := p.w
	if p.dead || p.reopening || w.err != nil {
		return
	}
	if spare := p.router.hasSpare(p); spare != p.spare || !p.known {
		p.spare, p.known = spare, true
		p.events = append(p.events, sched.Spare{Available: spare})
	}
	now := w.now + p.router.offset
	commands := p.sched.Step(now, p.events)
	w.steps++
	if w.trace != nil && len(p.events)+len(commands) > 0 {
		w.log("%s", transcript(p.name, p.events, commands))
	}
	p.events = p.events[:0]
	p.checkStep(now, commands)
	for _, c := range commands {
		p.carryOut(c)
		if p.dead || w.err != nil {
			return
		}
	}
	p.checkQuota()
	p.awaitDue()
}

// awaitDue plans a step for the time when the first batch in flight misses its deadline, as seen by the router's
// clock.
func (p *pipe) awaitDue() {
	due, ok := p.sched.Due()
	if !ok || p.timed || p.dead {
		return
	}
	p.timed = true
	p.router.after(max(due-p.w.now-p.router.offset, time.Millisecond), func() {
		p.timed = false
		if due, ok := p.sched.Due(); ok && due <= p.w.now+p.router.offset {
			p.step()
			return
		}
		p.awaitDue()
	})
}

// transcript describes one step in a line for each event and command.
func transcript(name string, events []sched.Event, commands []sched.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "step %s", name)
	line := func(sign string, v any) {
		text := strings.TrimPrefix(fmt.Sprintf("%T%+v", v, v), "sched.")
		fmt.Fprintf(&b, "\n              %s %s", sign, text)
	}
	for _, e := range events {
		line("<-", e)
	}
	for _, c := range commands {
		line("->", c)
	}
	return b.String()
}

func (p *pipe) carryOut(c sched.Command) {
	w := p.w
	switch c := c.(type) {
	case sched.Add:
		q := p.seqs[c.ID]
		if q == nil {
			return
		}
		log, emitted := append(q.log[:len(q.log):len(q.log)], q.more...), q.emitted+len(q.more)
		if q.draft {
			log, emitted = nil, 0
		}
		p.toSampler.send(control, func() { p.sampler.add(p, c.ID, c.Epoch, log, emitted) })
	case sched.Remove:
		p.forget(c.ID)
		p.toSampler.send(control, func() { p.sampler.remove(p, c.ID) })
	case sched.Release:
		first := p.stages[0]
		p.down.send(control, func() { first.receive(work{release: &c}) })
	case sched.Batch:
		b := &batch{Batch: c, rows: make([]row, len(c.Tokens))}
		for i, t := range c.Tokens {
			b.rows[i].token = t
		}
		first := p.stages[0]
		p.down.send(once, func() { first.receive(work{batch: b}) })
	case sched.Admit:
		if q := p.seqs[c.ID]; q != nil && !c.Again {
			q.admitted = true
			w.report.Cached += c.Cached
		}
	case sched.Share:
		w.report.Shared++
	case sched.Started:
		if q := p.seqs[c.ID]; q != nil && !q.draft {
			p.put(q, result{accepted: true})
		}
	case sched.Emit:
		if q := p.seqs[c.ID]; q != nil {
			t := c.Data.(token)
			q.more = append(q.more, t.id)
			w.report.Tokens++
			p.fruitless = 0
			if c.Drafter != "" {
				w.report.Accepted++
			}
			p.put(q, result{token: &t, length: c.Length, round: c.Round})
			if len(q.out) > outLen/2 && !q.paused {
				q.paused = true
				p.events = append(p.events, sched.Pause{ID: c.ID})
				p.wake()
			}
		}
	case sched.Score:
		if q := p.seqs[c.ID]; q != nil {
			p.put(q, result{scored: true, score: c.Data.(float64)})
		}
	case sched.End:
		if q := p.seqs[c.ID]; q != nil {
			r, ok := c.Data.(result)
			if !ok {
				r = result{err: "other sessions need its KV pages"}
			}
			p.put(q, r)
		}
	case sched.TurnAway:
		if q := p.seqs[c.ID]; q != nil {
			p.put(q, turnedAway(c))
			p.forget(c.ID)
		}
	case sched.Preempt:
		w.report.Preempted++
	case sched.Propose:
		p.propose(c)
	case sched.Blame:
		p.blame(c)
	case sched.Fail:
		p.overdue(c)
	}
}

func turnedAway(c sched.TurnAway) result {
	switch c.Reason {
	case sched.TooLong: // another pipeline may hold it
		return result{lost: fmt.Sprintf("it needs %d pages, the lease has %d", c.Need, c.Have), proven: c.Proven}
	case sched.QuotaUsed:
		return result{err: "quota", after: c.RetryAfter}
	}
	return result{err: "queue full", after: c.RetryAfter}
}

// put hands a result to a sequence's reader.
func (p *pipe) put(q *sequence, r result) {
	q.out = append(q.out, r)
	n := 0 // scores are kept for the first token
	for _, o := range q.out {
		if !o.scored {
			n++
		}
	}
	if n > q.limit {
		p.w.violate("%s puts %d results before the reader of %s, at most %d fit", p.name, n, q.id, q.limit)
	}
	q.reader()
}

// took is called by a reader after it has taken a result.
func (q *sequence) took(p *pipe) {
	if q.paused && len(q.out) <= outLen/4 {
		q.paused = false
		p.tell(sched.Resume{ID: q.id})
	}
}

func (p *pipe) forget(id sched.ID) {
	if p.seqs[id] == nil {
		return
	}
	delete(p.seqs, id)
	for i, o := range p.order {
		if o == id {
			p.order = append(p.order[:i:i], p.order[i+1:]...)
			break
		}
	}
}

// submit hands a sequence to the scheduler. It returns false if the pipeline is lost.
func (p *pipe) submit(q *sequence, e sched.Submit) bool {
	if p.dead {
		return false
	}
	p.seqs[q.id] = q
	p.order = append(p.order, q.id)
	q.limit = outLen + 2*(e.Speculate+1) + 3 + min(e.Speculate, 1)*sched.MaxAhead
	p.tell(e)
	return true
}

// propose asks the draft session of a request, or answers at once that there is none.
func (p *pipe) propose(c sched.Propose) {
	if q := p.w.owner[c.ID]; q != nil && q.drafter != nil && q.drafter.ask(c) {
		return
	}
	p.events = append(p.events, sched.Drafted{ID: c.ID, Round: c.Round})
	p.wake()
}

// breakAt breaks the streams of a stage. The router learns of it through the stages before.
func (p *pipe) breakAt(index int, reason string) {
	st := p.stages[index]
	if !st.shard.dead {
		st.detach()
	} else if st.next != nil {
		st.next.later(st.shard.node, (*stage).detach)
	}
	if p.dead {
		return
	}
	p.relay(st.prev, st.shard.node, p.stages[0], reason)
}

// relay passes the end of a stream on to a stage, and in the end to the router.
func (p *pipe) relay(st *stage, from *node, first *stage, reason string) {
	w := p.w
	to := p.router.node
	if st != nil {
		to = st.shard.node
	}
	w.after(w.delay(), func() {
		if w.cut(from, to) {
			w.onHeal = append(w.onHeal, func() { p.relay(st, from, first, reason) })
			return
		}
		to.awake(func() {
			switch {
			case st != nil:
				st.detach()
				p.relay(st.prev, to, first, reason)
			case !p.dead && p.stages[0] == first:
				p.broke(reason, false)
			}
		})
	})
}

// fail ends the pipeline in the router and tells every sequence.
func (p *pipe) fail(reason string) {
	if p.dead {
		return
	}
	w := p.w
	w.log("%s is lost: %s", p.name, reason)
	p.dead = true
	w.report.Failed++
	blamed, _ := p.sched.Lost(strings.Contains(reason, "sampler"))
	proven := map[sched.ID]int{}
	for _, id := range p.order {
		proven[id] = p.sched.Proven(id)
	}
	p.router.unlist(p)
	for _, s := range []*stream{p.down, p.toSampler, p.fromSampler} {
		s.closed = true
	}
	for _, st := range p.stages {
		st.later(p.router.node, (*stage).end)
	}
	p.sampler.endLater(p)
	for _, b := range blamed {
		if q := p.seqs[b.ID]; q != nil {
			p.put(q, result{lost: reason, blamed: true, late: p.late, blame: b, proven: b.Proven})
			p.forget(b.ID)
		}
	}
	for _, id := range append([]sched.ID(nil), p.order...) {
		p.put(p.seqs[id], result{lost: reason, proven: proven[id]})
	}
}

// endLater makes the sampler forget a pipeline.
func (s *sampler) endLater(p *pipe) {
	w, life := s.w, s.life
	w.after(w.delay(), func() {
		if s.life != life {
			return
		}
		if w.cut(p.router.node, s.node) {
			w.onHeal = append(w.onHeal, func() { s.endLater(p) })
			return
		}
		s.awake(func() { delete(s.pipes, p) })
	})
}
