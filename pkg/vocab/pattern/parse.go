package pattern

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

type kind uint8

const (
	kindEmpty kind = iota
	kindSet
	kindCat
	kindAlt
	kindRepeat
	kindLook
	kindAtomic
	kindAssert
)

// node is part of a parsed pattern.
type node struct {
	kind     kind
	set      ranges
	subs     []*node
	min, max int // of a repeat; a max of -1 means no limit
	lazy     bool
	not      bool // a negative look-around
	behind   bool
	assert   byte // ^ $ A z Z b B
}

// Error reports a pattern that is malformed or not supported.
type Error struct {
	Pattern string
	Offset  int
	Reason  string
}

// Error gives the position and the reason.
func (e *Error) Error() string {
	return fmt.Sprintf("compile pattern: %s at byte %d of %q", e.Reason, e.Offset, e.Pattern)
}

type parser struct {
	src     string
	at      int
	depth   int
	fold    bool
	dotAll  bool
	lines   bool // ^ and $ match at line ends
	extends bool // white space in the pattern is ignored
}

// maxDepth is the maximum nesting of groups and classes.
const maxDepth = 200

func (p *parser) fail(reason string, args ...any) error {
	return &Error{Pattern: p.src, Offset: p.at, Reason: fmt.Sprintf(reason, args...)}
}

func (p *parser) more() bool { return p.at < len(p.src) }

func (p *parser) peek() byte {
	if p.more() {
		return p.src[p.at]
	}
	return 0
}

func (p *parser) take(s string) bool {
	if strings.HasPrefix(p.src[p.at:], s) {
		p.at += len(s)
		return true
	}
	return false
}

func (p *parser) rune() rune {
	r, n := utf8.DecodeRuneInString(p.src[p.at:])
	p.at += n
	return r
}

// alternatives parses up to a closing parenthesis or the end.
func (p *parser) alternatives() (*node, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail("groups nest more than %d deep", maxDepth)
	}
	defer func() { p.depth-- }()
	fold, dotAll, lines, extends := p.fold, p.dotAll, p.lines, p.extends
	defer func() { p.fold, p.dotAll, p.lines, p.extends = fold, dotAll, lines, extends }()
	var alts []*node
	cat := &node{kind: kindCat}
	for p.more() && p.peek() != ')' {
		if p.take("|") {
			alts, cat = append(alts, cat), &node{kind: kindCat}
			continue
		}
		n, err := p.piece()
		if err != nil {
			return nil, err
		}
		if n != nil {
			cat.subs = append(cat.subs, n)
		}
	}
	if alts == nil {
		return cat, nil
	}
	return &node{kind: kindAlt, subs: append(alts, cat)}, nil
}

// piece parses an atom and its repeats.
func (p *parser) piece() (*node, error) {
	if p.extends {
		switch c := p.peek(); {
		case c == ' ' || c >= '\t' && c <= '\r':
			p.at++
			return nil, nil
		case c == '#':
			for p.more() && p.peek() != '\n' {
				p.at++
			}
			return nil, nil
		}
	}
	n, err := p.atom()
	if err != nil || n == nil {
		return n, err
	}
	for p.more() {
		lo, hi := 0, -1
		switch c := p.peek(); c {
		case '*':
			p.at++
		case '+':
			p.at++
			lo = 1
		case '?':
			p.at++
			hi = 1
		case '{':
			var ok bool
			if lo, hi, ok = p.counts(); !ok {
				return n, nil
			}
			if lo > maxCount || hi > maxCount || hi >= 0 && hi < lo {
				return nil, p.fail("invalid repeat from %d to %d", lo, hi)
			}
		default:
			return n, nil
		}
		interval := p.src[p.at-1] == '}'
		n = &node{kind: kindRepeat, subs: []*node{n}, min: lo, max: hi}
		switch {
		case p.take("?"):
			n.lazy = true
		case !interval && p.take("+"): // a{2}+ is a repeat of a repeat, as in Oniguruma
			n = &node{kind: kindAtomic, subs: []*node{n}}
		}
	}
	return n, nil
}

const maxCount = 1000

// counts parses {n}, {n,}, {,m} or {n,m}. ok is false for anything else.
func (p *parser) counts() (lo, hi int, ok bool) {
	at := p.at + 1
	number := func() (int, bool) {
		from, n := at, 0
		for at < len(p.src) && p.src[at] >= '0' && p.src[at] <= '9' && n <= maxCount {
			n = n*10 + int(p.src[at]-'0')
			at++
		}
		return n, at > from
	}
	lo, some := number()
	hi = lo
	if at < len(p.src) && p.src[at] == ',' {
		at++
		var bounded bool
		if hi, bounded = number(); !bounded {
			if !some {
				return 0, 0, false
			}
			hi = -1
		}
	} else if !some {
		return 0, 0, false
	}
	if at >= len(p.src) || p.src[at] != '}' {
		return 0, 0, false
	}
	p.at = at + 1
	return lo, hi, true
}

func (p *parser) atom() (*node, error) {
	switch c := p.peek(); c {
	case '(':
		return p.group()
	case '[':
		r, err := p.class()
		if err != nil {
			return nil, err
		}
		return &node{kind: kindSet, set: r}, nil
	case '.':
		p.at++
		if p.dotAll {
			return &node{kind: kindSet, set: ranges{{0, unicode.MaxRune}}}, nil
		}
		return &node{kind: kindSet, set: ranges{{'\n', '\n'}}.not()}, nil
	case '^', '$':
		p.at++
		if !p.lines {
			c = map[byte]byte{'^': 'A', '$': 'z'}[c]
		}
		return &node{kind: kindAssert, assert: c}, nil
	case '*', '+', '?':
		return nil, p.fail("nothing to repeat before %q", c)
	case '\\':
		if p.at+1 < len(p.src) {
			switch c := p.src[p.at+1]; c {
			case 'A', 'z', 'Z', 'b', 'B':
				p.at += 2
				return &node{kind: kindAssert, assert: c}, nil
			}
		}
		r, err := p.escape()
		if err != nil {
			return nil, err
		}
		return p.chars(r), nil
	}
	r := p.rune()
	return p.chars(ranges{{r, r}}), nil
}

func (p *parser) chars(r ranges) *node {
	if p.fold {
		r = r.fold()
	}
	return &node{kind: kindSet, set: r}
}

func (p *parser) group() (*node, error) {
	p.at++
	n := &node{}
	switch {
	case p.take("?:"):
	case p.take("?="):
		n.kind = kindLook
	case p.take("?!"):
		n.kind, n.not = kindLook, true
	case p.take("?<="):
		n.kind, n.behind = kindLook, true
	case p.take("?<!"):
		n.kind, n.behind, n.not = kindLook, true, true
	case p.take("?>"):
		n.kind = kindAtomic
	case p.take("?#"):
		end := strings.IndexByte(p.src[p.at:], ')')
		if end < 0 {
			return nil, p.fail("unclosed comment")
		}
		p.at += end + 1
		return nil, nil
	case strings.HasPrefix(p.src[p.at:], "?P<"), strings.HasPrefix(p.src[p.at:], "?<"):
		end := strings.IndexByte(p.src[p.at:], '>')
		if end < 0 {
			return nil, p.fail("unclosed group name")
		}
		p.at += end + 1
	case p.take("?"):
		return p.flags()
	}
	return p.close(n)
}

// close parses the rest of a group.
func (p *parser) close(n *node) (*node, error) {
	sub, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	if !p.take(")") {
		return nil, p.fail("unclosed group")
	}
	if n.kind == kindEmpty {
		return sub, nil
	}
	n.subs = []*node{sub}
	return n, nil
}

// flags parses inline flags: (?i), (?i:…) and so on.
func (p *parser) flags() (*node, error) {
	fold, dotAll, lines, extends := p.fold, p.dotAll, p.lines, p.extends
	on := true
	for p.more() {
		switch c := p.peek(); c {
		case '-':
			on = false
		case 'i':
			fold = on
		case 's':
			dotAll = on
		case 'm':
			lines = on
		case 'x':
			extends = on
		case 'u':
		case ')':
			p.at++
			p.fold, p.dotAll, p.lines, p.extends = fold, dotAll, lines, extends
			return nil, nil
		case ':':
			p.at++
			was := *p
			p.fold, p.dotAll, p.lines, p.extends = fold, dotAll, lines, extends
			n, err := p.close(&node{})
			p.fold, p.dotAll, p.lines, p.extends = was.fold, was.dotAll, was.lines, was.extends
			return n, err
		default:
			return nil, p.fail("unknown group flag %q", c)
		}
		p.at++
	}
	return nil, p.fail("unclosed group")
}
