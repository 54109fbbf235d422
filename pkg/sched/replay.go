package sched

import (
	"slices"
	"time"
)

// A stage that replaces a lost one starts with empty pages, while the other stages keep theirs. The pages
// that it lacks are `pool.missing`. A sequence that holds one of them is replayed: its log is sent again,
// but only up to the layer where the lost stage ended, so the later stages compute nothing. The sequence
// goes on when none of its pages is missing any more. A page that several sequences share is replayed by
// one of them, its builder. Pages of the prefix cache are replayed when a sequence wants them.

// replay is how far a sequence has been replayed.
type replay struct {
	until  int  // the positions that all other stages have computed; 0 if the sequence is not replayed
	sent   int  // positions that were sent again or are not missing
	done   int  // positions that the new stage has
	flying int  // entries in flight
	known  bool // the new stage and those before it know the block table
}

// unprovenLimit is what a stage that has computed nothing yet may take longer than others, because it may
// have to read its weights from the disk. Without a spare pipeline it is coldLimit.
const unprovenLimit = time.Second

// rebuild notes which pages a new stage lacks: all those that hold something.
func (s *Scheduler) rebuild(until int) {
	if len(s.pool.missing) == 0 { // an earlier loss may not be made up for yet
		s.replayUntil = 0
	}
	s.replayUntil = max(s.replayUntil, until)
	s.timing.unproven, s.timing.cold = true, coldSteps
	s.pool.missing = map[uint32]bool{}
	for page := range s.pool.top {
		if s.pool.nodes[page].indexed {
			s.pool.missing[uint32(page)] = true
		}
	}
	for _, q := range s.running {
		for _, page := range q.table[:s.pool.pagesFor(q.done)] {
			s.pool.missing[page] = true
		}
	}
}

// startReplay finds out whether a sequence has to be replayed before it goes on.
func (s *Scheduler) startReplay(q *sequence) {
	q.replay = replay{}
	if slices.ContainsFunc(q.table[:s.pool.pagesFor(q.done)], func(page uint32) bool { return s.pool.missing[page] }) {
		q.replay.until = q.done
	}
}

// replaying reports whether a sequence is being replayed.
func (q *sequence) replaying() bool { return q.replay.until > 0 }

// stopReplay makes other sequences build the pages that this one was to build.
func (s *Scheduler) stopReplay(q *sequence) {
	for _, page := range q.table {
		if s.builders[page] == q {
			delete(s.builders, page)
		}
	}
	q.replay = replay{}
}

// next returns the next batch, or nil. Replays take turns with other batches, so that sequences that can
// go on wait for one chunk at most.
func (s *Scheduler) next() *Batch {
	if s.replayUntil == 0 {
		return s.form()
	}
	first, second := s.formReplay, s.form
	if s.replayed {
		first, second = second, first
	}
	b := first()
	if b == nil {
		b = second()
	}
	if b == nil && s.suspect == nil { // a suspect's replay may have ended just now, and nothing else calls Step soon
		if s.startProbation(); s.suspect != nil {
			b = s.form()
		}
	}
	s.replayed = b != nil && b.ReplayUntil > 0
	return b
}

// formReplay returns the next batch of a replay, or nil if there is nothing to replay now. The most urgent
// sequences come first. Beside decoding sequences a replay has as many rows as that of a moved sequence.
func (s *Scheduler) formReplay() *Batch {
	if suspect, wait := s.probation(); suspect != nil || wait {
		return nil
	}
	var list []*sequence
	decoding := false
	for _, q := range s.running {
		switch {
		case q.replaying():
			list = append(list, q)
		case !q.feed.Prefilling() && q.accepted && !q.paused:
			decoding = true
		}
	}
	slices.SortStableFunc(list, func(a, b *sequence) int {
		switch {
		case s.before(a, b):
			return -1
		case s.before(b, a):
			return 1
		}
		return 0
	})
	rows := s.cfg.BatchRows
	if decoding {
		rows = min(rows, s.timing.fitMoved(s.cfg.ChunkRows))
	}
	b := &Batch{Step: s.step + 1, ReplayUntil: s.replayUntil}
	f := &flight{step: b.Step, sent: s.now, replay: true}
	for _, q := range list {
		if len(b.Entries) == s.cfg.Entries {
			break
		}
		n := s.skipReplayed(q, min(rows, s.cfg.ChunkRows))
		if n == 0 {
			continue
		}
		at, end := q.replay.sent, q.replay.sent+n
		e := Entry{ID: q.ID, Epoch: q.Epoch, Position: at, Rows: n}
		if !q.replay.known {
			e.Pages = slices.Clone(q.table)
			q.replay.known, q.told = true, len(q.table)
		}
		for i := at / s.cfg.PageLen; i < s.pool.pagesFor(end); i++ {
			s.builders[q.table[i]] = q
		}
		q.replay.sent = end
		q.replay.flying++
		b.Entries = append(b.Entries, e)
		b.Tokens = append(b.Tokens, q.feed.Log()[at:end]...)
		f.entries = append(f.entries, entry{id: q.ID, run: q.preempt, replay: end})
		f.rows += n
		rows -= n
	}
	if len(b.Entries) == 0 {
		return nil
	}
	f.prompts = f.rows
	s.stats.replayed += uint64(f.rows)
	s.launch(b, f)
	return b
}

// skipReplayed moves a sequence's replay past the pages that are not missing, and returns how many rows it
// can send then, at most n. It returns 0 while another sequence builds the page, and ends the replay when
// the new stage has everything.
func (s *Scheduler) skipReplayed(q *sequence, n int) int {
	r, size := &q.replay, s.cfg.PageLen
	for r.sent < r.until {
		page := q.table[r.sent/size]
		if s.pool.missing[page] {
			if b := s.builders[page]; b != nil && b != q {
				return 0
			}
			break
		}
		r.sent = min(r.until, (r.sent/size+1)*size)
		if r.flying == 0 {
			r.done = r.sent
		}
	}
	if r.sent == r.until {
		if r.flying == 0 {
			s.stopReplay(q) // its next entry brings the whole block table, which the later stages lack
		}
		return 0
	}
	// The rows end before a page that another sequence builds or has built.
	end := r.sent
	for end < min(r.until, r.sent+n) {
		page := q.table[end/size]
		if b := s.builders[page]; !s.pool.missing[page] || b != nil && b != q {
			break
		}
		end = min(r.until, r.sent+n, (end/size+1)*size)
	}
	return end - r.sent
}

// replayedTo records that the new stage has a sequence's positions below end.
func (s *Scheduler) replayedTo(q *sequence, end int) {
	r, size := &q.replay, s.cfg.PageLen
	for i := r.done / size; i < s.pool.pagesFor(end); i++ {
		if page := q.table[i]; s.builders[page] == q && min((i+1)*size, r.until) <= end {
			delete(s.builders, page)
			delete(s.pool.missing, page)
		}
	}
	r.done = end
	r.flying--
}

// blame makes the sequences suspects that may have been the cause when a stage was lost. They wait until it
// is said that they go on: a request that has ended too many stages must not be computed once more.
func (s *Scheduler) blame() {
	blamed, _ := s.Lost(false)
	for _, b := range blamed {
		s.byID[b.ID].Suspect, s.byID[b.ID].blamed = true, true
		s.do(b)
	}
	s.suspect = nil
}

// Replay returns about how long it takes to compute again what the running sequences have on this
// pipeline, if that is all it does, or 0 if that is not known.
func (s *Scheduler) Replay() time.Duration { return s.timing.rows(s.Computed()) }

// Computed returns how many positions the running sequences have computed.
func (s *Scheduler) Computed() (positions int) {
	for _, q := range s.running {
		positions += q.done
	}
	return positions
}

// TakeOver returns about how long it takes to compute so many positions of other sequences beside those
// that run on this pipeline. Decoding takes turns with them.
func (s *Scheduler) TakeOver(positions int) time.Duration {
	d := s.timing.rows(positions)
	if len(s.running) > 0 {
		d += time.Duration(float64(d) / movedShare)
	}
	return d
}

// rows returns about how long so many rows of prompts take, or 0 if that is not known.
func (t *timing) rows(n int) time.Duration {
	return time.Duration(float64(n) * t.chain.row * float64(time.Second))
}
