package tokenizer

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// cutter finds places where a text may be cut so that the parts, each encoded with a
// little of its neighbours around it, give the ids of the whole. Such a place stands
// between a line's end and a letter, or between a letter and a space before a
// letter, as long as no token spans it: then merging and searching on one side know
// nothing of the other, and no pre-tokenizer in use looks further than one
// character.
type cutter struct {
	v      *vocab.Vocab
	lines  bool     // no token goes on from a line's end to a letter
	spaces bool     // none goes on from a letter to a space
	added  []string // added tokens that a letter or a space begins
}

func newCutter(v *vocab.Vocab) *cutter {
	c := &cutter{v: v, lines: true, spaces: true}
	for id := range v.Size() {
		text, kind, err := v.Token(int32(id))
		if err != nil {
			continue
		}
		s := string(text)
		if kind == vocab.KindControl || kind == vocab.KindUserDefined {
			if r, _ := utf8.DecodeRuneInString(s); r == ' ' || unicode.IsLetter(r) {
				c.added = append(c.added, s)
			}
		}
		for i := 1; i < len(s); i++ {
			if s[i-1] == '\n' {
				c.lines = c.lines && !mayBeLetter(utf8.DecodeRuneInString(s[i:]))
			}
			if s[i] == ' ' {
				c.spaces = c.spaces && !mayBeLetter(utf8.DecodeLastRuneInString(s[:i]))
			}
		}
	}
	switch v.Family() {
	case vocab.FamilyBPE, vocab.FamilySPM, vocab.FamilyUnigram, vocab.FamilyWordPiece:
	default:
		c.lines, c.spaces = false, false
	}
	return c
}

// mayBeLetter says whether a decoded character is a letter, or part of one.
func mayBeLetter(r rune, n int) bool { return unicode.IsLetter(r) || r == utf8.RuneError && n <= 1 }

// cut is a place in a text: what stands before it and after it, as far as it
// matters to the other side.
type cut struct {
	at            int
	before, after string
}

// last finds the last place in a text to cut, not after its last 64 bytes: an added
// token may begin there.
func (c *cutter) last(text string) (cut, bool) {
	for at := len(text) - 64; at > 0; at-- {
		if !utf8.RuneStart(text[at]) {
			continue
		}
		if out, ok := c.here(text, at); ok {
			return out, true
		}
	}
	return cut{}, false
}

func (c *cutter) here(text string, at int) (cut, bool) {
	rest := text[at:]
	r, n := utf8.DecodeRuneInString(rest)
	out := cut{at: at}
	switch {
	case c.lines && text[at-1] == '\n' && unicode.IsLetter(r):
		out.before, out.after = "\n", rest[:n]
	case c.spaces && r == ' ':
		before, m := utf8.DecodeLastRuneInString(text[:at])
		after, k := utf8.DecodeRuneInString(rest[1:])
		if !unicode.IsLetter(before) || !unicode.IsLetter(after) {
			return out, false
		}
		out.before, out.after = text[at-m:at], rest[:1+k]
	default:
		return out, false
	}
	for _, s := range c.added {
		if strings.HasPrefix(rest, s) || strings.HasPrefix(s, rest) || strings.HasPrefix(rest, " "+s) {
			return out, false
		}
	}
	return out, true
}

// part encodes text[:end.at], which begin stands before; either may be a zero cut,
// for the text's own beginning and end. ok is false where the tokens around the
// text do not come out as they do alone: it must not be cut there.
func (c *cutter) part(text string, begin, end cut, o vocab.Options, spans bool) (e vocab.Encoding, ok bool, err error) {
	head, tail := begin.before, end.after
	whole := head + text + tail
	if spans {
		e, err = c.v.EncodeSpans(whole, o)
	} else {
		e.IDs, err = c.v.Encode(whole, o)
	}
	if err != nil {
		return e, false, err
	}
	prefix, _, err := c.around(begin, o)
	if err != nil {
		return e, false, err
	}
	_, suffix, err := c.around(end, o)
	if err != nil {
		return e, false, err
	}
	n := len(e.IDs)
	if n < len(prefix)+len(suffix) || !slices.Equal(e.IDs[:len(prefix)], prefix) || !slices.Equal(e.IDs[n-len(suffix):], suffix) {
		return e, false, nil
	}
	e.IDs = e.IDs[len(prefix) : n-len(suffix)]
	if spans {
		e.Spans = e.Spans[len(prefix) : n-len(suffix)]
		for i := range e.Spans {
			e.Spans[i][0], e.Spans[i][1] = e.Spans[i][0]-len(head), e.Spans[i][1]-len(head)
		}
	}
	return e, true, nil
}

// joins says whether the text behind a place begins with the ids that it begins with
// alone.
func (c *cutter) joins(rest string, at cut, o vocab.Options) bool {
	n := min(len(rest), 256)
	for n > 0 && n < len(rest) && !utf8.RuneStart(rest[n]) {
		n--
	}
	_, ok, err := c.part(rest[:n], at, cut{}, o, false)
	return ok && err == nil
}

// around encodes what stands on both sides of a place, alone: the ids before it and
// those after it.
func (c *cutter) around(at cut, o vocab.Options) (before, after []int32, err error) {
	if at.before == "" {
		return nil, nil, nil
	}
	o.BOS = false
	e, err := c.v.EncodeSpans(at.before+at.after, o)
	if err != nil {
		return nil, nil, err
	}
	n := 0
	for n < len(e.IDs) && e.Spans[n][1] <= len(at.before) {
		n++
	}
	return e.IDs[:n], e.IDs[n:], nil
}
