package template

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// escape replaces HTML markup characters and marks the result safe. As in Python's Markup,
// text that "+", "%" or a method adds to a safe string is escaped too.
func (s *state) escape(t str) (str, error) {
	if t.safe {
		return t, nil
	}
	if err := s.alloc(6 * len(t.s)); err != nil {
		return str{}, err
	}
	out := t.like(strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;").Replace(t.s))
	out.safe = true
	return out, nil
}

// plain returns t without the safe mark.
func (t str) plain() str {
	t.safe = false
	return t
}

// add implements "+" on strings.
func (s *state) add(x, y str) (Value, error) {
	safe := x.safe || y.safe
	if safe {
		var err error
		if x, err = s.escape(x); err != nil {
			return nil, err
		}
		if y, err = s.escape(y); err != nil {
			return nil, err
		}
	}
	out, err := s.concat(x, y)
	out.safe = safe
	return out, err
}

// stripTags removes HTML comments and tags and collapses white space.
func stripTags(x string) string {
	var b strings.Builder
	for x != "" {
		i := strings.IndexByte(x, '<')
		if i < 0 {
			break
		}
		end, mark := -1, ">"
		if strings.HasPrefix(x[i:], "<!--") {
			mark = "-->"
			if j := strings.Index(x[i+4:], mark); j >= 0 {
				end = i + 4 + j
			}
		} else if j := strings.Index(x[i:], mark); j >= 0 {
			end = i + j
		}
		if end < 0 {
			break
		}
		b.WriteString(x[:i])
		x = x[end+len(mark):]
	}
	b.WriteString(x)
	plain := strings.Join(strings.FieldsFunc(b.String(), isSpace), " ")
	return strings.NewReplacer("&amp;", "&", "&lt;", "<", "&gt;", ">", "&#34;", `"`, "&quot;", `"`, "&#39;",
		"'").Replace(plain)
}

// asciiOnly escapes other characters as Python's ascii() does.
func asciiOnly(x string) string {
	var b strings.Builder
	for _, r := range x {
		switch {
		case r < utf8.RuneSelf:
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	return b.String()
}
