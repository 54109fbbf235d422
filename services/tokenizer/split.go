package tokenizer

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// splitter finds positions at which a long text may be split, so that the parts can be
// encoded separately: each part, encoded with one or two characters of its neighbours as
// context, gives exactly the ids that it has in the whole text.
//
// A split point is either between a line break and a letter, or between a letter and a
// space that is followed by a letter, provided that no token of the vocabulary spans such a
// point. Then neither merges nor the search on one side can depend on the other side, and
// the pre-tokenizers in use look at most one character ahead.
type splitter struct {
	v      *vocab.Vocab
	lines  bool     // no token contains a line break followed by a letter
	spaces bool     // no token contains a letter followed by a space
	added  []string // added tokens that begin with a letter or a space
}

func newSplitter(v *vocab.Vocab) *splitter {
	c := &splitter{v: v, lines: true, spaces: true}
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

// mayBeLetter reports whether a decoded character is a letter, or a fragment of one.
func mayBeLetter(r rune, n int) bool { return unicode.IsLetter(r) || r == utf8.RuneError && n <= 1 }

// split is a split point, with the characters before and after it that the other part
// needs as context.
type split struct {
	at            int
	before, after string
}

// last returns the last split point of a text, except in its last 64 bytes, where an added token
// may have begun.
func (c *splitter) last(text string) (split, bool) {
	for at := len(text) - 64; at > 0; at-- {
		if !utf8.RuneStart(text[at]) {
			continue
		}
		if out, ok := c.here(text, at); ok {
			return out, true
		}
	}
	return split{}, false
}

func (c *splitter) here(text string, at int) (split, bool) {
	rest := text[at:]
	r, n := utf8.DecodeRuneInString(rest)
	out := split{at: at}
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

// part encodes text[:end.at], where begin is the split point before it. A zero split stands
// for the beginning or the end of the whole text. ok is false if the context does not
// encode as it does alone: the text must not be split there.
func (c *splitter) part(text string, begin, end split, o vocab.Options,
	spans bool) (e vocab.Encoding, ok bool, err error) {
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
	if n < len(prefix)+len(suffix) || !slices.Equal(e.IDs[:len(prefix)], prefix) ||
		!slices.Equal(e.IDs[n-len(suffix):], suffix) {
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

// joins reports whether the text after a split point begins with the same ids with context
// and without.
func (c *splitter) joins(rest string, at split, o vocab.Options) bool {
	n := min(len(rest), 256)
	for n > 0 && n < len(rest) && !utf8.RuneStart(rest[n]) {
		n--
	}
	_, ok, err := c.part(rest[:n], at, split{}, o, false)
	return ok && err == nil
}

// around encodes the context of a split point alone and returns the ids before and after
// it.
func (c *splitter) around(at split, o vocab.Options) (before, after []int32, err error) {
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
