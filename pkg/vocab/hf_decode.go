package vocab

import (
	"strings"

	"github.com/lamina-mesh/lamina/pkg/vocab/pattern"
)

// decoding reads the decoder and computes the text of each token, at the beginning of
// a text and elsewhere.
func (f *hfFile) decoding(v *Vocab) error {
	if f.Decoder == nil {
		v.decoding.joinSpace = true
		return nil
	}
	var d hfDecoding
	if err := d.add(v, f.Decoder); err != nil {
		return err
	}
	alphabet := newByteLevel()
	for i := range v.tokens {
		t := &v.tokens[i]
		if t.added || t.kind == KindByte && !d.bytes {
			continue
		}
		first, later := t.text, t.text
		if t.kind == KindByte {
			first, later = t.bytes, t.bytes
		}
		for _, op := range d.ops {
			first, later = op(first, true), op(later, false)
		}
		if d.byteLevel {
			first, later = alphabet.decode(first), alphabet.decode(later)
		}
		t.set(first, later)
	}
	for i := range v.tokens { // added tokens keep their text, but are still joined as words
		t := &v.tokens[i]
		if !t.added {
			continue
		}
		first, later := t.text, t.text
		for _, op := range d.joins {
			first, later = op(first, true), op(later, false)
		}
		t.set(first, later)
	}
	return nil
}

// set sets the text of a token at the beginning of a text and elsewhere.
func (t *token) set(first, later string) {
	t.bytes, t.headed, t.head = later, first != later, ""
	if t.headed {
		t.head = first
	}
}

// hfDecoding is a decoder as a list of operations on one token. first says that the
// token begins the text.
type hfDecoding struct {
	ops       []func(s string, first bool) string
	joins     []func(s string, first bool) string // the operations that apply to added tokens too
	byteLevel bool
	bytes     bool
	fused     bool
}

func (d *hfDecoding) both(op func(s string, first bool) string) {
	d.ops, d.joins = append(d.ops, op), append(d.joins, op)
}

func (d *hfDecoding) add(v *Vocab, c *hfComponent) error {
	const field = "tokenizer.json: decoder"
	switch c.Type {
	case "Sequence":
		for i := range c.Decoders {
			if err := d.add(v, &c.Decoders[i]); err != nil {
				return err
			}
		}
	case "Fuse":
		d.fused = true
	case "ByteFallback":
		d.bytes = true
		v.byteSpellings()
	case "ByteLevel":
		d.byteLevel = true
	case "Metaspace":
		mark := c.Replacement
		if mark == "" {
			mark = wordMark
		}
		drop := c.PrependScheme != "never" && (c.PrependScheme != "" || c.AddPrefixSpace == nil || *c.AddPrefixSpace)
		d.ops = append(d.ops, func(s string, first bool) string {
			if first && drop {
				return strings.ReplaceAll(s, mark, "")
			}
			return strings.ReplaceAll(s, mark, " ")
		})
	case "Replace":
		return d.replace(c, field)
	case "Strip":
		if !singleRune(c.Content) || c.Start < 0 || c.Stop < 0 || d.fused && c.Stop > 0 {
			return unsupported(field, "strip of %q, %d and %d", c.Content, c.Start, c.Stop)
		}
		fused := d.fused
		d.ops = append(d.ops, func(s string, first bool) string {
			if fused && !first {
				return s
			}
			for n := 0; n < c.Start && strings.HasPrefix(s, c.Content); n++ {
				s = s[len(c.Content):]
			}
			for n := 0; n < c.Stop && strings.HasSuffix(s, c.Content); n++ {
				s = s[:len(s)-len(c.Content)]
			}
			return s
		})
	case "WordPiece":
		d.both(func(s string, first bool) string {
			if !first {
				if rest, ok := strings.CutPrefix(s, c.Prefix); ok && c.Prefix != "" {
					s = rest
				} else {
					s = " " + s
				}
			}
			if c.Cleanup == nil || *c.Cleanup {
				s = cleanUp(s)
			}
			return s
		})
	case "BPEDecoder":
		suffix := c.Suffix
		v.decoding.heldSpace = true
		d.both(func(s string, _ bool) string { return strings.ReplaceAll(s, suffix, " ") })
	case "CTC":
		v.decoding.once = true
		d.both(func(s string, _ bool) string {
			s = strings.ReplaceAll(s, c.PadToken, "")
			if c.Cleanup == nil || *c.Cleanup {
				s = strings.ReplaceAll(cleanUp(s), c.WordDelimiter, " ")
			}
			return s
		})
	default:
		return unsupported(field, "type %q", c.Type)
	}
	return nil
}

func (d *hfDecoding) replace(c *hfComponent, field string) error {
	switch {
	case c.Pattern.String != nil && *c.Pattern.String != "":
		old := *c.Pattern.String
		d.ops = append(d.ops, func(s string, _ bool) string { return strings.ReplaceAll(s, old, c.Content) })
	case c.Pattern.Regex != nil:
		p, err := pattern.Compile(*c.Pattern.Regex)
		if err != nil {
			return unsupported(field, "%v", err)
		}
		d.ops = append(d.ops, func(s string, _ bool) string {
			var b strings.Builder
			at := 0
			p.Matcher(s).All(func(start, end int) bool {
				b.WriteString(s[at:start])
				b.WriteString(c.Content)
				at = end
				return true
			})
			return b.String() + s[at:]
		})
	default:
		return malformed(field, "replacement without a pattern")
	}
	return nil
}

// cleanUp removes the spaces before English punctuation and contractions.
func cleanUp(s string) string {
	for _, r := range [...][2]string{{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"},
		{" n't", "n't"}, {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}} {
		s = strings.ReplaceAll(s, r[0], r[1])
	}
	return s
}
