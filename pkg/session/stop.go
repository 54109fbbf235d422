package session

import "strings"

// Stopper finds stop strings in a growing text. It holds back any suffix that may be the
// beginning of a stop string, so that no part of one is ever shown.
type Stopper struct {
	stops []string
	held  string
	found string
}

// NewStopper returns a Stopper for the given strings; empty ones are ignored.
func NewStopper(stops []string) *Stopper {
	s := &Stopper{}
	for _, stop := range stops {
		if stop != "" {
			s.stops = append(s.stops, stop)
		}
	}
	return s
}

// Push adds text. It returns the text that may be shown, and whether a stop string was found. If
// one was found, the text before the earliest one has been returned and the rest is dropped.
func (s *Stopper) Push(text string) (show string, stopped bool) {
	s.held += text
	first := -1
	for _, stop := range s.stops {
		if at := strings.Index(s.held, stop); at >= 0 && (first < 0 || at < first) {
			first, s.found = at, stop
		}
	}
	if first >= 0 {
		show, s.held = s.held[:first], ""
		return show, true
	}
	keep := 0
	for _, stop := range s.stops {
		for n := min(len(stop)-1, len(s.held)); n > keep; n-- {
			if strings.HasSuffix(s.held, stop[:n]) {
				keep = n
			}
		}
	}
	show, s.held = s.held[:len(s.held)-keep], s.held[len(s.held)-keep:]
	return show, false
}

// Found returns the stop string that was found; empty for none. Of several that begin at the same place it is the
// first one of the list.
func (s *Stopper) Found() string { return s.found }

// Flush returns the text that was held back. It is called at the end of the text.
func (s *Stopper) Flush() string {
	show := s.held
	s.held = ""
	return show
}
