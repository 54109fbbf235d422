package vocab

import (
	"unicode/utf8"
)

// Encode turns text, which must be valid UTF-8, into ids. It returns a
// *TextError for text that is not, or that the vocabulary cannot spell.
func (v *Vocab) Encode(text string, o Options) ([]int32, error) {
	if !utf8.ValidString(text) {
		return nil, &TextError{Offset: invalidAt(text), Reason: "invalid utf-8"}
	}
	end := 0
	for _, r := range o.Plain {
		if r[0] < end || r[1] < r[0] || r[1] > len(text) {
			return nil, &TextError{Offset: r[0], Reason: "plain range out of order or outside the text"}
		}
		end = r[1]
	}
	e := encoder{v: v, o: &o, plain: spans{ranges: o.Plain}, out: make([]int32, 0, len(text)/3+8)}
	if o.BOS {
		e.out = append(e.out, v.prefix...)
	}
	if err := e.text(text); err != nil {
		return nil, err
	}
	if o.BOS {
		e.out = append(e.out, v.suffix...)
	}
	return e.out, nil
}

type encoder struct {
	v     *Vocab
	o     *Options
	plain spans
	s     scratch
	out   []int32
}

// text cuts at the added tokens that stand in the text as it came.
func (e *encoder) text(text string) error {
	at, from, first := 0, 0, true
	if e.v.raw != nil {
		for {
			f, ok := e.v.raw.next(text, from, at, e.o, &e.plain)
			if !ok {
				break
			}
			if err := e.between(text[at:f.start], first); err != nil {
				return err
			}
			e.out = append(e.out, f.id)
			at, from, first = f.end, f.resume, false
		}
	}
	return e.between(text[at:], first)
}

// between normalizes what lies between added tokens and cuts at those that are
// sought in normalized text. first says that no token came before.
func (e *encoder) between(text string, first bool) error {
	if text == "" {
		return nil
	}
	if e.v.normalize != nil {
		text = e.v.normalize(text, first)
	}
	if e.v.normalized == nil {
		return e.plainText(text, first)
	}
	at, from := 0, 0
	none := Options{} // positions moved, so no control token is read here
	var plain spans
	for {
		f, ok := e.v.normalized.next(text, from, at, &none, &plain)
		if !ok {
			return e.plainText(text[at:], first)
		}
		if err := e.plainText(text[at:f.start], first); err != nil {
			return err
		}
		e.out = append(e.out, f.id)
		at, from, first = f.end, f.resume, false
	}
}

func (e *encoder) plainText(text string, first bool) error {
	return e.v.pretok(text, first, func(piece string, _ bool) error {
		var err error
		e.out, err = e.v.model.encode(piece, &e.s, e.out)
		return err
	})
}

func invalidAt(s string) int {
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(s)
}
