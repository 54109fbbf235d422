package vocab

import (
	"strings"
	"unicode/utf8"
)

// DecodeOptions sets how ids are decoded.
type DecodeOptions struct {
	// SkipSpecial leaves control tokens out of the text.
	SkipSpecial bool
	// Keep holds control tokens that SkipSpecial leaves in.
	Keep map[int32]bool
	// Prefix holds the ids before the first one. They affect spacing and are not
	// decoded again.
	Prefix []int32
}

// decoding says how tokens are joined into text.
type decoding struct {
	stripSpace bool // remove the space that encoding put before the text
	stripAll   bool // remove all spaces before the first other text
	joinSpace  bool // tokens are words and are joined by spaces
	heldSpace  bool // a space at the end of a token is written only before another token
	once       bool // a token repeated in a row is written once
}

// Decode returns the text of ids. Invalid UTF-8 becomes U+FFFD. The error is a
// *TokenError for an id outside the vocabulary.
func (v *Vocab) Decode(ids []int32, o DecodeOptions) (string, error) {
	d := v.NewDecoder(o)
	var b strings.Builder
	for _, id := range ids {
		s, err := d.Push(id)
		if err != nil {
			return "", err
		}
		b.WriteString(s)
	}
	b.WriteString(d.Flush())
	return b.String(), nil
}

// Decoder decodes a stream of ids to text. Text that it has returned never changes, and
// it never returns part of a character. It belongs to one goroutine.
type Decoder struct {
	v     *Vocab
	skip  bool
	keep  map[int32]bool // not nil: of the special tokens only these are text
	start bool           // no text yet
	held  []byte         // the bytes of an incomplete character
	space bool           // a space that is written only before another token
	last  int32          // the previous id, -1 if there is none
}

// NewDecoder returns a Decoder. Ids in o.Prefix that are outside the vocabulary count
// as text.
func (v *Vocab) NewDecoder(o DecodeOptions) *Decoder {
	d := &Decoder{v: v, skip: o.SkipSpecial, start: true, last: -1}
	if o.SkipSpecial && o.Keep != nil {
		d.skip, d.keep = false, o.Keep
	}
	for _, id := range o.Prefix {
		if id < 0 || int(id) >= len(v.tokens) || !v.silent(id, true) {
			d.start = false
			break
		}
	}
	return d
}

// silent reports whether a token adds nothing to the text.
func (v *Vocab) silent(id int32, skip bool) bool {
	k := v.tokens[id].kind
	return skip && (k == KindControl || k == KindUnknown && v.unk == id)
}

// structural says that a token is not text.
func (v *Vocab) structural(id int32) bool {
	k := v.tokens[id].kind
	return k == KindControl || k == KindUnknown
}

// Push adds an id and returns the text that is complete now, which may be empty. The
// error is a *TokenError.
func (d *Decoder) Push(id int32) (string, error) {
	v := d.v
	if id < 0 || int(id) >= len(v.tokens) {
		return "", &TokenError{ID: int64(id), Size: len(v.tokens)}
	}
	if v.silent(id, d.skip) || d.keep != nil && !d.keep[id] && v.structural(id) {
		return "", nil
	}
	if v.decoding.once {
		if d.last == id {
			return "", nil
		}
		d.last = id
	}
	t := &v.tokens[id]
	text := t.bytes
	if d.start {
		d.start = false
		if t.headed {
			text = t.head
		}
		if v.decoding.stripSpace && !t.added {
			text = strings.TrimPrefix(text, " ")
			d.start = v.decoding.stripAll && text == ""
		}
	} else if v.decoding.joinSpace {
		text = " " + text
	}
	if v.decoding.heldSpace {
		had := d.space
		if text, d.space = strings.CutSuffix(text, " "); had {
			text = " " + text
		}
	}
	if len(d.held) == 0 && utf8.ValidString(text) {
		return text, nil
	}
	d.held = append(d.held, text...)
	return d.take(false), nil
}

// Flush ends the text. An incomplete character becomes U+FFFD.
func (d *Decoder) Flush() string { return d.take(true) }

// take returns the complete characters of the held bytes, and at the end all of them.
func (d *Decoder) take(end bool) string {
	var b strings.Builder
	h := d.held
	for len(h) > 0 {
		r, n := utf8.DecodeRune(h)
		if r != utf8.RuneError || n > 1 {
			b.Write(h[:n])
			h = h[n:]
			continue
		}
		if !end && !utf8.FullRune(h) {
			break
		}
		b.WriteRune(utf8.RuneError)
		h = h[brokenLength(h):]
	}
	d.held = append(d.held[:0], h...)
	return b.String()
}

// brokenLength returns how many bytes of an ill-formed sequence one U+FFFD replaces: its maximal
// subpart (Unicode Standard, section 3.9).
func brokenLength(h []byte) int {
	for n := min(len(h), 3); n > 1; n-- {
		if !utf8.FullRune(h[:n]) {
			return n
		}
	}
	return 1
}
