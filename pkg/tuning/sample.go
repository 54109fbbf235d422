package tuning

import "fmt"

// Sample is a training sample.
type Sample struct {
	Line   int
	Format string
	IDs    []int32
	Mask   []bool   // the ids that are trained as targets; those of padding do not exist here
	Text   string   // that the ids stand for; empty for rows of ids
	Spans  [][2]int // bytes of Text of each id
	Turns  []Turn   // in order
	Notes  []Note
}

// Turn is a trained part of a sample.
type Turn struct {
	From, To int // ids [From, To)
	Message  int // index of the message; -1 if the sample has none
	Ended    bool
}

// Trained counts the ids that are trained. The first id of a sample has nothing before it, so it cannot be a
// target.
func (s *Sample) Trained() int {
	n := 0
	for i, m := range s.Mask {
		if m && i > 0 {
			n++
		}
	}
	return n
}

// Targets returns what the rows of the sample predict: row i the id i+1 if that is trained, else -1. It has
// one row less than the sample has ids, since nothing follows the last one.
func (s *Sample) Targets() (ids, targets []int32) {
	n := len(s.IDs) - 1
	if n < 1 {
		return nil, nil
	}
	targets = make([]int32, n)
	for i := range targets {
		targets[i] = -1
		if s.Mask[i+1] {
			targets[i] = s.IDs[i+1]
		}
	}
	return s.IDs[:n], targets
}

// Reason says what happened to a sample.
type Reason string

// The reasons.
const (
	Unreadable    Reason = "unreadable"                // the row cannot be read
	TemplateError Reason = "template refuses"          // the chat template or the vocabulary refuses the conversation
	TrainsNothing Reason = "trains nothing"            // no token is trained
	TooLong       Reason = "exceeds the context"       // more ids than the context length, and refused for it
	CutShort      Reason = "cut to the context"        // more ids than the context length, and cut
	OtherPrompt   Reason = "prompt differs in service" // a turn's prompt has other ids in service
	NoEndOfTurn   Reason = "no end of turn"            // no token ends a turn
	ControlText   Reason = "text spells control token" // a message's text spells a control token
)

// Note is something that happened to a sample.
type Note struct {
	Line    int
	Message int // the message that it is about; -1 for the whole sample
	Reason  Reason
	Refused bool   // the sample is not trained at all
	Detail  string // for people
}

// String returns a line for a list.
func (n Note) String() string {
	out := fmt.Sprintf("line %d: %s", n.Line, n.Reason)
	if n.Message >= 0 {
		out = fmt.Sprintf("line %d, message %d: %s", n.Line, n.Message, n.Reason)
	}
	if n.Refused {
		out += ", refused"
	}
	if n.Detail != "" {
		out += ": " + n.Detail
	}
	return out
}

// note adds a note.
func (s *Sample) note(message int, reason Reason, refused bool, format string, args ...any) {
	s.Notes = append(s.Notes, Note{Line: s.Line, Message: message, Reason: reason, Refused: refused,
		Detail: fmt.Sprintf(format, args...)})
}

// Refused returns why the sample is not trained, if it is not.
func (s *Sample) Refused() (Note, bool) {
	for _, n := range s.Notes {
		if n.Refused {
			return n, true
		}
	}
	return Note{}, false
}

// Names of the rules for samples that are longer than the context length.
const (
	LongRefuse = "refuse" // leave them out
	LongTurns  = "turns"  // keep the turns that fit whole
	LongTokens = "tokens" // cut the last turn anywhere; its end is then not trained
)

// Rules say what happens to samples that are not simply trained.
type Rules struct {
	Context int    // the most ids of a sample; 0 for no limit
	Long    string // LongRefuse when empty
	// KeepOtherPrompts trains turns whose prompts differ in service, instead of leaving them out.
	KeepOtherPrompts bool
}

// apply cuts or refuses a sample.
func (r Rules) apply(s *Sample) {
	if r.Context > 0 && len(s.IDs) > r.Context {
		r.cut(s)
	}
	if _, refused := s.Refused(); !refused && s.Trained() == 0 {
		s.note(-1, TrainsNothing, true, "")
	}
}

// cut shortens a sample that is too long. A turn that loses its end keeps no target that pretends to be one:
// nothing is written in place of what is cut off.
func (r Rules) cut(s *Sample) {
	n := len(s.IDs)
	keep := 0
	switch r.Long {
	case LongTokens:
		keep = r.Context
	case LongTurns:
		for _, t := range s.Turns {
			if t.To <= r.Context {
				keep = t.To
			}
		}
	}
	if keep == 0 {
		s.note(-1, TooLong, true, "%d ids, the context length is %d", n, r.Context)
		return
	}
	s.IDs, s.Mask = s.IDs[:keep], s.Mask[:keep]
	if s.Spans != nil {
		s.Spans = s.Spans[:keep]
	}
	var turns []Turn
	for _, t := range s.Turns {
		if t.From >= keep {
			break
		}
		if t.To > keep {
			t.To, t.Ended = keep, false
		}
		turns = append(turns, t)
	}
	s.Turns = turns
	s.note(-1, CutShort, false, "%d of %d ids", keep, n)
}
