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
	sent    int  // positions sent to the pipeline
	waiting bool // a row that wants logits is on its way
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

// Token takes the token for a position. It reports false for one that was not
// waited for: a repetition, or one from before the session moved.
func (s *Session) Token(pos int, id int32) bool {
	if s.ended || !s.waiting || pos != len(s.log) {
		return false
	}
	s.log = append(s.log, id)
	s.waiting = false
	return true
}

// End stops the session: nothing more is sent or taken.
func (s *Session) End() { s.ended = true }

// Len is the length of the log.
func (s *Session) Len() int { return len(s.log) }
