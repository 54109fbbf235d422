package sched

import "slices"

// picked handles a token.
func (s *Scheduler) picked(e Picked) {
	q := s.byID[e.ID]
	if q == nil || e.Epoch != q.Epoch || !q.feed.Token(e.Position, e.Token) {
		return
	}
	// The token comes from the row before it, and stages compute rows in the order of positions.
	q.done = max(q.done, e.Position)
	emit := Emit{ID: q.ID, Data: e.Data, Round: q.draft.round, Drafter: s.verify(q, e.Position)}
	if q.Suspect = false; s.suspect == q {
		s.suspect = nil
	}
	s.stats.tokens++
	q.fresh = false
	if q.Draft {
		q.draft.paused = q.feed.Len() >= q.draft.end || !(e.Logprob >= q.draft.minLogprob)
		s.do(emit)
		return
	}
	emit.Length = !e.Finished && q.feed.Len() >= q.MaxLen
	s.do(emit)
	switch {
	case e.Finished || emit.Length:
		s.remove(q)
	case q.yield && !s.flying(q):
		s.preempt(q)
	default:
		s.index(q)
	}
}

// scored handles the score of one token of a sequence's prompt. Scores arrive in the order of their
// positions, from 1.
func (s *Scheduler) scored(e Scored) {
	q := s.byID[e.ID]
	if q == nil || e.Epoch != q.Epoch || e.Position != q.scores+1 {
		return
	}
	q.scores++
	s.do(Score{q.ID, e.Data})
	if e.Position == q.scoring {
		q.scoring = 0
		q.done = max(q.done, e.Position)
		s.back(q)
	}
}

// back records that the results of a sequence's first entry in flight have come, or will not come. With
// the last one the batch is done.
func (s *Scheduler) back(q *sequence) {
	if !s.flying(q) {
		return
	}
	w := q.windows[0]
	q.windows = q.windows[1:]
	f := s.inFlight[w.step]
	f.entries[w.entry].awaited = false
	f.awaited--
	f.back++
	if f.awaited == 0 {
		s.finish(f)
	}
}

// computed handles the last stage's word that a batch is computed: what its chunks of prompts have computed
// counts. Tokens do not prove that: they arrive on another stream than the refusal of a chunk, perhaps
// before it.
func (s *Scheduler) computed(e Computed) {
	if f := s.inFlight[e.Step]; f != nil {
		s.prove(f)
		if f.awaited == 0 {
			s.finish(f)
		}
		return
	}
	i := slices.IndexFunc(s.unproven, func(f *flight) bool { return f.step == e.Step })
	if i >= 0 {
		s.prove(s.unproven[i])
		s.unproven = slices.Delete(s.unproven, i, i+1)
	}
}

func (s *Scheduler) prove(f *flight) {
	f.proven = true
	for _, e := range f.entries {
		q := s.byID[e.id]
		switch {
		case q == nil || !q.running || q.preempt != e.run:
		case e.replay > 0:
			s.replayedTo(q, e.replay)
		case q.done < e.chunk:
			q.done = e.chunk
			s.index(q)
		}
	}
}

// counts reports whether an entry is a chunk of a prompt that its sequence still has use for.
func (s *Scheduler) counts(q *sequence, e entry) bool {
	return q != nil && q.running && q.preempt == e.run && q.done < e.chunk
}

// finish ends a batch: its time is measured.
func (s *Scheduler) finish(f *flight) {
	delete(s.inFlight, f.step)
	s.flights = slices.DeleteFunc(s.flights, func(o *flight) bool { return o == f })
	if !f.void && !f.abandoned {
		stages := min(s.cfg.Stages, s.depth())
		s.timing.done(f, s.now, float64(min(len(s.flights)+1, stages))/float64(stages),
			s.promptsFly(), len(s.flights) == 0)
		s.strays.passed(f)
	}
	for _, e := range f.entries {
		if q := s.byID[e.id]; q != nil && q.running && q.preempt == e.run && q.yield && !s.flying(q) {
			s.preempt(q)
		}
	}
	if !f.proven { // its tokens came first
		s.unproven = append(s.unproven, f)
	}
	s.unproven = slices.DeleteFunc(s.unproven, func(f *flight) bool {
		return !slices.ContainsFunc(f.entries, func(e entry) bool { return s.counts(s.byID[e.id], e) })
	})
}

// promptsFly reports whether a batch in flight has rows of prompts.
func (s *Scheduler) promptsFly() bool {
	return slices.ContainsFunc(s.flights, func(f *flight) bool { return !f.decode })
}

// index makes the full pages that a sequence has computed known to others. If another sequence has
// computed the same tokens in the meantime, its page takes the place of this one.
func (s *Scheduler) index(q *sequence) {
	if q.private || !q.running {
		return
	}
	log, n := q.feed.Log(), s.cfg.PageLen
	for ; (q.indexed+1)*n <= q.done && q.indexed < len(q.table); q.indexed++ {
		parent, hash := int32(none), rootHash(q.space)
		if q.indexed > 0 {
			parent = int32(q.table[q.indexed-1])
			hash = s.pool.nodes[parent].hash
		}
		tokens, own := log[q.indexed*n:(q.indexed+1)*n], q.table[q.indexed]
		other, hash, found := s.pool.find(q.space, parent, hash, tokens)
		switch {
		case found && s.pool.missing[uint32(other)]:
			q.private = true // its own page is worth more
			return
		case found:
			s.pool.hold(uint32(other), s.now)
			s.replace(q, q.indexed, uint32(other))
		case !s.pool.add(own, q.space, parent, hash, tokens):
			q.private = true // other tokens have the same hash
			return
		default:
			s.pool.nodes[own].used = s.now
		}
	}
}
