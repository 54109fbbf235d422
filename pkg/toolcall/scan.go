package toolcall

import (
	"fmt"
	"strings"
)

const maxDepth = 200 // of brackets in arguments

// scan follows one JSON value to its end.
type scan struct {
	open    []byte // open brackets
	quoted  bool
	escaped bool
	scalar  bool // a number or a word: it ends where another token begins
	begun   bool
}

// feed consumes what it can of s and returns it, with control characters inside strings
// escaped. ok is false if s is not JSON.
func (c *scan) feed(s string) (text string, n int, done, ok bool) {
	var b strings.Builder
	for n < len(s) {
		ch := s[n]
		switch {
		case c.quoted && ch < ' ':
			if c.escaped { // a backslash at the end of a line
				return b.String(), n, false, false
			}
			fmt.Fprintf(&b, `\u%04x`, ch)
			n++
			continue
		case c.escaped:
			c.escaped = false
		case c.quoted && ch == '\\':
			c.escaped = true
		case c.quoted:
			c.quoted = ch != '"'
			if !c.quoted && len(c.open) == 0 {
				b.WriteByte(ch)
				return b.String(), n + 1, true, true
			}
		case c.scalar && strings.IndexByte(" \t\r\n,]}", ch) >= 0:
			return b.String(), n, true, true
		case ch == '"':
			if c.scalar {
				return b.String(), n, false, false
			}
			c.quoted = true
		case ch == '{' || ch == '[':
			if c.scalar || len(c.open) >= maxDepth {
				return b.String(), n, false, false
			}
			c.open = append(c.open, ch+2) // the matching closing bracket
		case ch == '}' || ch == ']':
			if len(c.open) == 0 || c.open[len(c.open)-1] != ch {
				return b.String(), n, false, false
			}
			c.open = c.open[:len(c.open)-1]
			if len(c.open) == 0 {
				b.WriteByte(ch)
				return b.String(), n + 1, true, true
			}
		case len(c.open) == 0 && !c.scalar:
			if c.begun || strings.IndexByte("-0123456789tfnNTF", ch) < 0 {
				return b.String(), n, false, false
			}
			c.scalar = true
		}
		c.begun = true
		b.WriteByte(ch)
		n++
	}
	return b.String(), n, false, true
}

// quotedEnd returns the end of the string at the beginning of s, after its closing quote;
// 0 if it has not ended.
func quotedEnd(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 0
}
