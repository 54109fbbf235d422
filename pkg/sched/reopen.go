package sched

// reopened makes the scheduler go on after its chain had broken. Every running sequence goes back to the
// last position of which it is known that all stages have computed it, and brings its whole block table
// with its next entry. A page is never lost by this: the positions up to there are on mapped pages, and
// all later ones are written again.
//
// The sampler picks once for each position of an epoch. It may have picked for a row whose token did not
// arrive, or may still do so for a row that the former chain had sent. So a sequence whose result was
// awaited is added to the sampler again, under the next epoch: earlier results no longer count, and the
// same position gives the same token once more. The same holds for rows behind a rejected draft token:
// the sampler drops them, but only as long as they arrive before the rows that replace them.
//
// A stage that has lost everything is brought to where the others are by replays.
func (s *Scheduler) reopened(e Reopened) {
	if e.ReplayUntil > 0 {
		s.blame()
	}
	s.strays = strays{}
	clear(s.inFlight)
	s.flights, s.unproven = s.flights[:0], s.unproven[:0]
	clear(s.builders)
	for _, q := range s.running {
		awaited := q.feed.Waiting() || q.scoring > 0 || q.strays
		if q.scoring > 0 && q.scores > q.scored { // scores arrive one by one, in the order of positions
			q.done = max(q.done, q.scores)
		}
		q.scoring = 0
		q.feed.Resend(q.done)
		q.known, q.told, q.step, q.since = 0, 0, 0, s.step
		q.windows = nil
		q.spec.rewind(q.feed.Len())
		q.spec.last = s.now
		s.dropStale(q.stale) // no table of a stage names them any more
		q.stale = nil
		if e.Sampler || awaited {
			s.addAgain(q)
		}
	}
	for _, q := range s.waiting {
		if q.since = s.step; e.Sampler {
			s.addAgain(q)
		}
	}
	for _, q := range append([]*sequence(nil), s.running...) {
		if q.yield {
			s.preempt(q)
		}
	}
	if e.ReplayUntil > 0 {
		s.rebuild(e.ReplayUntil)
	}
	for _, q := range s.running {
		s.startReplay(q)
	}
	s.pool.freeAgain()
	s.acks = nil // a stage that still wants less asks again
	for _, l := range e.Leases {
		s.lease(l)
	}
}

// addAgain adds a sequence that the sampler knows to the sampler under its next epoch.
func (s *Scheduler) addAgain(q *sequence) {
	if !q.added {
		return
	}
	q.Epoch++
	q.accepted, q.strays = false, false
	q.draft.picked = none
	s.addToSampler(q)
}
