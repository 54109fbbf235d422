package sim

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// drafter proposes draft tokens for a request by a session on a draft pipeline, as in services/router.
type drafter struct {
	w      *world
	q      *request
	target *pipe
	p      *pipe // the draft pipeline
	seq    *sequence
	open   bool
	ended  bool
	rounds uint64 // names the round for its timers
	asked  *sched.Propose
	least  float64
	next   state // of the tokens of the round
	last   int32
	ids    []int32
}

// lateDraftFactor times the limit of a round is the time after which a silent draft session is dropped.
const lateDraftFactor = 8

// startDrafter opens a draft session for a request that was just submitted, if there is a pipeline.
func (w *world) startDrafter(q *request) *drafter {
	p := q.router.best(draftDigest, q.length())
	if p == nil || p == q.p {
		return nil
	}
	d := &drafter{w: w, q: q, target: q.p, p: p}
	id := sched.ID(fmt.Sprintf("d%s.%d", q.name(), q.epoch))
	d.seq = &sequence{id: id, draft: true, log: q.log, tenant: q.tenant, reader: d.read}
	w.roots[id] = root(draftDigest, q.tenant, q.namespace)
	d.begin(q.log)
	p.assigned++
	p.submit(d.seq, sched.Submit{ID: id, Epoch: 1, Tenant: q.tenant, Namespace: q.namespace,
		Log: append([]int32(nil), q.log...), MaxLen: q.length(), Draft: true})
	return d
}

// begin computes what the draft model generates after a log.
func (d *drafter) begin(log []int32) {
	d.next = d.w.roots[d.seq.id].extendAll(log)
	d.last, d.ids = log[len(log)-1], nil
}

// ask asks for draft tokens. It returns false if there can be none.
func (d *drafter) ask(c sched.Propose) bool {
	n := min(c.N, d.q.length()-len(c.Log))
	if !d.open || d.ended || n < 1 {
		return false
	}
	d.rounds++
	c.N, c.Log = n, append([]int32(nil), c.Log...)
	d.asked, d.least = &c, -2
	if c.Any {
		d.least = math.Inf(-1)
	}
	d.begin(c.Log)
	d.p.tell(sched.Round{ID: d.seq.id, Log: c.Log, End: len(c.Log) + n, MinLogprob: d.least, Round: c.Round})
	round := d.rounds
	d.p.router.after(c.Limit, func() {
		if d.rounds != round || d.asked == nil || d.ended {
			return
		}
		if len(d.ids) == 0 {
			d.accept(false)
			d.p.router.after(lateDraftFactor*c.Limit, func() {
				if d.rounds == round && !d.open {
					d.stop()
				}
			})
		}
		d.answer(false)
	})
	return true
}

// answer sends the tokens of the round.
func (d *drafter) answer(unlikely bool) {
	c := d.asked
	d.asked = nil
	d.target.tell(sched.Drafted{ID: d.q.seq.id, Round: c.Round, IDs: d.ids, Unlikely: unlikely})
}

func (d *drafter) accept(open bool) {
	d.open = open
	if d.q.seq != nil && d.target == d.q.p {
		d.target.tell(sched.DraftReady{ID: d.q.seq.id, Ready: open})
	}
}

// read takes the results of the draft session.
func (d *drafter) read() {
	for len(d.seq.out) > 0 && !d.ended {
		r := d.seq.out[0]
		d.seq.out = d.seq.out[1:]
		switch {
		case r.lost != "" || r.err != "":
			d.stop()
			return
		case r.token == nil:
			continue
		}
		d.seq.took(d.p)
		d.take(r)
	}
}

func (d *drafter) take(r result) {
	if !d.open { // the first token of all, or a late one
		d.accept(true)
	}
	round := uint64(0)
	if d.asked != nil {
		round = d.asked.Round
	}
	if r.round != round || d.asked == nil {
		return
	}
	if want := d.next.pickDraft(d.last); r.token.id != want {
		d.w.violate("the draft session %s has token %d after %d of round %d, want %d", d.seq.id, r.token.id, len(d.ids),
			round, want)
		return
	}
	d.next, d.last = d.next.extend(r.token.id), r.token.id
	d.ids = append(d.ids, r.token.id)
	unlikely := r.token.logprob < d.least
	if unlikely || len(d.ids) == d.asked.N {
		d.answer(unlikely)
	}
}

// stop ends the draft session.
func (d *drafter) stop() {
	if d.ended {
		return
	}
	d.ended = true
	d.p.assigned--
	d.accept(false)
	if d.asked != nil {
		d.ids = nil
		d.answer(false)
	}
	d.p.tell(sched.Cancel{ID: d.seq.id})
}
