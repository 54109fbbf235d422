package vocab

import (
	"unicode/utf8"
)

// Options sets how text is encoded.
type Options struct {
	// Special recognises control tokens in the text. Without it they stay text.
	Special bool
	// Plain lists byte ranges [start, end) of the text, in order and disjoint, in which
	// no control token is recognised even with Special: text that came from a user.
	Plain [][2]int
	// BOS adds the begin and end tokens that the vocabulary asks for.
	BOS bool
	// Limit is the maximum number of ids, including those of BOS; 0 means no limit. Ids
	// are dropped at the end of the text, or at its beginning with KeepEnd.
	Limit   int
	KeepEnd bool
	// Workers is how many goroutines encode a long text; 0 means one. The ids do not
	// depend on it.
	Workers int
}

// Encoding is an encoded text.
type Encoding struct {
	IDs []int32
	// Spans are the bytes [start, end) of the text that each id stands for. Ids that
	// were added to the text, such as begin and end tokens, have an empty span. Where a
	// normalizer rewrote the text, a span is as narrow as the rewriting allows.
	Spans [][2]int
	// Truncated is the number of ids that Options.Limit dropped.
	Truncated int
}

// Encode returns the ids of a text. The error is a *TextError for text that is not
// valid UTF-8 or has characters that the vocabulary cannot represent.
func (v *Vocab) Encode(text string, o Options) ([]int32, error) {
	e, err := v.encode(text, &o, false)
	return e.IDs, err
}

// EncodeSpans is Encode that also returns the span of every id.
func (v *Vocab) EncodeSpans(text string, o Options) (Encoding, error) {
	return v.encode(text, &o, true)
}

func (v *Vocab) encode(text string, o *Options, spans bool) (Encoding, error) {
	if !utf8.ValidString(text) {
		return Encoding{}, &TextError{Offset: invalidAt(text), Reason: "invalid UTF-8"}
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

// finish truncates to the limit and adds the tokens that the vocabulary puts around a
// text.
func (e *Encoding) finish(v *Vocab, o *Options, length int) {
	var prefix, suffix []int32
	if o.BOS {
		prefix, suffix = v.prefix, v.suffix
	}
	if room := o.Limit - len(prefix) - len(suffix); o.Limit > 0 && len(e.IDs) > room {
		room = max(room, 0)
		e.Truncated = len(e.IDs) - room
		from, to := 0, room
		if o.KeepEnd {
			from, to = e.Truncated, len(e.IDs)
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

// encoder is the state of one encoding.
type encoder struct {
	v     *Vocab
	o     *Options
	plain plainSpans
	k     sink
	cache wordCache
}

// text splits the input text at added tokens.
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

// between normalizes the text between added tokens and splits it at those added tokens
// that are matched after normalization. base is the offset of the text.
func (e *encoder) between(text string, base int) error {
	if text == "" {
		return nil
	}
	// Edits are recorded to compute spans and to map Options.Plain to normalized text.
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

// normal encodes normalized text. Spans are positions in it.
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

// pieces splits normalized text, which begins at off, and encodes the pieces.
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

// scan splits s[:end] with the first scanner, splits its pieces with the others, and
// encodes the pieces that begin in s[i:stop].
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
	if st, ok := c.(*style); ok { // saves an indirect call per piece
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

// word encodes one piece, from the cache if possible.
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
