package sched

// Requests that arrive together often have the same prompt: n samples of one request, or questions about
// one document. The prefix cache alone does not help them, since it knows only pages that were computed.
//
// So a running sequence whose next page is being computed for another one waits for it. The other one is
// its leader. As soon as the stages have computed a page, it is in the prefix cache and the sequence takes
// it from there. Nothing is decided in advance: before each batch, a sequence waits only if the rows of
// its next page are in flight. So it waits for a batch that has a deadline, never for a sequence. If the
// leader is canceled, preempted or refused, then the rows are no longer in flight, and the most urgent of
// those that waited computes the page and is the leader of the others.

// front is a page that several running sequences need next: the first page of their logs that is not in
// the prefix cache.
type front struct {
	leader  *sequence // the one that has sent the most rows
	members int
}

// shares reports whether a sequence uses pages that others have computed.
func (q *sequence) shares() bool { return !q.private && !q.toScore() }

// hash returns the hash of a full page of a sequence's log.
func (q *sequence) hash(page, pageLen int) uint64 {
	for n := len(q.hashes); n <= page; n++ {
		parent := rootHash(q.space)
		if n > 0 {
			parent = q.hashes[n-1]
		}
		q.hashes = append(q.hashes, pageHash(parent, q.feed.Log()[n*pageLen:(n+1)*pageLen]))
	}
	return q.hashes[page]
}

// share gives running sequences the pages of their prompts that were computed for others in the meantime,
// and finds out which sequences need the same page next.
func (s *Scheduler) share() {
	clear(s.fronts)
	for _, q := range s.running {
		if q.private {
			continue
		}
		if s.idle(q) && q.shares() {
			s.takeShared(q)
		}
		s.join(q)
	}
}

// idle reports whether a sequence has rows of its prompt to send and none in flight.
func (s *Scheduler) idle(q *sequence) bool {
	return q.feed.Prefilling() && q.feed.Sent() == q.done && !q.replaying()
}

// takeShared lets a sequence use the cached pages that follow those it has.
func (s *Scheduler) takeShared(q *sequence) {
	log, n := q.feed.Log(), s.cfg.PageLen
	first := q.indexed
	for (q.indexed+1)*n < len(log) { // the last position is computed in any case, for the next token
		k := q.indexed
		parent, hash := int32(none), rootHash(q.space)
		if k > 0 {
			parent, hash = int32(q.table[k-1]), q.hash(k-1, n)
		}
		page, _, found := s.pool.find(q.space, parent, hash, log[k*n:(k+1)*n])
		if !found || s.pool.missing[uint32(page)] {
			break
		}
		s.pool.hold(uint32(page), s.now)
		if k < len(q.table) {
			s.replace(q, k, uint32(page))
		} else {
			q.table = append(q.table, uint32(page))
		}
		q.indexed++
	}
	if q.indexed == first {
		return
	}
	taken := q.indexed*n - q.done
	q.done += taken
	q.feed.Skip(q.done)
	q.charged = max(q.charged, q.done)
	s.stats.hits += uint64(taken)
	if q.preempt == 0 {
		q.cached += taken
		s.do(Share{q.ID, q.cached})
	}
}

// replace puts an equal page in the place of a page of a sequence's table. If the stages' table names the
// old one, it is not free until they know the new table.
func (s *Scheduler) replace(q *sequence, at int, page uint32) {
	own := q.table[at]
	q.table[at] = page
	q.known = min(q.known, at)
	if at < q.told {
		q.stale = append(q.stale, own)
	} else {
		s.pool.release(own, s.now)
	}
}

// join counts a sequence among those that need the same page next.
func (s *Scheduler) join(q *sequence) {
	n := s.cfg.PageLen
	if (q.indexed+1)*n > q.feed.Len() {
		return
	}
	h := q.hash(q.indexed, n)
	f := s.fronts[h]
	f.members++
	// A prompt that is scored is computed in small pieces, so nobody follows it.
	if !q.toScore() && (f.leader == nil || q.feed.Sent() > f.leader.feed.Sent()) {
		f.leader = q
	}
	s.fronts[h] = f
}

// leads makes a sequence the leader of those that need the same page, since its rows were sent last.
func (s *Scheduler) leads(q *sequence) {
	if q.private || q.toScore() || (q.indexed+1)*s.cfg.PageLen > q.feed.Len() {
		return
	}
	h := q.hash(q.indexed, s.cfg.PageLen)
	s.fronts[h] = front{q, max(1, s.fronts[h].members)}
}

// follows returns the sequence that computes the pages of a sequence's log from the given one on, or nil,
// and how many of them. It returns nil as well if it takes less time to compute the pages for everyone who
// needs them than to wait for a step.
func (s *Scheduler) follows(q *sequence, page int) (leader *sequence, pages int) {
	n := s.cfg.PageLen
	if !q.shares() || (page+1)*n >= q.feed.Len() {
		return nil, 0
	}
	f := s.fronts[q.hash(page, n)]
	p := f.leader
	if p == nil || p == q || !p.running || p.indexed != page {
		return nil, 0
	}
	pages = equalPages(q.feed.Log()[page*n:q.feed.Len()-1], p.feed.Log()[page*n:], n)
	others := f.members
	if q.running { // it is one of the members
		others--
	}
	rows, row := pages*n*max(1, others), s.timing.chain.row
	if row > 0 && float64(rows)*row < s.timing.plain.Seconds() {
		return nil, 0
	}
	return p, pages
}

// Reusable returns how many positions of a log are in the prefix cache, or are about to be because a running
// sequence computes them.
func (s *Scheduler) Reusable(tenant, namespace string, log []int32) int {
	at := s.Cached(tenant, namespace, log)
	n := s.cfg.PageLen
	if at+n >= len(log) {
		return at
	}
	hash := rootHash(s.pool.spaces[space{tenant, namespace}])
	for i := 0; i <= at; i += n {
		hash = pageHash(hash, log[i:i+n])
	}
	p := s.fronts[hash].leader
	if p == nil || !p.running || p.Tenant != tenant || p.Namespace != namespace || p.indexed*n != at {
		return at
	}
	return at + n*equalPages(log[at:len(log)-1], p.feed.Log()[at:], n)
}

// equalPages returns how many full pages two logs have in common.
func equalPages(a, b []int32, pageLen int) int {
	same := 0
	for same < min(len(a), len(b)) && a[same] == b[same] {
		same++
	}
	return same / pageLen
}

// waits reports whether a sequence's next page is in flight for another one, so that it sends no rows now.
func (s *Scheduler) waits(q *sequence) bool {
	if !s.idle(q) {
		return false
	}
	p, pages := s.follows(q, q.indexed)
	return pages > 0 && p.feed.Sent() >= (q.indexed+1)*s.cfg.PageLen && s.sending(p)
}

// sending reports whether the last rows that a sequence has sent are in flight or in the batch that is being
// formed.
func (s *Scheduler) sending(q *sequence) bool {
	return s.inFlight[q.step] != nil || s.forming != nil && q.step == s.forming.step
}

// reserve takes pages for the end of a sequence's log, of which others compute the given number of pages
// first. Their own pages are taken only if they have to be computed here after all.
func (s *Scheduler) reserve(q *sequence, others int) {
	q.following = true
	for n := s.pool.pagesFor(q.wanted()) - len(q.table) - others; len(q.spare) < n; {
		page, ok := s.pool.take(q.tenant, s.tenants.unit())
		if !ok {
			return
		}
		q.spare = append(q.spare, page)
	}
}

// ownPages gives a sequence that no longer follows another one all pages of its log.
func (s *Scheduler) ownPages(q *sequence) {
	if q.following {
		q.following = false
		q.fresh = s.grow(q, q.wanted())
	}
}
