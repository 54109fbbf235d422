package sim

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// hedge is a second attempt of a request at its first token, on another pipeline, as in services/router/hedge.go.
type hedge struct {
	p   *pipe
	seq *sequence
}

// planHedge submits the request to another pipeline too if its first token is late.
func (q *request) planHedge() {
	if q.w.sc.Hedge == 0 || q.hasTokens() || q.strikes > 0 || !q.router.hasSpare(q.p) {
		return
	}
	seq := q.seq
	q.router.after(q.w.sc.Hedge, func() {
		if q.end != "" || q.seq != seq || q.waits != 0 || q.hasTokens() || q.second != nil || q.strikes > 0 {
			return
		}
		if p := q.hedgePipe(); p != nil {
			q.w.log("hedge %s on %s", q.name(), p.name)
			q.w.report.Hedged++
			q.hedged = true
			q.second = &hedge{p: p}
			q.second.seq = q.attempt(p, "h")
		}
	})
}

// hedgePipe returns another pipeline on which nobody waits, or nil.
func (q *request) hedgePipe() *pipe {
	var best *pipe
	for _, p := range q.router.pipes {
		if p == q.p || p.reopening || p.chain.Digest() != q.digest || p.sched.ContextLength() < q.length() ||
			p.sched.Stats().Waiting > 0 {
			continue
		}
		if best == nil || p.assigned < best.assigned {
			best = p
		}
	}
	return best
}

// readFrom takes the results of one of the request's attempts.
func (q *request) readFrom(seq *sequence) {
	switch {
	case q.end != "":
	case seq == q.seq:
		q.read()
	case q.second != nil && q.second.seq == seq:
		q.router.after(0, func() {
			for q.second != nil && q.second.seq == seq && len(seq.out) > 0 && q.end == "" {
				r := seq.out[0]
				seq.out = seq.out[1:]
				q.takeSecond(r)
			}
			if q.seq == seq && len(seq.out) > 0 { // it has become the first
				q.read()
			}
		})
	}
}

// takeSecond handles a result of the second attempt.
func (q *request) takeSecond(r result) {
	h := q.second
	switch {
	case r.lost != "", r.struck != "":
		if r.struck != "" {
			h.p.tell(sched.Cancel{ID: h.seq.id}) // the first one goes on alone
		}
		h.p.assigned--
		q.second = nil
		q.proven = max(q.proven, r.proven)
		if r.blamed || r.struck != "" {
			if q.strike(r); q.strikes >= maxStrikes {
				q.p.tell(sched.Cancel{ID: q.seq.id})
				q.release()
				q.finish("set aside: " + r.lost + r.struck)
			}
		}
	case r.err != "":
		h.p.assigned--
		q.second = nil
	case r.accepted:
		q.began = true
	case r.scored:
		q.takeScore(h.seq, r)
	default: // it is the first to give a token
		q.w.report.HedgesWon++
		q.p.tell(sched.Cancel{ID: q.seq.id})
		q.second = nil
		q.release()
		q.p, q.seq = h.p, h.seq
		q.takeToken(r)
		if q.end == "" {
			h.seq.took(h.p)
		}
	}
}

// lostFirst goes on with the second attempt alone.
func (q *request) lostFirst(r result) {
	h := q.second
	q.second = nil
	q.release()
	q.p, q.seq = h.p, h.seq
	q.proven = max(q.proven, r.proven)
	if r.blamed || r.struck != "" {
		if q.strike(r); q.strikes >= maxStrikes {
			q.p.tell(sched.Cancel{ID: q.seq.id})
			q.release()
			q.finish("set aside: " + r.lost + r.struck)
			return
		}
	}
	if len(q.seq.out) > 0 {
		q.read()
	}
}

// won ends the second attempt, if there is one: the first has given a token.
func (q *request) won() { q.dropSecond() }

// dropSecond cancels the second attempt.
func (q *request) dropSecond() {
	if h := q.second; h != nil {
		q.second = nil
		h.p.tell(sched.Cancel{ID: h.seq.id})
		h.p.assigned--
	}
}

// drawHedge makes requests of some scenarios hedge.
func drawHedge(seed uint64) time.Duration {
	if seed%3 != 1 {
		return 0
	}
	return time.Duration(20+seed*37%400) * time.Millisecond
}
