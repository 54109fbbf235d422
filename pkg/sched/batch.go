package sched

import (
	"cmp"
	"slices"
	"time"
)

// scoreBytes bounds the logits of the prompt rows that are scored in one batch.
const scoreBytes = 16 << 20

// depth returns how many batches may be in flight. A single stage computes one at a time. In a longer
// pipeline each stage has one to compute, and one more is on its way.
func (s *Scheduler) depth() int {
	switch {
	case s.cfg.Depth > 0:
		return s.cfg.Depth
	case s.cfg.Stages == 1:
		return 1
	}
	return s.cfg.Stages + 1
}

// form returns the next batch, or nil if there is nothing to send now.
//
// Decoding sequences are divided evenly among the batches that may be in flight, so that every stage
// has about the same work at any time. A batch is not formed while another has come back in part: its
// other sequences are about to be ready, and two half batches cost more than a whole one.
//
// Prompts fill the rest. Beside decoding sequences they get only as many rows as take about as long as
// the decoding itself, measured, so that a long prompt at most doubles the time between tokens (promptRows).
func (s *Scheduler) form() *Batch {
	suspect, wait := s.probation()
	if wait {
		return nil
	}
	for _, f := range s.flights {
		if f.back > 0 && f.awaited > 0 {
			return nil
		}
	}
	b := &Batch{Step: s.step + 1}
	f := &flight{step: b.Step, sent: s.now, decode: true, alone: suspect != nil}
	s.forming = f
	defer func() { s.forming = nil }()
	ready := make([]*sequence, 0, len(s.running))
	decoding := 0
	for _, q := range s.running {
		if suspect != nil && q != suspect || suspect == nil && q.Suspect && q.harmless() == 0 {
			continue
		}
		if !q.feed.Prefilling() && q.accepted && !q.paused && (!q.Draft || !q.draft.paused) {
			decoding++
		}
		if q.ready() {
			ready = append(ready, q)
		}
	}
	// Decoding sequences first, those that have waited longest first; then prompts by urgency.
	slices.SortStableFunc(ready, func(a, b *sequence) int {
		x, y := a.feed.Prefilling(), b.feed.Prefilling()
		switch {
		case x != y:
			return cmp.Compare(btoi(x), btoi(y))
		case !x:
			return cmp.Compare(a.step, b.step)
		case s.sooner(a, b):
			return -1
		case s.sooner(b, a):
			return 1
		}
		return 0
	})
	evenly := (decoding + s.depth() - 1) / s.depth()
	quota, decodes := evenly, 0
	rows := s.cfg.BatchRows
	prompts, asked, slow := rows, false, false
	for _, q := range ready {
		if rows <= 0 || len(b.Entries) == s.cfg.Entries {
			break
		}
		if !q.running || !q.ready() { // preempted for one before it
			continue
		}
		prefill := q.feed.Prefilling()
		n := min(rows, s.cfg.ChunkRows)
		if prefill {
			if decoding > 0 && !asked {
				asked = true
				prompts, slow = s.timing.promptRows(s.cfg.ChunkRows, q.feed.Due(), decodes, q.moved)
				prompts += max(0, evenly-decodes) // a batch without decoding rows takes as long as the others
			}
			n = min(n, prompts)
		} else if quota == 0 {
			continue
		}
		if n < 1 || s.waits(q) || prefill && decodes == 0 && !s.roomForPrompts(decoding) {
			continue
		}
		s.ownPages(q)
		sent := s.add(b, f, q, n)
		rows -= sent
		if prefill {
			prompts -= sent
			f.prompts += btoi(sent > 0 && decodes > 0) // its first row is not one that the batch has anyway
			s.leads(q)
		} else if sent > 0 {
			quota--
			decodes++
		}
		f.decode = f.decode && (!prefill || sent == 0)
	}
	if len(b.Entries) == 0 {
		if suspect == nil && s.suspect != nil &&
			!s.turn { // the others wait for pages, perhaps for those of the suspect
			s.turn = true
			return s.form()
		}
		return nil
	}
	f.decodes = decodes
	if decodes > 0 {
		s.timing.sent(decodes, !f.decode, slow)
	}
	s.launch(b, f)
	return b
}

// roomForPrompts reports whether a batch of prompts alone may be sent beside sequences that decode. Such batches keep
// stages busy that would be idle. One more than there are stages would make the batches of the decoding sequences wait
// on every stage.
func (s *Scheduler) roomForPrompts(decoding int) bool {
	return decoding == 0 || s.depth() == 1 || s.busy() < s.cfg.Stages
}

// launch records that a batch is in flight.
func (s *Scheduler) launch(b *Batch, f *flight) {
	s.step++
	for _, o := range s.flights {
		f.ahead += o.prompts
	}
	f.ahead += s.strays.rows
	f.behind = s.promptsFly()
	f.mixed = f.mixed || s.strays.rows > 0
	f.limit = s.timing.limit(f)
	b.Deadline = f.limit
	s.inFlight[s.step] = f
	s.flights = append(s.flights, f)
	s.turn = !f.alone
	s.stats.steps++
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// add adds a sequence's next rows to a batch, at most n, and returns how many.
func (s *Scheduler) add(b *Batch, f *flight, q *sequence, n int) int {
	n = q.trialRows(s.scoreRows(q, n))
	drafts, decides, wait := s.speculate(q, n-1)
	if wait {
		return 0
	}
	at := q.feed.Sent()
	end := min(q.feed.Len(), at+n)
	if !s.grow(q, end+len(drafts)) {
		drafts = nil
		if !s.growFor(q, end) {
			return 0
		}
	}
	rows, ok := q.feed.NextWithDrafts(n, drafts)
	if !ok {
		return 0
	}
	e := Entry{ID: q.ID, Epoch: q.Epoch, Position: rows.Pos, Rows: len(rows.IDs)}
	if q.known < len(q.table) {
		e.PageFrom, e.Pages = q.known, slices.Clone(q.table[q.known:])
		q.known, q.told = len(q.table), len(q.table)
	}
	m := entry{id: q.ID, run: q.preempt, end: rows.Pos + len(rows.IDs)}
	switch {
	case q.toScore() && !rows.Logits && q.feed.Sent() > q.scores:
		s.askScores(q, &e, rows.Pos)
		m.awaited = true
	case rows.Logits:
		e.Logits, e.Drafts = 1+rows.Drafts, rows.IDs[len(rows.IDs)-rows.Drafts:]
		if q.Candidates != nil && (rows.Drafts == 0 || decides) {
			e.Candidates = q.Candidates.Need(s.cfg.Vocab, rows.Pos+len(rows.IDs))
		}
		if rows.Drafts > 0 {
			e.Drafter = q.spec.by.name
		}
		m.awaited = true
		if q.Draft {
			q.draft.picked = rows.Pos + len(rows.IDs) - 1
		}
	}
	if m.awaited {
		f.awaited++
		q.windows = append(q.windows, s.newWindow(q, f, rows.Pos, len(rows.IDs), rows.Drafts, e.Candidates))
	} else {
		m.chunk = rows.Pos + len(rows.IDs)
	}
	q.step = f.step
	q.charge(rows.Pos + len(rows.IDs) - rows.Drafts)
	b.Entries = append(b.Entries, e)
	b.Tokens = append(b.Tokens, rows.IDs...)
	f.entries = append(f.entries, m)
	f.rows += len(rows.IDs)
	f.prompts += len(rows.IDs) - 1
	f.drafts += rows.Drafts
	s.stale, q.stale = append(s.stale, q.stale...), nil // the stages learn of the new table with this entry
	return len(rows.IDs)
}

// charge charges the tenant for the positions up to end. Positions that were found in the prefix cache
// cost nothing, and positions that are computed again after a preemption are not charged again.
func (q *sequence) charge(end int) {
	prompt := len(q.Log)
	if q.charged < prompt && q.charged < end {
		to := min(end, prompt)
		q.tenant.charge(to-q.charged, promptCost)
		q.charged = to
	}
	if q.charged < end {
		q.tenant.charge(end-q.charged, decodeCost)
		q.charged = end
	}
}

// growFor gives a sequence pages for n positions and preempts less urgent sequences for them. If it is
// the least urgent itself, it is preempted. If it is alone, it takes what is cached, and if even that
// is too little, its lease has shrunk and it has to go elsewhere.
func (s *Scheduler) growFor(q *sequence, n int) bool {
	for !s.grow(q, n) {
		v, soon := s.victim(q, false)
		switch {
		case v != nil:
			s.giveUp(v)
			if v.running { // its pages are free when its row is back
				return false
			}
		case soon:
			return false
		case len(s.running) > 1:
			s.preempt(q)
			return false
		case !s.pool.evictAny(s.tenants):
			s.do(TurnAway{ID: q.ID, Reason: TooLong, Have: s.granted(), Need: s.pool.pagesFor(n),
				Proven: q.tried()})
			s.remove(q)
			return false
		}
	}
	return true
}

// dropStale frees pages that the stages' tables no longer name.
func (s *Scheduler) dropStale(pages []uint32) {
	for _, page := range pages {
		s.pool.release(page, s.now)
	}
}

// scoreRows bounds the rows of a sequence's next chunk. All rows of a prompt that is scored give
// logits, which take more memory than their hidden states. The last position of the prompt gets a
// batch of its own, because the first token is picked from its row.
func (s *Scheduler) scoreRows(q *sequence, n int) int {
	if !q.toScore() || !q.feed.Prefilling() {
		return n
	}
	return min(n, max(1, scoreBytes/(4*max(1, s.cfg.Vocab))), q.feed.Due()-1)
}

// trialRows bounds the rows of a suspect's next chunk, so that rows that may have ended a stage do not share a
// batch with those that certainly did not.
func (q *sequence) trialRows(n int) int {
	if rows := q.harmless(); rows > 0 {
		return min(n, rows)
	}
	if left := q.tried() - q.feed.Sent(); q.Suspect && left > 0 {
		return min(n, left)
	}
	return n
}

// askScores makes an entry's rows ask for the log-probabilities of the tokens that follow them. The
// sequence sends no further rows until the last score has arrived.
func (s *Scheduler) askScores(q *sequence, e *Entry, at int) {
	e.Targets = slices.Clone(q.feed.Log()[at+1 : at+1+e.Rows])
	e.Logits = e.Rows
	e.Candidates = 1
	q.scoring, q.scored = at+e.Rows, q.scores
}

// startProbation chooses the next suspect. A suspect was in flight on a pipeline that died. What was computed
// of it before is computed again beside others. Then, until it has had a token, no other suspect is added to the
// sampler or computed further, and nothing else is in flight beside it, so that no other suspect is blamed if
// this pipeline dies as well.
func (s *Scheduler) startProbation() {
	if s.suspect != nil {
		return
	}
	// A suspect that waits for its reader, which may be slow, must not keep the others waiting.
	i := slices.IndexFunc(s.running, func(q *sequence) bool {
		return q.Suspect && !q.blamed && !q.paused && !q.replaying() && q.harmless() == 0
	})
	if i < 0 {
		return
	}
	s.suspect = s.running[i]
	if !s.suspect.added {
		s.addToSampler(s.suspect)
	}
}

// probation returns the suspect whose rows are the next batch on their own, if it is its turn: batches
// of the suspect and of the others take turns. wait says that the next batch has to wait until the
// batches in flight are done.
func (s *Scheduler) probation() (suspect *sequence, wait bool) {
	for _, f := range s.flights {
		if f.alone {
			return nil, true
		}
	}
	if s.suspect == nil || !s.suspect.ready() {
		return nil, false
	}
	if !s.turn && slices.ContainsFunc(s.running, func(q *sequence) bool {
		return (!q.Suspect || q.harmless() > 0) && q.ready() || q.replaying()
	}) {
		return nil, false
	}
	return s.suspect, len(s.flights) > 0
}

// overdue returns the batch or the sequence that has missed its deadline, or nil. There is no other
// way to notice a stage that is alive and answers nothing.
func (s *Scheduler) overdue() *Fail {
	for _, f := range s.flights {
		if late := s.now - f.sent; late > f.limit {
			return &Fail{Step: f.step, Late: late, Limit: f.limit}
		}
	}
	for _, list := range [][]*sequence{s.running, s.waiting} {
		for _, q := range list {
			if late := s.now - q.asked; q.added && !q.accepted && late > acceptLimit {
				return &Fail{ID: q.ID, Late: late, Limit: acceptLimit}
			}
		}
	}
	return nil
}

// Due returns when the first batch in flight misses its deadline, unless its results come before. The caller
// should call Step then, even if nothing has happened. ok is false if nothing is in flight.
func (s *Scheduler) Due() (at time.Duration, ok bool) {
	for _, f := range s.flights {
		if due := f.sent + f.limit + 1; !ok || due < at {
			at, ok = due, true
		}
	}
	return at, ok
}

// acceptLimit is how long the sampler may take to accept a sequence: it may have to compile a grammar.
const acceptLimit = 60 * time.Second

// Oldest returns the age of the oldest batch in flight, or 0.
func (s *Scheduler) Oldest(now time.Duration) time.Duration {
	if len(s.flights) == 0 {
		return 0
	}
	return max(0, now-s.flights[0].sent)
}
