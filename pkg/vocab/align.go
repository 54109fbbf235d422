package vocab

import (
	"sort"
	"strings"
	"unicode/utf8"
)

// edits records how a text was rewritten: which bytes of the result came from which
// bytes of the source, as a list of segments. A nil *edits records nothing.
type edits struct {
	parts   []edit
	out, in int // lengths so far
}

// edit is one segment: it begins at out in the result and at in in the source. same
// means that the bytes are equal one for one.
type edit struct {
	out, in int
	same    bool
}

// add appends a segment of out bytes made from in bytes.
func (e *edits) add(out, in int, same bool) {
	if e == nil || out == 0 && in == 0 {
		return
	}
	if n := len(e.parts); !same || n == 0 || !e.parts[n-1].same {
		e.parts = append(e.parts, edit{e.out, e.in, same})
	}
	e.out, e.in = e.out+out, e.in+in
}

// drop removes bytes from the end of the result.
func (e *edits) drop(n int) {
	if e == nil || n == 0 {
		return
	}
	e.out -= n
	for len(e.parts) > 0 && e.parts[len(e.parts)-1].out >= e.out {
		e.parts = e.parts[:len(e.parts)-1]
	}
}

// back returns the range of the source that the bytes [start, end) of the result
// were made from.
func (e *edits) back(start, end int) (int, int) {
	s := e.source(start, false)
	return s, max(s, e.source(end, true))
}

func (e *edits) source(pos int, end bool) int {
	// An end belongs to the segment of the byte before it, a start to that of its byte.
	i := sort.Search(len(e.parts), func(i int) bool {
		if end {
			return e.parts[i].out >= pos
		}
		return e.parts[i].out > pos
	}) - 1
	if i < 0 {
		return 0
	}
	p := e.parts[i]
	switch {
	case p.same:
		return p.in + pos - p.out
	case !end:
		return p.in
	case i+1 < len(e.parts):
		return e.parts[i+1].in
	}
	return e.in
}

// replaced replaces every occurrence of old, which is not empty, with new.
func replaced(s, old, new string, ed *edits) string {
	if ed != nil {
		for rest := s; ; {
			n := strings.Index(rest, old)
			if n < 0 {
				ed.add(len(rest), len(rest), true)
				break
			}
			ed.add(n, n, true)
			ed.add(len(new), len(old), old == new)
			rest = rest[n+len(old):]
		}
	}
	return strings.ReplaceAll(s, old, new)
}

// mapped rewrites a text character by character. f returns the replacement of a
// character, or false to keep it.
func mapped(s string, ed *edits, f func(r rune) (text string, changed bool)) string {
	var b strings.Builder
	from := 0 // start of the kept text that is not written yet
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		text, changed := f(r)
		if changed {
			b.WriteString(s[from:i])
			ed.add(i-from, i-from, true)
			b.WriteString(text)
			ed.add(len(text), n, false)
			from = i + n
		}
		i += n
	}
	ed.add(len(s)-from, len(s)-from, true)
	if from == 0 {
		return s
	}
	b.WriteString(s[from:])
	return b.String()
}
