package template

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// urlQuote percent-encodes a text for a URL; in form encoding a space becomes "+" and a
// slash is encoded too.
func urlQuote(x string, form bool) string {
	var b strings.Builder
	for _, c := range []byte(x) {
		switch {
		case c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || strings.IndexByte("_.-~", c) >= 0 ||
			c == '/' && !form:
			b.WriteByte(c)
		case c == ' ' && form:
			b.WriteByte('+')
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// urlQuery encodes a mapping as the query of a URL.
func (s *state) urlQuery(m *Map) (Value, error) {
	var out marked
	for i, k := range m.keys {
		if i > 0 {
			out.add("&")
		}
		for j, v := range []Value{k, m.vals[i]} {
			t, err := s.text(v)
			if err == nil {
				err = s.alloc(3*len(t.s) + 16)
			}
			if err != nil {
				return nil, err
			}
			if j > 0 {
				out.add("=")
			}
			out.addLike(urlQuote(t.s, true), t)
		}
	}
	return out.str(), nil
}

// wordwrap breaks lines at spaces so that no line is longer than the width.
func (s *state) wordwrap(t str, a args) (Value, error) {
	width, ok := count(a.get(0, "width", int64(79)))
	if !ok || width == 0 {
		return nil, s.fail("wordwrap needs a width")
	}
	long := truth(a.get(1, "break_long_words", true))
	end := str{s: "\n"}
	if e, ok := a.get(2, "wrapstring", nil).(str); ok {
		end = e
	}
	hyphens := truth(a.get(3, "break_on_hyphens", true))
	if err := s.alloc((len(t.s) + 1) * (len(end.s) + 8)); err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.SplitSeq(strings.ReplaceAll(t.s, "\r\n", "\n"), "\n") {
		lines = append(lines, strings.Join(wrapLine(line, width, long, hyphens), end.s))
	}
	if n := len(lines); n > 1 && lines[n-1] == "" {
		lines = lines[:n-1]
	}
	return t.like(strings.Join(lines, end.s)), nil
}

// wrapLine fills lines with the words of a line; spaces at a line's end are dropped.
func wrapLine(line string, width int, long, hyphens bool) []string {
	var out []string
	current, size := "", 0
	flush := func() {
		current = strings.TrimRight(current, " \t")
		if current != "" {
			out = append(out, current)
		}
		current, size = "", 0
	}
	for _, word := range chunks(line, hyphens) {
		n := utf8.RuneCountInString(word)
		space := strings.TrimLeft(word, " \t") == ""
		if size+n > width && size > 0 && (!long || n <= width || space) {
			flush()
		}
		if space && size == 0 && len(out) > 0 {
			continue
		}
		for long && n > width && !space {
			if size >= width {
				flush()
			}
			cut := offset(word, width-size)
			current += word[:cut]
			word = word[cut:]
			n = utf8.RuneCountInString(word)
			flush()
		}
		current += word
		size += n
	}
	flush()
	return out
}

// chunks splits a line into words and the white space between them.
func chunks(line string, hyphens bool) []string {
	var out []string
	for at := 0; at < len(line); {
		end := at + 1
		space := line[at] == ' ' || line[at] == '\t'
		for end < len(line) && (line[end] == ' ' || line[end] == '\t') == space {
			end++
			if hyphens && !space && line[end-1] == '-' && end-at > 2 && end < len(line) && letter(line[end-2]) &&
				letter(line[end]) {
				break
			}
		}
		out = append(out, line[at:end])
		at = end
	}
	return out
}

func letter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= 0x80 }

// fileSize formats a number of bytes with a unit.
func (s *state) fileSize(v Value, a args) (Value, error) {
	f, err := s.toFloat(v, args{})
	if err != nil {
		return nil, err
	}
	n, _, _ := number(f)
	base, units := 1000.0, []string{"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"}
	if truth(a.get(0, "binary", false)) {
		base, units = 1024, []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}
	}
	switch {
	case n == 1:
		return str{s: "1 Byte"}, nil
	case n < base:
		return str{s: fmt.Sprintf("%d Bytes", int64(n))}, nil
	}
	unit := base
	for _, name := range units[:len(units)-1] {
		if n < unit*base {
			return str{s: fmt.Sprintf("%.1f %s", n/unit, name)}, nil
		}
		unit *= base
	}
	return str{s: fmt.Sprintf("%.1f %s", n/unit, units[len(units)-1])}, nil
}

// xmlAttributes formats a mapping as the attributes of an element.
func (s *state) xmlAttributes(v Value, a args) (Value, error) {
	m, ok := v.(*Map)
	if !ok {
		return nil, s.fail("xmlattr needs a mapping, not %s", typeName(v))
	}
	var out marked
	for i, k := range m.keys {
		if _, missing := m.vals[i].(undefined); missing || m.vals[i] == nil {
			continue
		}
		if out.len() > 0 || truth(a.get(0, "autospace", true)) {
			out.add(" ")
		}
		for j, part := range []Value{k, m.vals[i]} {
			t, err := s.text(part)
			if err != nil {
				return nil, err
			}
			if j == 0 && strings.ContainsAny(t.s, " \t\n\f\r/>=") {
				return nil, s.fail("xmlattr cannot write the name %q", t.s)
			}
			if t, err = s.escape(t); err != nil {
				return nil, err
			}
			out.addStr(t)
			if j == 0 {
				out.add(`="`)
			}
		}
		out.add(`"`)
	}
	return out.str(), nil
}
