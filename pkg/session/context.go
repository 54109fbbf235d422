package session

import "fmt"

// Span is a run of positions of a log, or of messages of a chat.
type Span struct{ First, Count int }

// Slide is a context policy with attention sinks and a window (Xiao et al., "Efficient Streaming
// Language Models with Attention Sinks", 2024): whenever the model sees Length tokens of a log, all but
// the first Sinks and the latest Window of them are dropped.
//
// What the model sees depends only on the length of the log. It does not depend on which part of the
// log is the prompt, on when the log was replayed, or on the pipeline. So a request that moves in the
// middle of an answer goes on with the same tokens. The tokens that are kept get new positions, from 0
// on, and a new Session computes their keys and values there.
//
// The zero value drops nothing.
type Slide struct{ Length, Sinks, Window int }

// On reports whether the policy ever drops anything.
func (s Slide) On() bool { return s.Length > 0 }

// Check reports why the policy cannot work: each slide must keep a token of the window and must drop
// one.
func (s Slide) Check() error {
	switch {
	case s.Length < 2:
		return fmt.Errorf("a context length of %d is less than 2", s.Length)
	case s.Sinks < 0 || s.Window < 1:
		return fmt.Errorf("%d sinks and a window of %d: the window is at least 1", s.Sinks, s.Window)
	case s.Sinks >= s.Length || s.Window >= s.Length-s.Sinks:
		return fmt.Errorf("%d sinks and a window of %d leave no room in a context length of %d", s.Sinks, s.Window,
			s.Length)
	}
	return nil
}

// Dropped returns the positions that the model does not see when a log has n tokens: always one run
// after the sinks. Every slide extends it by the same number of tokens. The first one happens at the
// context length, and then one happens whenever as many tokens have come as it dropped.
func (s Slide) Dropped(n int) Span {
	if !s.On() || n < s.Length {
		return Span{}
	}
	each := s.Length - s.Sinks - s.Window
	slides := 1 + (n-s.Length)/each
	return Span{s.Sinks, slides * each}
}

// Slid returns the positions that the model no longer sees if it slides when the log gets its nth
// token, and reports whether it does.
func (s Slide) Slid(n int) (Span, bool) {
	now := s.Dropped(n)
	return now, now.Count > s.Dropped(n-1).Count
}

// View returns the tokens of a log that the model sees. It shares no memory with the log.
func (s Slide) View(log []int32) []int32 {
	d := s.Dropped(len(log))
	out := make([]int32, 0, len(log)-d.Count)
	out = append(out, log[:d.First]...)
	return append(out, log[d.First+d.Count:]...)
}

// Seen returns how many tokens the model sees of a log of n tokens. It is less than Length.
func (s Slide) Seen(n int) int { return n - s.Dropped(n).Count }

// Middle returns the positions to drop of a prompt of n tokens so that at most budget are left. It keeps
// the first half of the budget or the first keep tokens, whichever is more, and at least one token at
// the end. It returns false if that is not possible.
func Middle(n, budget, keep int) (Span, bool) {
	if n <= budget {
		return Span{}, true
	}
	head := max((budget+1)/2, keep)
	if budget < 2 { // then only the last token is kept
		head = keep
	}
	if head >= budget {
		return Span{}, false
	}
	return Span{head, n - budget}, true
}

// Compose returns the positions of a log that are dropped by first, and then by then, whose positions
// are those of the log without first.
func Compose(first, then Span) []Span {
	switch end := then.First + then.Count; {
	case first.Count == 0:
		return []Span{then}
	case then.Count == 0:
		return []Span{first}
	case end < first.First:
		return []Span{then, first}
	case then.First <= first.First: // it reaches to first or across it
		return []Span{{then.First, then.Count + first.Count}}
	default:
		return []Span{first, {then.First + first.Count, then.Count}}
	}
}

// Turns divides the messages of a chat into the system messages at its beginning and turns. A turn
// begins with a message of the user and has everything up to the next one: answers, calls and their
// results. Messages of the user in a row are one turn.
type Turns struct {
	System int   // messages before the first turn that are never dropped
	starts []int // the first message of each turn
	n      int
}

// ReadTurns divides a chat's messages, given their roles.
func ReadTurns(roles []string) Turns {
	t := Turns{n: len(roles)}
	for t.System < len(roles) && (roles[t.System] == "system" || roles[t.System] == "developer") {
		t.System++
	}
	for i := t.System; i < len(roles); i++ {
		if i == t.System || roles[i] == "user" && roles[i-1] != "user" {
			t.starts = append(t.starts, i)
		}
	}
	return t
}

// Droppable returns how many turns may be dropped: all but the last.
func (t Turns) Droppable() int { return max(0, len(t.starts)-1) }

// Dropped returns the messages of the k oldest turns.
func (t Turns) Dropped(k int) Span {
	if k < 1 || k > t.Droppable() {
		return Span{}
	}
	return Span{t.System, t.starts[k] - t.System}
}

// Fewest returns the least k from 1 to most for which fits holds, or most if it holds for none. If it
// holds for a k it has to hold for all greater ones. It asks log2(most) times.
func Fewest(most int, fits func(k int) (bool, error)) (int, error) {
	lo, hi := 1, most // fits is known to fail below lo, and hi fits or is most
	for lo < hi {
		mid := lo + (hi-lo)/2
		ok, err := fits(mid)
		if err != nil {
			return 0, err
		}
		if ok {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return hi, nil
}

// Cut returns the run of positions by which the ids of a prompt and of its shortened form differ: the
// shortened prompt is the prompt without it. It returns false if they differ in another way.
func Cut(prompt, shortened []uint32) (Span, bool) {
	count := len(prompt) - len(shortened)
	if count < 0 {
		return Span{}, false
	}
	first := 0
	for first < len(shortened) && shortened[first] == prompt[first] {
		first++
	}
	for i := first; i < len(shortened); i++ {
		if shortened[i] != prompt[i+count] {
			return Span{first, count}, false
		}
	}
	return Span{first, count}, true
}
