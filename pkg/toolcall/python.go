package toolcall

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// pyLexer reads Python literals and writes JSON.
type pyLexer struct {
	s  string
	at int
}

func (l *pyLexer) space() {
	for l.at < len(l.s) && strings.IndexByte(white, l.s[l.at]) >= 0 {
		l.at++
	}
}

func (l *pyLexer) take(c byte) bool {
	l.space()
	if l.at < len(l.s) && l.s[l.at] == c {
		l.at++
		return true
	}
	return false
}

// word reads an identifier.
func (l *pyLexer) word() string {
	l.space()
	from := l.at
	for l.at < len(l.s) && (l.s[l.at] == '_' || l.s[l.at] >= utf8.RuneSelf || isAlnum(l.s[l.at])) {
		l.at++
	}
	return l.s[from:l.at]
}

func isAlnum(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' }

// value reads one literal.
func (l *pyLexer) value(depth int) (string, bool) {
	l.space()
	if l.at >= len(l.s) || depth > maxDepth {
		return "", false
	}
	switch c := l.s[l.at]; {
	case c == '\'' || c == '"':
		s, ok := l.text()
		for ok { // adjacent strings are one string
			l.space()
			if l.at >= len(l.s) || l.s[l.at] != '\'' && l.s[l.at] != '"' {
				break
			}
			var more string
			more, ok = l.text()
			s += more
		}
		return marshal(s), ok
	case c == '[' || c == '(':
		l.at++
		return l.items(map[byte]byte{'[': ']', '(': ')'}[c], depth)
	case c == '{':
		l.at++
		return l.mapping(depth)
	case c == '-' || c == '+' || c == '.' || c >= '0' && c <= '9':
		return l.number()
	}
	switch l.word() {
	case "True", "true":
		return "true", true
	case "False", "false":
		return "false", true
	case "None", "null":
		return "null", true
	}
	return "", false
}

func (l *pyLexer) number() (string, bool) {
	from := l.at
	for l.at < len(l.s) && (strings.IndexByte("+-._", l.s[l.at]) >= 0 || isAlnum(l.s[l.at])) {
		l.at++
	}
	t := strings.TrimPrefix(strings.ReplaceAll(l.s[from:l.at], "_", ""), "+")
	if i, err := strconv.ParseInt(t, 0, 64); err == nil && (len(t) < 2 || t[0] != '0') {
		return strconv.FormatInt(i, 10), true
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || f-f != 0 {
		return "", false
	}
	if isJSONNumber(t) {
		return t, true
	}
	return strconv.FormatFloat(f, 'g', -1, 64), true
}

func isJSONNumber(t string) bool {
	v, ok := strings.CutPrefix(t, "-")
	digits := strings.Trim(v, "0123456789.eE+-") == ""
	return (ok || v != "") && digits && v[0] != '.' && v[len(v)-1] != '.' &&
		(v[0] != '0' || len(v) == 1 || v[1] == '.' || v[1]|0x20 == 'e') &&
		!strings.Contains(v, ".e") && !strings.Contains(v, ".E")
}

func (l *pyLexer) items(end byte, depth int) (string, bool) {
	var b strings.Builder
	b.WriteByte('[')
	for n := 0; ; n++ {
		if l.take(end) {
			b.WriteByte(']')
			return b.String(), true
		}
		if n > 0 {
			if !l.take(',') {
				return "", false
			}
			if l.take(end) {
				b.WriteByte(']')
				return b.String(), true
			}
			b.WriteString(", ")
		}
		v, ok := l.value(depth + 1)
		if !ok {
			return "", false
		}
		b.WriteString(v)
	}
}

func (l *pyLexer) mapping(depth int) (string, bool) {
	var b strings.Builder
	b.WriteByte('{')
	for n := 0; ; n++ {
		if l.take('}') {
			b.WriteByte('}')
			return b.String(), true
		}
		if n > 0 {
			if !l.take(',') {
				return "", false
			}
			if l.take('}') {
				b.WriteByte('}')
				return b.String(), true
			}
			b.WriteString(", ")
		}
		k, ok := l.value(depth + 1)
		if !ok || !l.take(':') {
			return "", false
		}
		v, ok := l.value(depth + 1)
		if !ok {
			return "", false
		}
		if k[0] != '"' {
			k = marshal(k)
		}
		b.WriteString(k + ": " + v)
	}
}

// text reads a string with its escapes; three quotes allow line breaks.
func (l *pyLexer) text() (string, bool) {
	quote := l.s[l.at : l.at+1]
	if strings.HasPrefix(l.s[l.at:], strings.Repeat(quote, 3)) {
		quote = strings.Repeat(quote, 3)
	}
	l.at += len(quote)
	var b strings.Builder
	for l.at < len(l.s) {
		if strings.HasPrefix(l.s[l.at:], quote) {
			l.at += len(quote)
			return b.String(), true
		}
		c := l.s[l.at]
		l.at++
		if c != '\\' || l.at >= len(l.s) {
			b.WriteByte(c)
			continue
		}
		c = l.s[l.at]
		l.at++
		switch c {
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case 'b':
			b.WriteByte('\b')
		case 'f':
			b.WriteByte('\f')
		case '\n':
		case '\\', '\'', '"', '/':
			b.WriteByte(c)
		case 'x', 'u', 'U':
			l.code(&b, c)
		default:
			b.WriteByte('\\')
			b.WriteByte(c)
		}
	}
	return "", false
}

// code reads the digits of \x, \u and \U. Two escapes that form a surrogate pair, as JSON
// writes them, are joined into one character.
func (l *pyLexer) code(b *strings.Builder, c byte) {
	width := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
	digits := func(at int) (rune, bool) {
		if at+width > len(l.s) {
			return 0, false
		}
		n, err := strconv.ParseUint(l.s[at:at+width], 16, 32)
		return rune(n), err == nil
	}
	r, ok := digits(l.at)
	if !ok {
		b.WriteByte('\\')
		b.WriteByte(c)
		return
	}
	l.at += width
	if r >= 0xd800 && r < 0xdc00 && strings.HasPrefix(l.s[l.at:], `\u`) {
		if low, ok := digits(l.at + 2); ok && low >= 0xdc00 && low < 0xe000 {
			l.at += 2 + width
			r = 0x10000 + (r-0xd800)<<10 + low - 0xdc00
		}
	}
	b.WriteRune(r)
}
