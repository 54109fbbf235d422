package vocab

import (
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/lamina-mesh/lamina/pkg/vocab/pattern"
)

// normalizer rewrites text before it is split and records the edits in ed, unless ed
// is nil. first says that the text is at the start of the input. A nil normalizer
// changes nothing.
type normalizer func(text string, first bool, ed *edits) string

// normalizers are applied one after another. Each records its own edits.
type normalizers []normalizer

// apply rewrites text and, if record is set, returns the edits of each step.
func (n normalizers) apply(text string, first, record bool) (string, []*edits) {
	var all []*edits
	for _, step := range n {
		var ed *edits
		if record {
			ed = &edits{}
			all = append(all, ed)
		}
		text = step(text, first, ed)
	}
	return text, all
}

// hfNormalizer builds the normalizers of a tokenizer.json.
func hfNormalizer(c *hfComponent) (normalizers, error) {
	if c == nil {
		return nil, nil
	}
	const field = "tokenizer.json: normalizer"
	one := func(n normalizer) (normalizers, error) { return normalizers{n}, nil }
	switch c.Type {
	case "Sequence":
		var steps normalizers
		for i := range c.Normalizers {
			n, err := hfNormalizer(&c.Normalizers[i])
			if err != nil {
				return nil, err
			}
			steps = append(steps, n...)
		}
		return steps, nil
	case "NFC":
		return one(form(norm.NFC))
	case "NFD":
		return one(form(norm.NFD))
	case "NFKC":
		return one(form(norm.NFKC))
	case "NFKD":
		return one(form(norm.NFKD))
	case "Lowercase":
		return one(lowercase)
	case "StripAccents":
		return one(stripMarks)
	case "Strip":
		return one(func(s string, _ bool, ed *edits) string { return strip(s, c.StripLeft, c.StripRight, ed) })
	case "Nmt":
		return one(nmt)
	case "Precompiled":
		m, err := newCharsmap(c.Charsmap)
		if err != nil {
			return nil, malformed(field, "precompiled_charsmap: %v", err)
		}
		return one(m.graphemes)
	case "BertNormalizer":
		return one(c.bert())
	case "ByteLevel":
		alphabet := newByteLevel()
		return one(func(s string, _ bool, ed *edits) string {
			for i := 0; ed != nil && i < len(s); i++ {
				ed.add(len(alphabet.spell[s[i]]), 1, false)
			}
			return alphabet.encode(s)
		})
	case "Prepend":
		return one(prepend(c.Prepend))
	case "Replace":
		return hfReplace(c, field)
	default:
		return nil, unsupported(field, "type %q", c.Type)
	}
}

func hfReplace(c *hfComponent, field string) (normalizers, error) {
	switch {
	case c.Pattern.String != nil:
		old := *c.Pattern.String
		if old == "" {
			return nil, malformed(field, "replacement of nothing")
		}
		return normalizers{func(s string, _ bool, ed *edits) string { return replaced(s, old, c.Content, ed) }}, nil
	case c.Pattern.Regex != nil:
		p, err := pattern.Compile(*c.Pattern.Regex)
		if err != nil {
			return nil, unsupported(field, "%v", err)
		}
		return normalizers{func(s string, _ bool, ed *edits) string {
			var b strings.Builder
			at := 0
			p.Matcher(s).All(func(start, end int) bool {
				b.WriteString(s[at:start])
				b.WriteString(c.Content)
				ed.add(start-at, start-at, true)
				ed.add(len(c.Content), end-start, false)
				at = end
				return true
			})
			ed.add(len(s)-at, len(s)-at, true)
			b.WriteString(s[at:])
			return b.String()
		}}, nil
	}
	return nil, malformed(field, "replacement without a pattern")
}

func prepend(prefix string) normalizer {
	return func(s string, _ bool, ed *edits) string {
		if s == "" {
			return s
		}
		ed.add(len(prefix), 0, false)
		ed.add(len(s), len(s), true)
		return prefix + s
	}
}

func form(f norm.Form) normalizer {
	return func(s string, _ bool, ed *edits) string {
		if plainASCII(s) || f.IsNormalString(s) {
			ed.add(len(s), len(s), true)
			return s
		}
		if ed == nil {
			return f.String(s)
		}
		var it norm.Iter
		it.InitString(f, s)
		var b strings.Builder
		for !it.Done() {
			from := it.Pos()
			out := it.Next()
			b.Write(out)
			in := s[from:it.Pos()]
			ed.add(len(out), len(in), string(out) == in)
		}
		return b.String()
	}
}

func plainASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// lowercase applies the full case mapping: İ becomes two characters. A final sigma is
// not special, since each character is mapped on its own.
func lowercase(s string, _ bool, ed *edits) string {
	return mapped(s, ed, func(r rune) (string, bool) {
		if r == 'İ' {
			return "i\u0307", true
		}
		if l := unicode.ToLower(r); l != r {
			return string(l), true
		}
		return "", false
	})
}

// stripMarks removes combining marks.
func stripMarks(s string, _ bool, ed *edits) string {
	return mapped(s, ed, func(r rune) (string, bool) { return "", unicode.Is(unicode.M, r) })
}

func strip(s string, left, right bool, ed *edits) string {
	trimmed := s
	if left {
		trimmed = strings.TrimLeftFunc(trimmed, isSpace)
		ed.add(0, len(s)-len(trimmed), false)
	}
	rest := len(trimmed)
	if right {
		trimmed = strings.TrimRightFunc(trimmed, isSpace)
	}
	ed.add(len(trimmed), len(trimmed), true)
	ed.add(0, rest-len(trimmed), false)
	return trimmed
}

// nmt is SentencePiece's clean-up for machine translation: it removes control
// characters and replaces spaces of every kind with a plain space.
func nmt(s string, _ bool, ed *edits) string {
	return mapped(s, ed, func(r rune) (string, bool) {
		switch {
		case r >= 0x1 && r <= 0x8, r == 0xb, r >= 0xe && r <= 0x1f, r == 0x7f, r == 0x8f, r == 0x9f:
			return "", true
		case r == 0x9, r == 0xa, r == 0xc, r == 0xd, r == 0x1680, r >= 0x200b && r <= 0x200f, r == 0x2028, r == 0x2029,
			r == 0x2581, r == 0xfeff, r == 0xfffd:
			return " ", true
		}
		return "", false
	})
}

func isSpace(r rune) bool { return unicode.IsSpace(r) }

// bert is BERT's normalization, in BERT's order: remove control characters, put spaces
// around Chinese characters, strip accents, convert to lower case.
func (c *hfComponent) bert() normalizer {
	lower := c.Lowercase == nil || *c.Lowercase
	accents := lower
	if c.StripAccents != nil {
		accents = *c.StripAccents
	}
	clean := c.CleanText == nil || *c.CleanText
	chinese := c.Chinese == nil || *c.Chinese
	nfd := form(norm.NFD)
	return func(s string, first bool, ed *edits) string {
		step := func(f func(string, *edits) string) {
			if ed == nil {
				s = f(s, nil)
				return
			}
			var next edits
			s = f(s, &next)
			*ed = joinEdits(*ed, next)
		}
		ed.add(len(s), len(s), true)
		if clean {
			step(func(s string, e *edits) string { return mapped(s, e, bertClean) })
		}
		if chinese {
			step(func(s string, e *edits) string { return mapped(s, e, bertChinese) })
		}
		if accents {
			step(func(s string, e *edits) string { return nfd(s, first, e) })
			step(func(s string, e *edits) string {
				return mapped(s, e, func(r rune) (string, bool) { return "", r >= 0x300 && unicode.Is(unicode.Mn, r) })
			})
		}
		if lower {
			step(func(s string, e *edits) string { return lowercase(s, first, e) })
		}
		return s
	}
}

func bertClean(r rune) (string, bool) {
	switch {
	case r == '\t' || r == '\n' || r == '\r':
		return " ", true
	case r == 0 || r == utf8.RuneError || classOf(r)&classControl != 0:
		return "", true
	case unicode.IsSpace(r):
		return " ", r != ' '
	}
	return "", false
}

func bertChinese(r rune) (string, bool) {
	if isChinese(r) {
		return " " + string(r) + " ", true
	}
	return "", false
}

func isChinese(r rune) bool {
	return r >= 0x4e00 && r <= 0x9fff || r >= 0x3400 && r <= 0x4dbf || r >= 0x20000 && r <= 0x2a6df ||
		r >= 0x2a700 && r <= 0x2b73f || r >= 0x2b740 && r <= 0x2b81f || r >= 0x2b820 && r <= 0x2ceaf ||
		r >= 0xf900 && r <= 0xfaff || r >= 0x2f800 && r <= 0x2fa1f
}

// joinEdits composes edits: the result is a followed by b.
//
// Every segment of b covers a range of b's source, which is a's result. A segment that b
// rewrote maps to the source that a made its range from. A segment that b copied is cut
// at the segments of a, and each part maps as a's segment does.
func joinEdits(a, b edits) edits {
	var out edits
	for i, p := range b.parts {
		end, in := b.out, b.in
		if i+1 < len(b.parts) {
			end, in = b.parts[i+1].out, b.parts[i+1].in
		}
		if !p.same {
			to := a.in
			if in < a.out {
				to = a.source(in, false)
			}
			out.add(end-p.out, max(0, to-out.in), false)
			continue
		}
		for at := p.in; at < in; {
			k := sort.Search(len(a.parts), func(k int) bool { return a.parts[k].out > at })
			stop := min(in, a.out)
			if k < len(a.parts) {
				stop = min(in, a.parts[k].out)
			}
			from, to := a.back(at, stop)
			same := k > 0 && a.parts[k-1].same && from == out.in
			out.add(stop-at, max(0, to-out.in), same)
			at = stop
		}
	}
	out.add(0, max(0, a.in-out.in), false)
	return out
}
