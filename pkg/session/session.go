// Package session is the state machine of one generation on one pipeline, and the
// rule that finds stop texts. Both are pure: events in, what to do next out; no
// clock, no I/O. The router drives them.
//
// A generation is its token log: the prompt and what was emitted. The machine knows
// how much of the log the pipeline has been sent. A pipeline that dies takes nothing
// with it: the log goes to a new machine on another pipeline, which prefills it.
package session

// Session feeds a token log to a pipeline.
type Session struct {
	log     []int32
	sent    int     // positions sent to the pipeline
	waiting bool    // a row that wants logits is on its way
	ahead   []int32 // ids sent beyond the log, which may be its next
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
	Ahead  int  // how many of the ids are guesses beyond the log; their rows want logits as well
}

// Prefilling reports whether more than one position is still to be sent.
func (s *Session) Prefilling() bool { return !s.ended && len(s.log)-s.sent > 1 }

// Ready reports whether there is something to send.
func (s *Session) Ready() bool { return !s.ended && !s.waiting && s.sent < len(s.log) }

// Next takes the next positions to send, at most n; nothing if none are due.
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

// NextAhead is Next where one position is due, with guesses of what follows it behind:
// if they are right, their rows give the tokens after them. Elsewhere it is Next.
func (s *Session) NextAhead(n int, guesses []int32) (Rows, bool) {
	rows, ok := s.Next(n)
	if !ok || !rows.Logits || len(rows.IDs) != 1 || len(guesses) == 0 {
		return rows, ok
	}
	s.ahead = append([]int32(nil), guesses...)
	rows.IDs, rows.Ahead = append([]int32{rows.IDs[0]}, s.ahead...), len(s.ahead)
	return rows, true
}

// Waiting reports whether a token is on its way.
func (s *Session) Waiting() bool { return s.waiting && !s.ended }

// Token takes the token for a position. It reports false for one that was not
// waited for: a repetition, or one from before the session moved. After a token that
// was guessed the next one is on its way.
func (s *Session) Token(pos int, id int32) bool {
	if s.ended || !s.waiting || pos != len(s.log) {
		return false
	}
	s.log = append(s.log, id)
	if len(s.ahead) > 0 && s.ahead[0] == id {
		s.ahead = s.ahead[1:]
		s.sent++
		return true
	}
	s.waiting, s.ahead = false, nil
	return true
}

// Rewind makes log, of at least one token, the session's log. What the pipeline was
// sent of it counts as sent, but for the last position, whose row is due. A token on
// its way is not waited for any longer.
func (s *Session) Rewind(log []int32) {
	same := 0
	for same < min(s.sent, len(log)-1) && s.log[same] == log[same] {
		same++
	}
	s.log = append(s.log[:same], log[same:]...)
	s.sent, s.waiting, s.ahead = same, false, nil
}

// End stops the session: nothing more is sent or taken.
func (s *Session) End() { s.ended = true }

// Log is the tokens so far, not to be changed.
func (s *Session) Log() []int32 { return s.log }

// Len is the length of the log.
func (s *Session) Len() int { return len(s.log) }
