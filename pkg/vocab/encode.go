package vocab

import (
	"unicode/utf8"
)

// Options shapes an encoding.
type Options struct {
	// Special reads control tokens in the text as such. Off, they stay text.
	Special bool
	// Plain lists byte ranges [start, end) of the text, in order and apart, that
	// hold no control token whatever Special says: what came from a user.
	Plain [][2]int
	// BOS adds the begin and end tokens that the vocabulary asks for.
	BOS bool
	// Limit is the most ids that come out, those of BOS included; 0 is any number.
	// What goes is at the end of the text, or at its beginning where KeepEnd is set.
	Limit   int
	KeepEnd bool
	// Workers share out a long text; 0 means one. Their number changes nothing but
	// the time.
	Workers int
}

// Encoding is a text as ids.
type Encoding struct {
	IDs []int32
	// Spans are the bytes [start, end) of the text that each id stands for. Ids that
	// the text did not ask for, such as begin and end tokens, have an empty span.
	// Where a normalizer rewrote the text, a span is as narrow as is known.
	Spans [][2]int
	// Left counts the ids that Options.Limit left out.
	Left int
}

// Encode turns text, which must be valid UTF-8, into ids. It returns a
// *TextError for text that is not, or that the vocabulary cannot spell.
func (v *Vocab) Encode(text string, o Options) ([]int32, error) {
	e, err := v.encode(text, &o, false)
	return e.IDs, err
}

// EncodeSpans is Encode with the place of every id in the text.
func (v *Vocab) EncodeSpans(text string, o Options) (Encoding, error) {
	return v.encode(text, &o, true)
}

func (v *Vocab) encode(text string, o *Options, spans bool) (Encoding, error) {
	if !utf8.ValidString(text) {
		return Encoding{}, &TextError{Offset: invalidAt(text), Reason: "invalid utf-8"}
	}
	end := 0
	for _, r := range o.Plain {
		if r[0] < end || r[1] < r[0] || r[1] > len(text) {
			return Encoding{}, &TextError{Offset: r[0], Reason: "plain range out of order or outside the text"}
		}
		end = r[1]
	}
	e := v.encoders.get(v)
	defer v.encoders.put(e)
	e.o, e.plain, e.k.record = o, plainSpans{ranges: o.Plain}, spans
	e.k.ids = make([]int32, 0, len(text)/4+8)
	e.k.spans = nil
	if err := e.text(text); err != nil {
		return Encoding{}, err
	}
	out := Encoding{IDs: e.k.ids, Spans: e.k.spans}
	e.k.ids, e.k.spans = nil, nil
	out.finish(v, o, len(text))
	return out, nil
}

// finish cuts to the limit and adds what the vocabulary puts around a text.
func (e *Encoding) finish(v *Vocab, o *Options, length int) {
	var prefix, suffix []int32
	if o.BOS {
		prefix, suffix = v.prefix, v.suffix
	}
	if room := o.Limit - len(prefix) - len(suffix); o.Limit > 0 && len(e.IDs) > room {
		room = max(room, 0)
		e.Left = len(e.IDs) - room
		from, to := 0, room
		if o.KeepEnd {
			from, to = e.Left, len(e.IDs)
		}
		e.IDs = e.IDs[from:to]
		if e.Spans != nil {
			e.Spans = e.Spans[from:to]
		}
	}
	if len(prefix)+len(suffix) == 0 {
		return
	}
	ids := make([]int32, 0, len(prefix)+len(e.IDs)+len(suffix))
	e.IDs = append(append(append(ids, prefix...), e.IDs...), suffix...)
	if o.Limit > 0 && len(e.IDs) > o.Limit {
		e.IDs = e.IDs[:o.Limit]
	}
	if e.Spans == nil {
		return
	}
	all := make([][2]int, len(prefix), cap(ids))
	all = append(all, e.Spans...)
	for range suffix {
		all = append(all, [2]int{length, length})
	}
	e.Spans = all[:len(e.IDs)]
}

// encoder is one encoding at work.
type encoder struct {
	v     *Vocab
	o     *Options
	plain plainSpans
	k     sink
	cache wordCache
}

// text cuts at the added tokens that stand in the text as it came.
func (e *encoder) text(text string) error {
	at, from := 0, 0
	if e.v.raw != nil {
		for {
			f, ok := e.v.raw.next(text, from, at, e.o, &e.plain)
			if !ok {
				break
			}
			if err := e.between(text[at:f.start], at); err != nil {
				return err
			}
			e.k.emit(f.id, f.start, f.end)
			at, from = f.end, f.resume
		}
	}
	return e.between(text[at:], at)
}

// between normalizes what lies between added tokens and cuts at those that are
// sought in normalized text. base is where the text stands.
func (e *encoder) between(text string, base int) error {
	if text == "" {
		return nil
	}
	// Positions are needed for spans, and to know what is plain after normalizing.
	record := e.k.record || e.v.normalized != nil && e.v.normalized.control && len(e.o.Plain) > 0
	var back []*edits
	if len(e.v.normalize) > 0 {
		text, back = e.v.normalize.apply(text, base == 0, record)
	}
	began := len(e.k.spans)
	if err := e.normal(text, base, back); err != nil {
		return err
	}
	for i := began; i < len(e.k.spans); i++ {
		start, end := e.k.spans[i][0], e.k.spans[i][1]
		for k := len(back) - 1; k >= 0; k-- {
			start, end = back[k].back(start, end)
		}
		e.k.spans[i] = [2]int{start + base, end + base}
	}
	return nil
}

// normal encodes normalized text; spans are places in it.
func (e *encoder) normal(text string, base int, back []*edits) error {
	if e.v.normalized == nil {
		return e.pieces(text, 0, base == 0)
	}
	plain := plainSpans{ranges: e.o.Plain}
	plain.back = func(start, end int) (int, int) {
		for k := len(back) - 1; k >= 0; k-- {
			start, end = back[k].back(start, end)
		}
		return start + base, end + base
	}
	at, from := 0, 0
	for {
		f, ok := e.v.normalized.next(text, from, at, e.o, &plain)
		if !ok {
			return e.pieces(text[at:], at, base == 0 && at == 0)
		}
		if err := e.pieces(text[at:f.start], at, base == 0 && at == 0); err != nil {
			return err
		}
		e.k.emit(f.id, f.start, f.end)
		at, from = f.end, f.resume
	}
}

// pieces cuts normalized text that stands at off and encodes the pieces.
func (e *encoder) pieces(text string, off int, first bool) error {
	if text == "" {
		return nil
	}
	v := e.v
	if v.scanners != nil && !e.k.record {
		if e.o.Workers > 1 && len(text) > 2*parallelChunk && v.restart {
			return e.parallel(text)
		}
		return e.scan(v.scanners, text, 0, len(text), len(text))
	}
	return cutAll(v.steps, piece{text: text, off: off, first: first}, func(p piece) error {
		began := len(e.k.spans)
		if err := v.model.encode(p.text, &e.k); err != nil {
			return err
		}
		for i := began; i < len(e.k.spans); i++ {
			e.k.spans[i][0], e.k.spans[i][1] = p.back(e.k.spans[i][0], e.k.spans[i][1])
		}
		return nil
	})
}

// scan cuts the view s[:end] by the first scanner and what it gives by the
// others, and encodes the pieces that begin in s[i:stop].
func (e *encoder) scan(scanners []scanner, s string, i, end, stop int) error {
	if len(scanners) > 1 {
		for i < stop {
			next := scanners[0].next(s, i, end)
			if err := e.scan(scanners[1:], s, i, next, min(next, stop)); err != nil {
				return err
			}
			i = next
		}
		return nil
	}
	c := scanners[0]
	if st, ok := c.(*style); ok { // spares an indirect call a piece
		for i < stop {
			next := st.next(s, i, end)
			if err := e.word(s, i, next); err != nil {
				return err
			}
			i = next
		}
		return nil
	}
	for i < stop {
		next := c.next(s, i, end)
		if err := e.word(s, i, next); err != nil {
			return err
		}
		i = next
	}
	return nil
}

// word encodes one piece, from memory if it can.
func (e *encoder) word(s string, i, end int) error {
	n := end - i
	if n > maxWord {
		return e.v.model.encode(s[i:end], &e.k)
	}
	key := wordKey(s[i:], n)
	slot := e.cache.slot(&key)
	if slot.key == key {
		if slot.n == 1 {
			e.k.ids = append(e.k.ids, slot.ids[0])
		} else {
			e.k.ids = append(e.k.ids, slot.ids[:slot.n]...)
		}
		return nil
	}
	began := len(e.k.ids)
	if err := e.v.model.encode(s[i:end], &e.k); err != nil {
		return err
	}
	if made := e.k.ids[began:]; len(made) > 0 && len(made) <= maxIDs {
		slot.key, slot.n = key, int32(len(made))
		copy(slot.ids[:], made)
	}
	return nil
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
