package template

import (
	"strings"
	"unicode/utf8"
)

// str is a string that records which of its bytes are data.
type str struct {
	s    string
	data [][2]int // ranges [start, end) in order and disjoint
	safe bool     // marked by the filters safe and escape
}

// userText returns a string that is all data.
func userText(s string) str {
	if s == "" {
		return str{}
	}
	return str{s: s, data: [][2]int{{0, len(s)}}}
}

// Trusted returns a string that counts as the template's own text, so that control tokens in it
// are encoded as such. The spelling of the begin-of-text token is an example.
func Trusted(s string) Value { return str{s: s} }

// cut returns s[from:to] with its marks.
func (t str) cut(from, to int) str {
	out := str{s: t.s[from:to], safe: t.safe}
	for _, r := range t.data {
		if a, b := max(r[0], from), min(r[1], to); a < b {
			out.data = append(out.data, [2]int{a - from, b - from})
		}
	}
	return out
}

// like returns a rewritten string: all data if any byte of t was.
func (t str) like(s string) str {
	out := str{s: s, safe: t.safe}
	if len(t.data) > 0 && s != "" {
		out.data = [][2]int{{0, len(s)}}
	}
	return out
}

// marked builds a string with its marks.
type marked struct {
	b    strings.Builder
	data [][2]int
}

func (m *marked) len() int { return m.b.Len() }

// add appends the template's own text.
func (m *marked) add(s string) { m.b.WriteString(s) }

// addData appends data.
func (m *marked) addData(s string) {
	if s == "" {
		return
	}
	m.mark(m.b.Len(), m.b.Len()+len(s))
	m.b.WriteString(s)
}

// addLike appends text rewritten from t.
func (m *marked) addLike(s string, t str) {
	if len(t.data) > 0 {
		m.addData(s)
	} else {
		m.add(s)
	}
}

// addStr appends a string with its marks.
func (m *marked) addStr(t str) {
	at := m.b.Len()
	for _, r := range t.data {
		m.mark(at+r[0], at+r[1])
	}
	m.b.WriteString(t.s)
}

func (m *marked) mark(from, to int) {
	if n := len(m.data); n > 0 && m.data[n-1][1] == from {
		m.data[n-1][1] = to
		return
	}
	m.data = append(m.data, [2]int{from, to})
}

func (m *marked) str() str { return str{s: m.b.String(), data: m.data} }

// trim removes characters for which in is true from the ends.
func (t str) trim(in func(rune) bool, left, right bool) str {
	from, to := 0, len(t.s)
	if left {
		from = len(t.s) - len(strings.TrimLeftFunc(t.s, in))
	}
	if right {
		to = max(from, len(strings.TrimRightFunc(t.s, in)))
	}
	return t.cut(from, to)
}

// replace replaces the first n occurrences of old (all if n < 0).
func (t str) replace(old, with str, n int) str {
	var m marked
	at := 0
	if old.s == "" {
		for ; n != 0; n-- {
			m.addStr(with)
			if at == len(t.s) {
				break
			}
			_, w := utf8.DecodeRuneInString(t.s[at:])
			m.addStr(t.cut(at, at+w))
			at += w
		}
		m.addStr(t.cut(at, len(t.s)))
		return m.str()
	}
	for ; n != 0; n-- {
		i := strings.Index(t.s[at:], old.s)
		if i < 0 {
			break
		}
		m.addStr(t.cut(at, at+i))
		m.addStr(with)
		at += i + len(old.s)
	}
	m.addStr(t.cut(at, len(t.s)))
	return m.str()
}

// split splits at a separator, at most n times if n >= 0.
func (t str) split(sep string, n int) []Value {
	var out []Value
	at := 0
	for ; n != 0; n-- {
		i := strings.Index(t.s[at:], sep)
		if i < 0 {
			break
		}
		out = append(out, t.cut(at, at+i))
		at += i + len(sep)
	}
	return append(out, t.cut(at, len(t.s)))
}

// splitRight is like split, from the end.
func (t str) splitRight(sep string, n int) []Value {
	var out []Value
	to := len(t.s)
	for ; n != 0; n-- {
		i := strings.LastIndex(t.s[:to], sep)
		if i < 0 {
			break
		}
		out = append(out, t.cut(i+len(sep), to))
		to = i
	}
	out = append(out, t.cut(0, to))
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// fields splits at white space, at most n times if n >= 0.
func (t str) fields(n int) []Value {
	out := []Value{}
	at := 0
	skip := func() {
		at = len(t.s) - len(strings.TrimLeftFunc(t.s[at:], isSpace))
	}
	for skip(); at < len(t.s); skip() {
		if n == 0 {
			return append(out, t.cut(at, len(t.s)))
		}
		end := len(t.s)
		if i := strings.IndexFunc(t.s[at:], isSpace); i >= 0 {
			end = at + i
		}
		out = append(out, t.cut(at, end))
		at = end
		n--
	}
	return out
}

// fieldsRight is like fields, from the end, and splits at most n times.
func (t str) fieldsRight(n int) []Value {
	out := []Value{}
	for to := len(t.s); ; n-- {
		to = len(strings.TrimRightFunc(t.s[:to], isSpace))
		if to == 0 {
			break
		}
		if n == 0 {
			out = append(out, t.cut(0, to))
			break
		}
		from := 0
		if i := strings.LastIndexFunc(t.s[:to], isSpace); i >= 0 {
			_, w := utf8.DecodeRuneInString(t.s[i:])
			from = i + w
		}
		out = append(out, t.cut(from, to))
		to = from
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}
