package regex

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// escaped reads an escape outside a class.
func (p *parser) escaped() (*Node, error) {
	for _, a := range []struct {
		text string
		op   Op
	}{{`\A`, Begin}, {`\z`, End}, {`\b`, WordBoundary}, {`\B`, NotWordBoundary}} {
		if p.take(a.text) {
			return node(&Node{Op: a.op}), nil
		}
	}
	if p.dialect == Oniguruma && p.take(`\Z`) {
		return node(&Node{Op: FinalEnd}), nil
	}
	set, err := p.escape(false)
	if err != nil {
		return nil, err
	}
	return p.char(set), nil
}

// class reads a bracket expression. It folds case if the flag i is set.
func (p *parser) class() (charset.Set, error) {
	p.at++
	negated := p.take("^")
	if p.has("]") {
		return nil, p.refuse("empty class [] or [^]", "ECMA-262 and RE2 read it differently")
	}
	var spans, also []charset.Span // also holds what only one of the dialects includes
	for {
		if p.at >= len(p.text) {
			return nil, p.fail("read a class: the closing ] is missing")
		}
		if p.take("]") {
			break
		}
		switch {
		case p.dialect == ECMA: // a single dialect has no disagreement
		case p.has(`\s`):
			also = append(also, notSpaceSet.Negate()...)
		case p.has(`\S`):
			also = append(also, spaceSet.Negate()...)
		}
		low, err := p.member()
		if err != nil {
			return nil, err
		}
		if p.has("-") && !p.has("-]") && len(p.text) > p.at+1 {
			at := p.at
			p.at++
			high, err := p.member()
			if err != nil {
				return nil, err
			}
			if lo, ok := low.Single(); ok {
				if hi, ok := high.Single(); ok {
					if hi < lo {
						return nil, p.fail("read range %q-%q: its ends are reversed", lo, hi)
					}
					spans = append(spans, charset.Span{Lo: lo, Hi: hi})
					continue
				}
			}
			p.at = at + 1 // a bar beside a set is itself
			spans = append(spans, charset.Span{Lo: '-', Hi: '-'})
		}
		spans = append(spans, low...)
	}
	if negated {
		spans = append(spans, also...)
	}
	set := charset.New(spans...)
	if p.fold {
		set = set.Fold()
	}
	if negated {
		set = set.Negate()
	}
	return set, nil
}

func (p *parser) member() (charset.Set, error) {
	switch {
	case p.at >= len(p.text):
		return nil, p.fail("read a class: the closing ] is missing")
	case p.has("\\"):
		return p.escape(true)
	case p.has("[:"):
		end := strings.Index(p.text[p.at:], ":]")
		if end > 1 {
			name, negated := strings.CutPrefix(p.text[p.at+2:p.at+end], "^")
			set, ok := posixClass(name)
			if ok {
				p.at += end + 2
				if negated {
					set = set.Negate()
				}
				return set, nil
			}
		}
	}
	return charset.Single(p.rune()), nil
}

func posixClass(name string) (charset.Set, bool) {
	switch name {
	case "alnum":
		return charset.New(charset.Span{Lo: '0', Hi: '9'}, charset.Span{Lo: 'A', Hi: 'Z'},
			charset.Span{Lo: 'a', Hi: 'z'}), true
	case "alpha":
		return charset.New(charset.Span{Lo: 'A', Hi: 'Z'}, charset.Span{Lo: 'a', Hi: 'z'}), true
	case "ascii":
		return charset.New(charset.Span{Lo: 0, Hi: 0x7F}), true
	case "blank":
		return charset.New(charset.Span{Lo: '\t', Hi: '\t'}, charset.Span{Lo: ' ', Hi: ' '}), true
	case "cntrl":
		return charset.New(charset.Span{Lo: 0, Hi: 0x1F}, charset.Span{Lo: 0x7F, Hi: 0x7F}), true
	case "digit":
		return digitSet, true
	case "graph":
		return charset.New(charset.Span{Lo: '!', Hi: '~'}), true
	case "lower":
		return charset.New(charset.Span{Lo: 'a', Hi: 'z'}), true
	case "print":
		return charset.New(charset.Span{Lo: ' ', Hi: '~'}), true
	case "punct":
		return charset.New(charset.Span{Lo: '!', Hi: '/'}, charset.Span{Lo: ':', Hi: '@'},
			charset.Span{Lo: '[', Hi: '`'}, charset.Span{Lo: '{', Hi: '~'}), true
	case "space":
		return charset.New(charset.Span{Lo: '\t', Hi: '\r'}, charset.Span{Lo: ' ', Hi: ' '}), true
	case "upper":
		return charset.New(charset.Span{Lo: 'A', Hi: 'Z'}), true
	case "word":
		return Word, true
	case "xdigit":
		return charset.New(charset.Span{Lo: '0', Hi: '9'}, charset.Span{Lo: 'A', Hi: 'F'},
			charset.Span{Lo: 'a', Hi: 'f'}), true
	}
	return nil, false
}

// escape reads a backslash and what follows it.
func (p *parser) escape(inClass bool) (charset.Set, error) {
	p.at++
	if p.at >= len(p.text) {
		return nil, p.fail("read an escape: the text ends after \\")
	}
	c := p.rune()
	if p.dialect == Oniguruma {
		if set, ok := unicodeEscape(c); ok {
			return set, nil
		}
	}
	switch c {
	case 'd':
		return digitSet, nil
	case 'D':
		return digitSet.Negate(), nil
	case 'w':
		return Word, nil
	case 'W':
		return Word.Negate(), nil
	case 's':
		if p.dialect == ECMA {
			return notSpaceSet.Negate(), nil
		}
		return spaceSet, nil
	case 'S':
		return notSpaceSet, nil
	case 'p', 'P':
		return p.property(c == 'P')
	case 'x', 'u', 'U':
		r, err := p.hex(c)
		return charset.Single(r), err
	case 'c':
		if p.at < len(p.text) {
			if l := p.text[p.at] | 0x20; l >= 'a' && l <= 'z' {
				p.at++
				return charset.Single(rune(l & 0x1F)), nil
			}
		}
		return nil, p.fail("read an escape: want a letter after \\c")
	case '0':
		if p.at < len(p.text) && p.text[p.at] >= '0' && p.text[p.at] <= '9' {
			return nil, p.refuse("octal escape", "dialects differ in its meaning")
		}
		return charset.Single(0), nil
	case 'b':
		if inClass {
			return charset.Single('\b'), nil
		}
	case 'k':
		return nil, p.refuse("backreference \\k", "an automaton cannot remember what a group matched")
	case 'Z', 'G', 'K', 'R', 'X', 'C', 'Q', 'E', 'h', 'H', 'N', 'V':
		return nil, p.refuse("escape \\"+string(c), "dialects differ in its meaning")
	}
	if i := strings.IndexRune("t\tn\nr\rf\fv\va\a", c); i >= 0 && i%2 == 0 && c >= 'a' {
		return charset.Single(rune("t\tn\nr\rf\fv\va\a"[i+1])), nil
	}
	switch {
	case c >= '1' && c <= '9':
		return nil, p.refuse("backreference \\"+string(c), "an automaton cannot remember what a group matched")
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		return nil, p.fail("read an escape: unknown escape \\%c", c)
	}
	return charset.Single(c), nil
}

// hex reads what follows \x, \u or \U: braces, or 2, 4 or 8 digits; two \u may be a
// pair of surrogates.
func (p *parser) hex(c rune) (rune, error) {
	width := map[rune]int{'x': 2, 'u': 4, 'U': 8}[c]
	if p.has("{") {
		end := strings.IndexByte(p.text[p.at:], '}')
		if end < 2 || end > 9 {
			return 0, p.fail("read an escape: want hexadecimal digits and } after \\%c{", c)
		}
		return p.number(p.at+1, end-1, end+1)
	}
	r, err := p.number(p.at, width, width)
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if p.take(`\u`) {
		low, err := p.number(p.at, 4, 4)
		if err != nil {
			return 0, err
		}
		if pair := utf16.DecodeRune(r, low); pair != unicode.ReplacementChar {
			return pair, nil
		}
	}
	return 0, p.fail("read an escape: U+%04X is not a character", r)
}

// number reads digits at start and moves on by skip.
func (p *parser) number(start, width, skip int) (rune, error) {
	if start+width > len(p.text) {
		return 0, p.fail("read an escape: want %d hexadecimal digits", width)
	}
	n, err := strconv.ParseUint(p.text[start:start+width], 16, 32)
	if err != nil {
		return 0, p.fail("read an escape: want %d hexadecimal digits", width)
	}
	p.at += skip
	if n > charset.MaxRune || skip > 4 && n >= 0xD800 && n <= 0xDFFF {
		return 0, p.fail("read an escape: U+%04X is not a character", n)
	}
	return rune(n), nil
}

// property reads what follows \p: a category, a script or a binary property of
// Unicode by its name, with gc=, sc= or script= before it where it has them.
func (p *parser) property(negated bool) (charset.Set, error) {
	name := ""
	switch {
	case p.has("{"):
		end := strings.IndexByte(p.text[p.at:], '}')
		if end < 0 {
			return nil, p.fail("read a property: } is missing")
		}
		name = p.text[p.at+1 : p.at+end]
		p.at += end + 1
	case p.at < len(p.text):
		name = string(p.rune())
	}
	if rest, ok := strings.CutPrefix(name, "^"); ok {
		name, negated = rest, !negated
	}
	find := propertySet
	if p.dialect == Oniguruma {
		find = unicodeProperty
	}
	set, ok := find(name)
	if !ok {
		return nil, p.refuse(`property \p{`+name+"}", "unknown property")
	}
	if negated {
		set = set.Negate()
	}
	return set, nil
}

func propertySet(name string) (charset.Set, bool) {
	kind, value, ok := strings.Cut(name, "=")
	if !ok {
		kind, value = "", name
	}
	long := map[string]string{
		"Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Titlecase_Letter": "Lt",
		"Modifier_Letter": "Lm",
		"Other_Letter":    "Lo", "Mark": "M", "Number": "N", "Decimal_Number": "Nd", "Letter_Number": "Nl",
		"Other_Number": "No",
		"Punctuation":  "P", "punct": "P", "Symbol": "S", "Math_Symbol": "Sm", "Currency_Symbol": "Sc",
		"Separator":       "Z",
		"Space_Separator": "Zs", "Control": "Cc", "Format": "Cf", "digit": "Nd", "Connector_Punctuation": "Pc",
		"Dash_Punctuation": "Pd", "Open_Punctuation": "Ps", "Close_Punctuation": "Pe",
	}
	if short, ok := long[value]; ok {
		value = short
	}
	if kind == "" || kind == "gc" || kind == "General_Category" {
		switch value {
		case "Any", "Assigned", "ASCII", "Alphabetic", "Alpha":
			if kind != "" {
				return nil, false
			}
		}
		switch value {
		case "Any":
			return charset.Any(), true
		case "ASCII":
			return charset.Set{{Lo: 0, Hi: 0x7F}}, true
		case "Alphabetic", "Alpha":
			return charset.FromTable(unicode.L).Union(charset.FromTable(unicode.Nl)).Union(
				charset.FromTable(unicode.Other_Alphabetic)), true
		}
		if t, ok := unicode.Categories[value]; ok {
			return charset.FromTable(t).Intersect(charset.Any()), true
		}
		if kind != "" {
			return nil, false
		}
	}
	if kind == "" || kind == "sc" || kind == "script" || kind == "Script" {
		if t, ok := unicode.Scripts[value]; ok {
			return charset.FromTable(t), true
		}
	}
	if kind == "" {
		if t, ok := unicode.Properties[value]; ok {
			return charset.FromTable(t), true
		}
	}
	return nil, false
}
