package grammar

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
)

// escaped reads an escape outside a class.
func (p *reParser) escaped() (*re, error) {
	for _, a := range []struct {
		text string
		op   reOp
	}{{`\A`, reBegin}, {`\z`, reEnd}, {`\b`, reWord}, {`\B`, reNoWord}} {
		if p.take(a.text) {
			return reNode(&re{op: a.op}), nil
		}
	}
	set, err := p.escape(false)
	if err != nil {
		return nil, err
	}
	return p.char(set), nil
}

// class reads a bracket expression, cases folded where the flag says so.
func (p *reParser) class() (runeSet, error) {
	p.at++
	negated := p.take("^")
	if p.has("]") {
		return nil, p.refuse("class [] or [^] without a member", "ECMA-262 and RE2 read it differently")
	}
	var spans, also []span // also is what a dialect may count as well
	for {
		if p.at >= len(p.text) {
			return nil, p.fail("end a class: its ] is missing")
		}
		if p.take("]") {
			break
		}
		switch {
		case p.ecma: // one dialect alone: nothing is in doubt
		case p.has(`\s`):
			also = append(also, reNotSpace.negate()...)
		case p.has(`\S`):
			also = append(also, reSpace.negate()...)
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
			if lo, ok := low.single(); ok {
				if hi, ok := high.single(); ok {
					if hi < lo {
						return nil, p.fail("read range %q-%q: its ends are the wrong way round", lo, hi)
					}
					spans = append(spans, span{lo, hi})
					continue
				}
			}
			p.at = at + 1 // a bar beside a set is itself
			spans = append(spans, span{'-', '-'})
		}
		spans = append(spans, low...)
	}
	if negated {
		spans = append(spans, also...)
	}
	set := newRuneSet(spans...)
	if p.fold {
		set = set.fold()
	}
	if negated {
		set = set.negate()
	}
	return set, nil
}

// single is the only character of s.
func (s runeSet) single() (rune, bool) {
	if len(s) == 1 && s[0].lo == s[0].hi {
		return s[0].lo, true
	}
	return 0, false
}

func (p *reParser) member() (runeSet, error) {
	switch {
	case p.at >= len(p.text):
		return nil, p.fail("end a class: its ] is missing")
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
					set = set.negate()
				}
				return set, nil
			}
		}
	}
	return oneRune(p.rune()), nil
}

func posixClass(name string) (runeSet, bool) {
	switch name {
	case "alnum":
		return newRuneSet(span{'0', '9'}, span{'A', 'Z'}, span{'a', 'z'}), true
	case "alpha":
		return newRuneSet(span{'A', 'Z'}, span{'a', 'z'}), true
	case "ascii":
		return newRuneSet(span{0, 0x7F}), true
	case "blank":
		return newRuneSet(span{'\t', '\t'}, span{' ', ' '}), true
	case "cntrl":
		return newRuneSet(span{0, 0x1F}, span{0x7F, 0x7F}), true
	case "digit":
		return reDigit, true
	case "graph":
		return newRuneSet(span{'!', '~'}), true
	case "lower":
		return newRuneSet(span{'a', 'z'}), true
	case "print":
		return newRuneSet(span{' ', '~'}), true
	case "punct":
		return newRuneSet(span{'!', '/'}, span{':', '@'}, span{'[', '`'}, span{'{', '~'}), true
	case "space":
		return newRuneSet(span{'\t', '\r'}, span{' ', ' '}), true
	case "upper":
		return newRuneSet(span{'A', 'Z'}), true
	case "word":
		return reWords, true
	case "xdigit":
		return newRuneSet(span{'0', '9'}, span{'A', 'F'}, span{'a', 'f'}), true
	}
	return nil, false
}

// escape reads a backslash and what follows it.
func (p *reParser) escape(inClass bool) (runeSet, error) {
	p.at++
	if p.at >= len(p.text) {
		return nil, p.fail("read an escape: the text ends after \\")
	}
	c := p.rune()
	switch c {
	case 'd':
		return reDigit, nil
	case 'D':
		return reDigit.negate(), nil
	case 'w':
		return reWords, nil
	case 'W':
		return reWords.negate(), nil
	case 's':
		if p.ecma {
			return reNotSpace.negate(), nil
		}
		return reSpace, nil
	case 'S':
		return reNotSpace, nil
	case 'p', 'P':
		return p.property(c == 'P')
	case 'x', 'u', 'U':
		r, err := p.hex(c)
		return oneRune(r), err
	case 'c':
		if p.at < len(p.text) {
			if l := p.text[p.at] | 0x20; l >= 'a' && l <= 'z' {
				p.at++
				return oneRune(rune(l & 0x1F)), nil
			}
		}
		return nil, p.fail("read an escape: \\c wants a letter")
	case '0':
		if p.at < len(p.text) && p.text[p.at] >= '0' && p.text[p.at] <= '9' {
			return nil, p.refuse("octal escape", "the dialects differ on it")
		}
		return oneRune(0), nil
	case 'b':
		if inClass {
			return oneRune('\b'), nil
		}
	case 'k':
		return nil, p.refuse("backreference \\k", "no automaton remembers what a group has matched")
	case 'Z', 'G', 'K', 'R', 'X', 'C', 'Q', 'E', 'h', 'H', 'N', 'V':
		return nil, p.refuse("escape \\"+string(c), "the dialects differ on it")
	}
	if i := strings.IndexRune("t\tn\nr\rf\fv\va\a", c); i >= 0 && i%2 == 0 && c >= 'a' {
		return oneRune(rune("t\tn\nr\rf\fv\va\a"[i+1])), nil
	}
	switch {
	case c >= '1' && c <= '9':
		return nil, p.refuse("backreference \\"+string(c), "no automaton remembers what a group has matched")
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		return nil, p.fail("read an escape: \\%c is none", c)
	}
	return oneRune(c), nil
}

// hex reads what follows \x, \u or \U: braces, or 2, 4 or 8 digits; two \u may be a
// pair of surrogates.
func (p *reParser) hex(c rune) (rune, error) {
	width := map[rune]int{'x': 2, 'u': 4, 'U': 8}[c]
	if p.has("{") {
		end := strings.IndexByte(p.text[p.at:], '}')
		if end < 2 || end > 9 {
			return 0, p.fail("read an escape: \\%c{ wants hexadecimal digits and }", c)
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
	return 0, p.fail("read an escape: U+%04X is no character", r)
}

// number reads digits at start and moves on by skip.
func (p *reParser) number(start, width, skip int) (rune, error) {
	if start+width > len(p.text) {
		return 0, p.fail("read an escape: want %d hexadecimal digits", width)
	}
	n, err := strconv.ParseUint(p.text[start:start+width], 16, 32)
	if err != nil {
		return 0, p.fail("read an escape: want %d hexadecimal digits", width)
	}
	p.at += skip
	if n > maxRune || skip > 4 && n >= 0xD800 && n <= 0xDFFF {
		return 0, p.fail("read an escape: U+%04X is no character", n)
	}
	return rune(n), nil
}

// property reads what follows \p: a category, a script or a binary property of
// Unicode by its name, with gc=, sc= or script= before it where it has them.
func (p *reParser) property(negated bool) (runeSet, error) {
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
	set, ok := propertySet(name)
	if !ok {
		return nil, p.refuse(`property \p{`+name+"}", "it is not known here")
	}
	if negated {
		set = set.negate()
	}
	return set, nil
}

func propertySet(name string) (runeSet, bool) {
	kind, value, ok := strings.Cut(name, "=")
	if !ok {
		kind, value = "", name
	}
	long := map[string]string{
		"Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Titlecase_Letter": "Lt", "Modifier_Letter": "Lm",
		"Other_Letter": "Lo", "Mark": "M", "Number": "N", "Decimal_Number": "Nd", "Letter_Number": "Nl", "Other_Number": "No",
		"Punctuation": "P", "punct": "P", "Symbol": "S", "Math_Symbol": "Sm", "Currency_Symbol": "Sc", "Separator": "Z",
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
			return anyRune(), true
		case "ASCII":
			return runeSet{{0, 0x7F}}, true
		case "Alphabetic", "Alpha":
			return fromTable(unicode.L).union(fromTable(unicode.Nl)).union(fromTable(unicode.Other_Alphabetic)), true
		}
		if t, ok := unicode.Categories[value]; ok {
			return fromTable(t).intersect(anyRune()), true
		}
		if kind != "" {
			return nil, false
		}
	}
	if kind == "" || kind == "sc" || kind == "script" || kind == "Script" {
		if t, ok := unicode.Scripts[value]; ok {
			return fromTable(t), true
		}
	}
	if kind == "" {
		if t, ok := unicode.Properties[value]; ok {
			return fromTable(t), true
		}
	}
	return nil, false
}
