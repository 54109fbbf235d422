package sched

import (
	"slices"
	"time"
)

// overtakeLimit is how long others may overtake the first sequence of the queue while there are too
// few pages for it. After that pages are kept for it.
const overtakeLimit = 2 * time.Second

// admit lets waiting sequences run, the most urgent first, while there are pages for their logs.
func (s *Scheduler) admit() {
	if len(s.waiting) == 0 {
		s.stuck = 0
		return
	}
	if len(s.running) >= s.cfg.Entries {
		return
	}
	queue := slices.Clone(s.waiting)
	slices.SortStableFunc(queue, func(a, b *sequence) int {
		switch {
		case s.sooner(a, b):
			return -1
		case s.sooner(b, a):
			return 1
		}
		return 0
	})
	var blocked *sequence // the first
	for _, q := range queue {
		if len(s.running) >= s.cfg.Entries {
			return
		}
		if blocked != nil && s.now-s.stuck > overtakeLimit {
			return
		}
		if blocked != nil && !s.mayOvertake(q, blocked) {
			continue
		}
		if s.makeRoom(q, blocked == nil) {
			s.start(q)
			if blocked == nil {
				s.stuck = 0
			}
			continue
		}
		if blocked == nil {
			blocked = q
			if s.stuck == 0 {
				s.stuck = max(s.now, 1)
			}
		}
	}
}

// mayOvertake reports whether a sequence may use pages that are too few for the first of the queue. Its
// tenant must not have had more service than the tenant of the other by more than the cache has positions.
// So the service of tenants stays within a bound.
func (s *Scheduler) mayOvertake(q, first *sequence) bool {
	return q.tenant.service <= first.tenant.service+float64(s.pool.limit*s.cfg.PageLen)
}

// makeRoom reports whether there are pages for a sequence's log and for the growth of those that run.
// For the first of the queue it preempts sequences that are less urgent.
func (s *Scheduler) makeRoom(q *sequence, first bool) bool {
	for {
		reused, cached := s.matched(q)
		need := s.pool.pagesFor(q.wanted()) - reused - s.coming(q, reused) + len(s.running)/8
		// Cached pages that the sequence itself reuses cannot be evicted for it.
		if need <= s.pool.available(q.tenant, s.tenants.unit())-cached {
			return true
		}
		if !first {
			return false
		}
		if len(s.running) == 0 { // then not even the share of another tenant is spared
			if !s.pool.evictAny(s.tenants) {
				return true
			}
			continue
		}
		v, _ := s.victim(q, true)
		if v == nil {
			return false
		}
		s.giveUp(v)
		if v.running { // once its row is back
			return false
		}
	}
}

// matched returns how many pages of a sequence's log are in the prefix cache, and how many of them no
// sequence holds.
func (s *Scheduler) matched(q *sequence) (pages, unheld int) {
	if q.private || q.toScore() {
		return 0, 0
	}
	log := q.feed.Log()
	s.pool.walk(q.space, log, len(log)-1, func(page int32) {
		pages++
		if s.pool.refs[page] == 0 {
			unheld++
		}
	})
	return pages, unheld
}

// Cached returns how many positions of a log are in the prefix cache.
func (s *Scheduler) Cached(tenant, namespace string, log []int32) int {
	id, ok := s.pool.spaces[space{tenant, namespace}]
	if !ok {
		return 0
	}
	n := 0
	s.pool.walk(id, log, len(log)-1, func(page int32) {
		if !s.pool.missing[uint32(page)] {
			n += s.cfg.PageLen
		}
	})
	return n
}

// start admits a sequence: it gets the pages of its prefix that are cached, and pages for the rest of
// its log.
func (s *Scheduler) start(q *sequence) {
	s.waiting = slices.DeleteFunc(s.waiting, func(o *sequence) bool { return o == q })
	q.tenant.waiting--
	q.tenant.running++
	q.running = true
	s.running = append(s.running, q)
	if !q.private && !q.toScore() {
		log := q.feed.Log()
		s.pool.walk(q.space, log, len(log)-1, func(page int32) {
			s.pool.hold(uint32(page), s.now)
			q.table = append(q.table, uint32(page))
		})
		q.indexed = len(q.table)
		q.done = q.indexed * s.cfg.PageLen
		q.feed.Skip(q.done)
		q.charged = max(q.charged, q.done)
		s.startReplay(q)
		s.stats.queried += uint64(q.feed.Len())
		s.stats.hits += uint64(q.done)
	}
	if q.preempt == 0 {
		q.cached = q.done
	}
	s.do(Admit{ID: q.ID, Cached: q.done, Again: q.preempt > 0})
	if others := s.coming(q, q.indexed); others > 0 {
		q.fresh = false
		s.reserve(q, others)
	} else {
		q.fresh = s.grow(q, q.wanted())
	}
	if !q.private {
		s.join(q)
	}
}

// coming returns how many pages of a waiting sequence's log from the given one on are being computed for
// another sequence, so that it can run without pages of its own for them. A sequence that was preempted
// gets all its pages before it runs again, so that it is not preempted again when the other one ends early.
// So does a suspect, which is computed alone and could wait for pages of sequences that wait for it.
func (s *Scheduler) coming(q *sequence, page int) int {
	if q.preempt > 0 || q.Suspect {
		return 0
	}
	_, pages := s.follows(q, page)
	return pages
}

// wanted returns the length of the log for which a sequence needs pages when it is admitted. A draft
// session gets all that it may ever need: its pages are not worth the preemption of another one.
func (q *sequence) wanted() int {
	if q.Draft {
		return q.MaxLen
	}
	return q.feed.Len()
}

// grow gives a sequence pages for the first n positions of its log. It returns false if there are too
// few; the sequence keeps those that it got.
func (s *Scheduler) grow(q *sequence, n int) bool {
	for len(q.table) < s.pool.pagesFor(n) {
		if last := len(q.spare) - 1; last >= 0 {
			q.table, q.spare = append(q.table, q.spare[last]), q.spare[:last]
			continue
		}
		page, ok := s.pool.take(q.tenant, s.tenants.unit())
		if !ok {
			return false
		}
		q.table = append(q.table, page)
	}
	return true
}

// victim returns the sequence to preempt so that another can have pages, or nil if no running one is
// less urgent. A session that drafts is the first to go: it only saves time. For a sequence that waits
// the victim must have a lower priority, or belong to a tenant that holds more than its share.
//
// A sequence that was admitted is spared by others of its priority until it has had a token. Otherwise
// two of them could preempt each other for ever. soon says that there is one that is only spared.
func (s *Scheduler) victim(q *sequence, waits bool) (worst *sequence, soon bool) {
	if q.Draft {
		return nil, false
	}
	unit := s.tenants.unit()
	for _, o := range s.running {
		if o == q || len(o.table)+len(o.spare) == 0 || o.toScore() || o.yield {
			continue
		}
		if !o.Draft && !s.yields(o, q, unit, waits) {
			continue
		}
		if s.spared(o) && s.level(o) == s.level(q) {
			soon = true
			continue
		}
		if worst == nil || o.Draft && !worst.Draft || o.Draft == worst.Draft && s.before(worst, o) {
			worst = o
		}
	}
	return worst, soon
}

// spared reports whether a sequence has had no token since it was admitted and is about to have one: it
// has all pages that it needs for that.
func (s *Scheduler) spared(q *sequence) bool {
	return q.fresh && q.accepted && !q.paused && !q.Draft && (!q.Suspect || q == s.suspect)
}

// yields reports whether a running sequence gives its pages to another one: to one of better priority,
// to one of a tenant that has less than its share if its own tenant has more, and else to one that is
// served before it.
func (s *Scheduler) yields(o, q *sequence, unit float64, waits bool) bool {
	if a, b := s.level(o), s.level(q); a != b {
		return a > b
	}
	own, other := q.tenant.share(unit), o.tenant.share(unit)
	greedy := o.tenant != q.tenant && o.tenant.pages > other && q.tenant.pages < own
	if waits {
		return greedy && q.tenant.pages+s.pool.pagesFor(q.feed.Len()) <= own
	}
	robs := o.tenant != q.tenant && q.tenant.pages > own && o.tenant.pages <= other
	return greedy || !robs && s.before(q, o)
}

// giveUp makes a sequence give its pages back: at once, or when its row in flight has come back. A member
// of the batch that is being formed keeps its pages until that batch is done.
func (s *Scheduler) giveUp(q *sequence) {
	if s.flying(q) || s.forming != nil && q.step == s.forming.step {
		q.yield = true
		return
	}
	s.preempt(q)
}

// preempt makes a running sequence wait. Its log is computed again later, except for what is still in
// the prefix cache then. A draft session ends instead.
func (s *Scheduler) preempt(q *sequence) {
	if q.Draft {
		s.do(End{ID: q.ID})
		s.remove(q)
		return
	}
	s.stop(q)
	s.running = slices.DeleteFunc(s.running, func(o *sequence) bool { return o == q })
	q.feed = q.feed.Restart()
	q.spec.forget()
	q.preempt++
	q.since = s.step
	s.stats.preemptions++
	s.waiting = append(s.waiting, q)
	slices.SortFunc(s.waiting, func(a, b *sequence) int { return int(int64(a.order) - int64(b.order)) })
	q.tenant.waiting++
	s.do(Preempt{q.ID})
}

// granted returns how many pages the leases of all stages allow.
func (s *Scheduler) granted() int {
	n := s.cfg.Pages
	for _, l := range s.leases {
		n = min(n, l.Pages)
	}
	return n
}

// lease handles a stage's new lease.
func (s *Scheduler) lease(e Lease) {
	i := slices.IndexFunc(s.leases, func(l Lease) bool { return l.Lo == e.Lo })
	if i < 0 {
		i = len(s.leases)
		s.leases = append(s.leases, Lease{Lo: e.Lo})
	}
	s.acks = slices.DeleteFunc(s.acks, func(l Lease) bool { return l.Lo == e.Lo })
	if e.Pages < s.leases[i].Pages {
		s.acks = append(s.acks, e)
	}
	s.leases[i] = e
	s.pool.limit = s.granted()
}

// fitLease gives pages back until the pipeline holds no more than its lease. A sequence that is alone
// and too long for the lease has to go to another pipeline.
func (s *Scheduler) fitLease() {
	for !s.pool.shrink(s.tenants) {
		var worst *sequence
		for _, q := range s.running {
			if len(q.table)+len(q.spare) > 0 && !q.yield && (worst == nil || s.before(worst, q)) {
				worst = q
			}
		}
		if worst == nil {
			return
		}
		s.giveUp(worst)
		if worst.running {
			return // its pages are free when its row is back
		}
	}
}

// ContextLength returns the length of the longest log that the pipeline can hold.
func (s *Scheduler) ContextLength() int {
	return min(s.cfg.Positions, s.granted()*s.cfg.PageLen)
}
