// Package session is the state machine of one generation on one pipeline, and the search
// for stop strings. Both are pure: events in, decisions out, without a clock or I/O. The
// router drives them.
//
// A generation is its token log: the prompt and the emitted tokens. The state machine knows
// how much of the log the pipeline has been sent. When a pipeline dies nothing is lost: the
// log goes to a new state machine on another pipeline, which prefills it.
package session

// Session feeds a token log to a pipeline.
type Session struct {
	log     []int32
	sent    int     // positions sent to the pipeline
	waiting bool    // a row that wants logits is in flight
	drafts  []int32 // draft tokens in flight: ids that may follow the log
	ended   bool
}

// New returns a session over a log of at least one token, of which the pipeline has
// seen nothing.
func New(log []int32) *Session { return &Session{log: append([]int32(nil), log...)} }

// Rows is a run of positions to be sent.
type Rows struct {
	Pos    int
	IDs    []int32
	Logits bool // the last row wants logits: it ends the log
	Drafts int  // how many of the last ids are draft tokens, whose rows want logits as well
}

// Prefilling reports whether more than one position is still to be sent.
func (s *Session) Prefilling() bool { return !s.ended && len(s.log)-s.sent > 1 }

// Ready reports whether there is something to send.
func (s *Session) Ready() bool { return !s.ended && !s.waiting && s.sent < len(s.log) }

// Next takes the next positions to send, at most n; false if none are due.
func (s *Session) Next(n int) (Rows, bool) {
	if !s.Ready() || n < 1 {
		return Rows{}, false
	}
	end := min(len(s.log), s.sent+n)
	rows := Rows{Pos: s.sent, IDs: s.log[s.sent:end], Logits: end == len(s.log)}
	s.sent = end
	s.waiting = rows.Logits
	return rows, true
}

// NextWithDrafts is Next, and adds draft tokens if only the last position is due: the row of
// an accepted draft token gives the token after it.
func (s *Session) NextWithDrafts(n int, drafts []int32) (Rows, bool) {
	rows, ok := s.Next(n)
	if !ok || !rows.Logits || len(rows.IDs) != 1 || len(drafts) == 0 {
		return rows, ok
	}
	s.drafts = append([]int32(nil), drafts...)
	rows.IDs, rows.Drafts = append([]int32{rows.IDs[0]}, s.drafts...), len(s.drafts)
	return rows, true
}

// Due is how many positions of the log are still to be sent.
func (s *Session) Due() int { return len(s.log) - s.sent }

// Waiting reports whether a token is to come.
func (s *Session) Waiting() bool { return s.waiting && !s.ended }

// Token takes the token for a position. It reports false for a token that is not expected,
// such as a repeated one. If the token is the next draft token, that is accepted: its
// position has already been sent, and the token after it is to come. Any other token
// rejects all draft tokens that are left.
func (s *Session) Token(pos int, id int32) bool {
	if s.ended || !s.waiting || pos != len(s.log) {
		return false
	}
	s.log = append(s.log, id)
	if len(s.drafts) > 0 && s.drafts[0] == id {
		s.drafts = s.drafts[1:]
		s.sent++
		return true
	}
	s.waiting, s.drafts = false, nil
	return true
}

// Rewind makes log, of at least one token, the session's log. The prefix that it shares with
// what the pipeline was sent counts as sent, except for the last position, whose row is
// due. A token in flight is no longer expected.
func (s *Session) Rewind(log []int32) {
	same := 0
	for same < min(s.sent, len(log)-1) && s.log[same] == log[same] {
		same++
	}
	s.log = append(s.log[:same], log[same:]...)
	s.sent, s.waiting, s.drafts = same, false, nil
}

// End stops the session: nothing more is sent or taken.
func (s *Session) End() { s.ended = true }

// Log is the tokens so far; the caller must not change them.
func (s *Session) Log() []int32 { return s.log }

// Len is the length of the log.
func (s *Session) Len() int { return len(s.log) }
