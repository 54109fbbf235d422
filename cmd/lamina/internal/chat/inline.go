package chat

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// inline shows what is decided of a line's text, and returns the rest. whole says that the line has no more.
//
// A marker is decided when its end has come, or when there is none in the next bytes (hold) or on the line. Only these
// bytes are looked at, so the decision does not depend on how much has arrived.
func (m *Markdown) inline(s string, st style, whole bool) (rest string) {
	for s != "" {
		at := strings.IndexAny(s, "\\`*_~[")
		if at < 0 {
			m.emit(s, st)
			return ""
		}
		m.emit(s[:at], st)
		s = s[at:]
		near := s[:min(len(s), hold)]
		known := whole || len(s) >= hold
		used, ok := m.marked(near, st, known)
		if !ok {
			return s
		}
		s = s[used:]
	}
	return ""
}

// marked shows the marker at the beginning of a text, with what it encloses, and returns how many bytes that was. ok is
// false while more of the text is needed. known says that near is all that counts.
func (m *Markdown) marked(near string, st style, known bool) (used int, ok bool) {
	literal := func(n int) (int, bool) {
		m.emit(near[:n], st)
		return n, true
	}
	switch near[0] {
	case '\\':
		if len(near) < 2 {
			if !known {
				return 0, false
			}
			return literal(1)
		}
		if strings.IndexByte("\\`*_{}[]()#+-.!~|<>", near[1]) < 0 {
			return literal(1)
		}
		m.emit(near[1:2], st)
		return 2, true
	case '[':
		return m.link(near, st, known)
	}
	n := run(near)
	if n == len(near) && !known {
		return 0, false
	}
	if near[0] == '`' {
		at, found := closing(near, n, known, func(string, int) bool { return true })
		switch {
		case found:
			inner := near[n:at]
			if t := strings.TrimSpace(inner); t != "" && len(inner)-len(t) == 2 && inner[0] == ' ' {
				inner = t // a space at both ends sets backticks off
			}
			m.emit(inner, st|mono)
			return at + n, true
		case !known:
			return 0, false
		}
		return literal(n)
	}
	kinds := map[string]style{"*": italic, "_": italic, "**": bold, "__": bold, "***": bold | italic, "~~": strike}
	kind, is := kinds[near[:n]]
	if !is || n == len(near) || !m.opens(near, n) {
		return literal(n)
	}
	at, found := closing(near, n, known, func(s string, at int) bool {
		before, _ := utf8.DecodeLastRuneInString(s[:at])
		after, size := utf8.DecodeRuneInString(s[at+n:])
		return !unicode.IsSpace(before) && (s[0] != '_' || size == 0 || !letter(after))
	})
	switch {
	case found:
		m.inline(near[n:at], st|kind, true)
		return at + n, true
	case !known:
		return 0, false
	}
	return literal(n)
}

// opens reports whether a marker of n bytes can begin something: text follows, and _ is not inside a word.
func (m *Markdown) opens(s string, n int) bool {
	after, _ := utf8.DecodeRuneInString(s[n:])
	return !unicode.IsSpace(after) && (s[0] != '_' || !letter(m.before))
}

func letter(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// closing returns where the marker of n bytes at the beginning of a text ends: the next run of the same length that
// fits. A run that the text ends with may go on, unless known says that nothing counts behind it. Code is skipped.
func closing(s string, n int, known bool, fits func(s string, at int) bool) (at int, found bool) {
	for at := n; at < len(s); {
		length := 1
		if s[at] == s[0] || s[at] == '`' {
			length = run(s[at:])
		}
		if at+length == len(s) && !known {
			return 0, false
		}
		switch {
		case s[at] == s[0] && length == n && at > n && fits(s, at):
			return at, true
		case s[at] == '`' && s[0] != '`':
			end := strings.Index(s[at+length:], s[at:at+length])
			if end < 0 && !known {
				return 0, false
			}
			if end >= 0 {
				length += end + length
			}
		}
		at += length
	}
	return 0, false
}

// link shows [text](address) as its text with the address behind it.
func (m *Markdown) link(near string, st style, known bool) (used int, ok bool) {
	inner := strings.IndexAny(near[1:], "[]") + 1
	isLink := inner > 0 && near[inner] == ']' && strings.HasPrefix(near[inner+1:], "(")
	end := -1
	if isLink {
		end = strings.IndexAny(near[inner:], ") ")
		isLink = end < 0 || near[inner+end] == ')' // an address has no spaces
	}
	switch {
	case isLink && end > 0:
		title, address := near[1:inner], near[inner+2:inner+end]
		m.inline(title, st|underline, true)
		if address != "" && address != title {
			m.emit(" ("+address+")", st|dim)
		}
		return inner + end + 1, true
	case !known && (isLink || inner == 0 || inner+1 == len(near) && near[inner] == ']'):
		return 0, false
	}
	m.emit("[", st)
	return 1, true
}

func (m *Markdown) emit(s string, st style) {
	if s == "" {
		return
	}
	m.before, _ = utf8.DecodeLastRuneInString(s)
	m.lines.add(s, st)
}
