package chat

import (
	"io"
	"strings"
	"unicode/utf8"
)

// hold is how many bytes of a line are held back at most while it is not known whether a marker has an end.
const hold = 400

// Markdown shows text as it arrives: headings, lists, quotes, code, emphasis and links in styles of the terminal, with
// lines that are wrapped between words. Text is shown as soon as it is decided what it is: words one by one, and what
// follows a marker when its end has come. However the text is cut, the result is the same. Control characters, with
// which a text could change more of the terminal than its own place, are left out.
type Markdown struct {
	lines   *wrapper
	plain   bool   // show the text as it is, only wrapped
	pending string // not shown yet
	partial string // the beginning of a character
	middle  bool   // of a line, whose beginning is shown
	kind    lineKind
	base    style  // of the line
	fence   string // that has opened a block of code; empty outside
	before  rune   // the last one that was shown of the line
}

// lineKind says how the rest of a line is shown.
type lineKind int

const (
	text lineKind = iota
	code          // as it is, in the style of code
	raw           // as it is
)

// NewMarkdown returns a Markdown for lines of width columns; 0 does not wrap. A plain one shows markers as they are.
func NewMarkdown(out io.Writer, width int, plain bool) *Markdown {
	return &Markdown{lines: &wrapper{out: out, width: width, plain: plain}, plain: plain}
}

// Write shows more of the text.
func (m *Markdown) Write(more string) {
	more = m.partial + more
	whole := len(more)
	for i := 1; i < utf8.UTFMax && i <= len(more); i++ {
		if at := len(more) - i; utf8.RuneStart(more[at]) {
			if !utf8.FullRuneInString(more[at:]) {
				whole = at
			}
			break
		}
	}
	m.partial = more[whole:]
	m.pending += clean(more[:whole])
	m.show(false)
}

// Close shows the rest and ends the line, if one has begun. It returns the first error of the output.
func (m *Markdown) Close() error {
	m.pending += clean(m.partial)
	m.partial = ""
	m.show(true)
	m.lines.end()
	return m.lines.err
}

// clean leaves out control characters.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// show shows what is decided of the pending text. final says that nothing follows.
func (m *Markdown) show(final bool) {
	for m.pending != "" {
		line, rest, ended := strings.Cut(m.pending, "\n")
		if !m.middle {
			begun, ok := m.begin(line, ended || final)
			if !ok {
				return
			}
			line, m.middle, m.before = begun, true, 0
		}
		switch {
		case m.kind != text:
			m.lines.raw(line, m.base)
			line = ""
		case m.plain:
			m.lines.add(line, 0)
			line = ""
		default:
			line = m.inline(line, m.base, ended || final)
		}
		if !ended {
			m.pending = line
			return
		}
		m.pending = rest
		m.lines.newline()
		m.middle, m.kind, m.base = false, text, 0
	}
}

// begin finds out what kind of line this is, shows what stands for its marker, and returns the rest of it. ok is false
// while that is not known.
func (m *Markdown) begin(line string, whole bool) (rest string, ok bool) {
	bare := strings.TrimLeft(line, " \t")
	if m.plain {
		return line, true
	}
	if m.fence != "" {
		if m.closes(bare) {
			if !whole {
				return "", false // it may go on, and be no end
			}
			if len(strings.TrimRight(bare, " \t")) >= len(m.fence) {
				m.fence = ""
				m.kind, m.base = raw, dim
				return line, true
			}
		}
		m.kind, m.base = code, mono
		return line, true
	}
	if bare == "" {
		return line, whole
	}
	indent := line[:len(line)-len(bare)]
	switch bare[0] {
	case '`', '~':
		n := run(bare)
		if n == len(bare) && !whole || n >= 3 && !whole {
			return "", false
		}
		if n >= 3 && !strings.Contains(bare[n:], "`") {
			m.fence, m.kind, m.base = bare[:n], raw, dim
		}
		return line, true
	case '#':
		n := run(bare)
		if n == len(bare) && !whole {
			return "", false
		}
		if n <= 6 && n < len(bare) && bare[n] == ' ' {
			m.base = bold
			return bare[n+1:], true
		}
		return line, true
	case '>':
		if len(bare) == 1 && !whole {
			return "", false
		}
		m.base = dim
		m.lines.mark(indent+"│ ", dim)
		return strings.TrimPrefix(bare[1:], " "), true
	case '|':
		m.kind = raw
		return line, true
	}
	return m.beginList(line, bare, indent, whole)
}

// beginList does what begin does for lists and for rules that divide a text.
func (m *Markdown) beginList(line, bare, indent string, whole bool) (rest string, ok bool) {
	if strings.IndexByte("-*_+", bare[0]) >= 0 {
		if len(bare) < hold && strings.Trim(bare, bare[:1]+" ") == "" && bare[0] != '+' { // it may become a rule
			if !whole {
				return "", false
			}
			if strings.Count(bare, bare[:1]) >= 3 {
				m.kind, m.base = raw, dim
				return indent + strings.Repeat("─", 20), true
			}
		}
		if len(bare) == 1 && !whole {
			return "", false
		}
		if len(bare) > 1 && bare[1] == ' ' && bare[0] != '_' {
			m.lines.mark(indent+"• ", 0)
			return bare[2:], true
		}
		return line, true
	}
	n := 0
	for n < len(bare) && n < 9 && bare[n] >= '0' && bare[n] <= '9' {
		n++
	}
	if n == 0 {
		return line, true
	}
	if len(bare) < n+2 && !whole && (len(bare) == n || bare[n] == '.' || bare[n] == ')') {
		return "", false
	}
	if len(bare) > n+1 && (bare[n] == '.' || bare[n] == ')') && bare[n+1] == ' ' {
		m.lines.mark(indent+bare[:n+2], 0)
		return bare[n+2:], true
	}
	return line, true
}

// closes reports whether a line of code may be the end of its block, as far as it is known.
func (m *Markdown) closes(bare string) bool {
	return strings.Trim(bare, m.fence[:1]+" \t") == "" && (bare == "" || bare[0] == m.fence[0])
}

// run returns how often the first byte of a text is repeated.
func run(s string) int {
	n := 1
	for n < len(s) && s[n] == s[0] {
		n++
	}
	return n
}
