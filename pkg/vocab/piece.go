package vocab

import (
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/vocab/pattern"
)

// piece is a part of a normalized text on its way to the model. off is the offset of
// text in the normalized text or, if a step rewrote it, in the output of that step.
type piece struct {
	text  string
	off   int
	from  *rewrite // nil if no step rewrote the piece
	first bool     // at the start of the input
}

// rewrite maps the output of a step back to its input.
type rewrite struct {
	edits *edits
	off   int
	from  *rewrite
}

// back maps bytes [start, end) of the piece to the normalized text.
func (p *piece) back(start, end int) (int, int) {
	start, end = start+p.off, end+p.off
	for r := p.from; r != nil; r = r.from {
		start, end = r.edits.back(start, end)
		start, end = start+r.off, end+r.off
	}
	return start, end
}

// part returns bytes [start, end) of the piece.
func (p *piece) part(start, end int) piece {
	return piece{text: p.text[start:end], off: p.off + start, from: p.from, first: p.first && start == 0}
}

// rewritten returns the piece with another text.
func (p *piece) rewritten(text string, ed *edits) piece {
	return piece{text: text, from: &rewrite{edits: ed, off: p.off, from: p.from}, first: p.first}
}

// step is a step of a pre-tokenizer: it splits a piece into smaller ones.
type step interface {
	cut(p piece, emit func(piece) error) error
}

// scanner is a step that splits text without dropping or rewriting any. next returns
// the end of the piece that begins at s[i], with i < end. It does not look at s[end:].
type scanner interface {
	next(s string, i, end int) int
}

// scan returns the step of a scanner.
type scan struct{ scanner }

func (c scan) cut(p piece, emit func(piece) error) error {
	for i := 0; i < len(p.text); {
		e := c.next(p.text, i, len(p.text))
		if err := emit(p.part(i, e)); err != nil {
			return err
		}
		i = e
	}
	return nil
}

// stepFunc is a function as a step.
type stepFunc func(p piece, emit func(piece) error) error

func (f stepFunc) cut(p piece, emit func(piece) error) error { return f(p, emit) }

// cutAll applies steps one after another, each to the pieces of the previous one.
func cutAll(steps []step, p piece, emit func(piece) error) error {
	switch {
	case p.text == "":
		return nil
	case len(steps) == 0:
		return emit(p)
	}
	return steps[0].cut(p, func(p piece) error { return cutAll(steps[1:], p, emit) })
}

// segment is a part of a text and whether a pattern matched it.
type segment struct {
	start, end int
	match      bool
}

// How a split treats matches. The names are Hugging Face's.
const (
	removed    = "Removed"
	isolated   = "Isolated"
	toPrevious = "MergedWithPrevious"
	toNext     = "MergedWithNext"
	contiguous = "Contiguous"
)

// splitter splits at matches and treats them as behavior says. find calls yield with
// the matches in order.
type splitter struct {
	find     func(s string, yield func(start, end int) bool)
	behavior string
	invert   bool
}

func (c *splitter) cut(p piece, emit func(piece) error) error {
	var held segment
	some := false
	was := false // whether the previous segment was a match
	var err error
	put := func(x segment) bool {
		join := false
		switch c.behavior {
		case contiguous:
			join = some && was == x.match
		case toPrevious:
			join = some && x.match && !was
		case toNext:
			join = some && !x.match && was
		}
		was = x.match
		if join {
			held.end = x.end
			return true
		}
		if some && held.end > held.start && (c.behavior != removed || !held.match) {
			if err = emit(p.part(held.start, held.end)); err != nil {
				return false
			}
		}
		held, some = x, true
		return true
	}
	at := 0
	c.find(p.text, func(start, end int) bool {
		if start > at && !put(segment{at, start, c.invert}) {
			return false
		}
		at = end
		return put(segment{start, end, !c.invert})
	})
	if err == nil && at < len(p.text) {
		put(segment{at, len(p.text), c.invert})
	}
	if err == nil {
		put(segment{len(p.text), len(p.text), !was})
		if err == nil && some && held.end > held.start && (c.behavior != removed || !held.match) {
			err = emit(p.part(held.start, held.end))
		}
	}
	return err
}

// findString finds a string.
func findString(sub string) func(string, func(int, int) bool) {
	return func(s string, yield func(int, int) bool) {
		for at := 0; ; {
			n := strings.Index(s[at:], sub)
			if n < 0 || !yield(at+n, at+n+len(sub)) {
				return
			}
			at += n + len(sub)
		}
	}
}

// findClass finds single characters.
func findClass(is func(r rune) bool) func(string, func(int, int) bool) {
	return func(s string, yield func(int, int) bool) {
		for i := 0; i < len(s); {
			r, n := utf8.DecodeRuneInString(s[i:])
			if is(r) && !yield(i, i+n) {
				return
			}
			i += n
		}
	}
}

// findPattern finds matches of a compiled pattern.
func findPattern(p *pattern.Pattern) func(string, func(int, int) bool) {
	return func(s string, yield func(int, int) bool) { p.Matcher(s).All(yield) }
}

// spelled runs steps on the byte-level spelling of a piece, as Hugging Face does with
// steps after ByteLevel, and maps their pieces back to bytes.
type spelled struct {
	steps    []step
	alphabet *byteLevel
}

func (c *spelled) cut(p piece, emit func(piece) error) error {
	text := c.alphabet.encode(p.text)
	starts := make([]int, 0, len(p.text)+1) // offset of each byte's spelling
	at := 0
	for i := 0; i < len(p.text); i++ {
		starts = append(starts, at)
		at += len(c.alphabet.spell[p.text[i]])
	}
	starts = append(starts, at)
	index := func(pos, from int) int {
		for starts[from] < pos {
			from++
		}
		return from
	}
	last := 0
	return cutAll(c.steps, piece{text: text, first: p.first}, func(q piece) error {
		i := index(q.off, last)
		e := index(q.off+len(q.text), i)
		last = i
		return emit(p.part(i, e))
	})
}

// spaceFirst puts a space before a piece that does not begin with one.
func spaceFirst(p piece, emit func(piece) error) error {
	if strings.HasPrefix(p.text, " ") {
		return emit(p)
	}
	ed := &edits{}
	ed.add(1, 0, false)
	ed.add(len(p.text), len(p.text), true)
	return emit(p.rewritten(" "+p.text, ed))
}

// metaspace replaces spaces with mark and puts a mark before the piece if the scheme
// says so.
func metaspace(mark, scheme string) stepFunc {
	return func(p piece, emit func(piece) error) error {
		ed := &edits{}
		text := replaced(p.text, " ", mark, ed)
		q := p.rewritten(text, ed)
		if (scheme == "always" || scheme == "first" && p.first) && !strings.HasPrefix(text, mark) {
			ed := &edits{}
			ed.add(len(mark), 0, false)
			ed.add(len(text), len(text), true)
			q = q.rewritten(mark+text, ed)
		}
		return emit(q)
	}
}
