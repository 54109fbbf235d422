// Package session is the state machine of one generation on one pipeline, and the search for stop
// strings. Both are pure: they turn events into decisions, without a clock or I/O. The router
// drives them.
//
// The state of a generation is its token log: the prompt and the emitted tokens. The state machine
// knows how much of the log was sent to the pipeline. When a pipeline dies nothing is lost: a new
// state machine sends the log to another pipeline, which prefills it.
package session

// Session feeds a token log to a pipeline.
type Session struct {
	log     []int32
	sent    int     // positions sent to the pipeline
	waiting bool    // a row that needs logits is in flight
	drafts  []int32 // draft tokens in flight: ids that may follow the log, of one entry or of several
	ended   bool
}

// New returns a session over a log of at least one token. Nothing of the log has been sent yet.
func New(log []int32) *Session { return &Session{log: append([]int32(nil), log...)} }

// Restart returns a session over the same log of which nothing has been sent.
func (s *Session) Restart() *Session { return &Session{log: s.log, ended: s.ended} }

// Skip counts the first n positions as sent: the pipeline has their keys and values. The last position
// of the log cannot be skipped, since its row gives the next token.
func (s *Session) Skip(n int) { s.sent = max(s.sent, min(n, len(s.log)-1)) }

// Sent returns how many positions have been sent.
func (s *Session) Sent() int { return s.sent }

// Rows is a run of positions to be sent.
type Rows struct {
	Pos    int
	IDs    []int32
	Logits bool // the last row needs logits, since it ends the log
	Drafts int  // number of draft tokens at the end of the ids; their rows need logits too
}

// Prefilling reports whether more than one position is still to be sent.
func (s *Session) Prefilling() bool { return !s.ended && len(s.log)-s.sent > 1 }

// Ready reports whether there is something to send.
func (s *Session) Ready() bool { return !s.ended && !s.waiting && s.sent < len(s.log) }

// Next returns the next positions to send, at most n, and marks them as sent. It returns false if
// none are due.
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

// NextWithDrafts does the same as Next, and adds draft tokens if only the last position is due. The
// row of an accepted draft token gives the token after it.
func (s *Session) NextWithDrafts(n int, drafts []int32) (Rows, bool) {
	rows, ok := s.Next(n)
	if !ok || !rows.Logits || len(rows.IDs) != 1 || len(drafts) == 0 {
		return rows, ok
	}
	s.drafts = append([]int32(nil), drafts...)
	rows.IDs, rows.Drafts = append([]int32{rows.IDs[0]}, s.drafts...), len(s.drafts)
	return rows, true
}

// Chain returns draft tokens to send behind those that are in flight, and marks them as sent. It returns
// false if the session waits for no token, so that there is nothing to send them behind. Their rows count
// only if all draft tokens before them are accepted.
func (s *Session) Chain(drafts []int32) (Rows, bool) {
	if !s.Waiting() || len(drafts) == 0 {
		return Rows{}, false
	}
	rows := Rows{Pos: len(s.log) + len(s.drafts), IDs: append([]int32(nil), drafts...), Logits: true,
		Drafts: len(drafts)}
	s.drafts = append(s.drafts, drafts...)
	return rows, true
}

// Assumed returns the log with the draft tokens in flight behind it: what the log will begin with if all
// of them are accepted.
func (s *Session) Assumed() []int32 {
	return append(append(make([]int32, 0, len(s.log)+len(s.drafts)), s.log...), s.drafts...)
}

// Ahead returns how many draft tokens are in flight.
func (s *Session) Ahead() int { return len(s.drafts) }

// Due returns how many positions of the log are still to be sent.
func (s *Session) Due() int { return len(s.log) - s.sent }

// Waiting reports whether the session waits for a token.
func (s *Session) Waiting() bool { return s.waiting && !s.ended }

// Token handles the token for a position. It returns false for a token that is not expected, such
// as a repeated one. A token that equals the next draft token accepts it: its position has already
// been sent, and the session waits for the token after it. Any other token rejects all remaining
// draft tokens.
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

// Rewind replaces the session's log by log, which has at least one token. The common prefix with
// the positions that were sent counts as sent, except for the last position of the log, whose row
// is due. A token in flight is no longer expected.
func (s *Session) Rewind(log []int32) {
	same := 0
	for same < min(s.sent, len(log)-1) && s.log[same] == log[same] {
		same++
	}
	s.log = append(s.log[:same], log[same:]...)
	s.sent, s.waiting, s.drafts = same, false, nil
}

// Resend makes the positions from n on due again, of those that were sent. A token in flight is no longer
// expected.
func (s *Session) Resend(n int) { s.sent, s.waiting, s.drafts = min(s.sent, n), false, nil }

// End stops the session. It sends and accepts nothing more.
func (s *Session) End() { s.ended = true }

// Log returns the tokens so far. The caller must not change them.
func (s *Session) Log() []int32 { return s.log }

// Len returns the length of the log.
func (s *Session) Len() int { return len(s.log) }
