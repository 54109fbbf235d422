package pattern

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escape parses an escape sequence.
func (p *parser) escape() (ranges, error) {
	p.at++
	if !p.more() {
		return nil, p.fail("backslash at the end")
	}
	r := p.rune()
	one := func(r rune) (ranges, error) { return ranges{{r, r}}, nil }
	switch r {
	case 'n':
		return one('\n')
	case 'r':
		return one('\r')
	case 't':
		return one('\t')
	case 'f':
		return one('\f')
	case 'v':
		return one('\v')
	case 'a':
		return one('\a')
	case 'e':
		return one(0x1b)
	case '0':
		return one(0)
	case 'd', 'D':
		return negate(fromTable(unicode.Nd), r == 'D'), nil
	case 's', 'S':
		return negate(fromTable(unicode.White_Space), r == 'S'), nil
	case 'w', 'W':
		return negate(word(), r == 'W'), nil
	case 'h', 'H':
		return negate(ranges{{'0', '9'}, {'A', 'F'}, {'a', 'f'}}, r == 'H'), nil
	case 'R':
		return ranges{{'\n', '\r'}, {0x85, 0x85}, {0x2028, 0x2029}}, nil
	case 'p', 'P':
		name := ""
		if p.take("{") {
			end := strings.IndexByte(p.src[p.at:], '}')
			if end < 0 {
				return nil, p.fail("unclosed property name")
			}
			name = p.src[p.at : p.at+end]
			p.at += end + 1
		} else if p.more() {
			name = string(p.rune())
		}
		not := r == 'P'
		if rest, ok := strings.CutPrefix(name, "^"); ok {
			name, not = rest, !not
		}
		set, ok := property(name)
		if !ok {
			return nil, p.fail("unknown property %q", name)
		}
		return negate(set, not), nil
	case 'x', 'u', 'U':
		return p.code(r)
	}
	if r < utf8.RuneSelf && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '1' && r <= '9') {
		return nil, p.fail("unknown escape \\%c", r)
	}
	return one(r)
}

// code parses the digits of \x, \u and \U.
func (p *parser) code(kind rune) (ranges, error) {
	digits := ""
	if p.take("{") {
		end := strings.IndexByte(p.src[p.at:], '}')
		if end < 0 {
			return nil, p.fail("unclosed code point")
		}
		digits = p.src[p.at : p.at+end]
		p.at += end + 1
	} else {
		n := map[rune]int{'x': 2, 'u': 4, 'U': 8}[kind]
		if p.at+n > len(p.src) {
			return nil, p.fail("incomplete code point")
		}
		digits = p.src[p.at : p.at+n]
		p.at += n
	}
	c, err := strconv.ParseUint(digits, 16, 32)
	if err != nil || c > unicode.MaxRune {
		return nil, p.fail("invalid code point %q", digits)
	}
	return ranges{{rune(c), rune(c)}}, nil
}

func negate(r ranges, not bool) ranges {
	if not {
		return r.not()
	}
	return r
}

// class parses a bracketed class: ranges, escapes, nested classes, and intersections
// with &&.
func (p *parser) class() (ranges, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail("classes nest more than %d deep", maxDepth)
	}
	defer func() { p.depth-- }()
	p.at++
	not := p.take("^")
	var all, cur ranges
	both := false
	join := func() {
		cur = cur.normal()
		if p.fold {
			cur = cur.fold()
		}
		if both {
			all = all.and(cur)
		} else {
			all = cur
		}
		cur = nil
	}
	for first := true; ; first = false {
		if !p.more() {
			return nil, p.fail("unclosed class")
		}
		if p.peek() == ']' && !first {
			p.at++
			break
		}
		if p.take("&&") {
			join()
			both = true
			continue
		}
		item, single, err := p.item()
		if err != nil {
			return nil, err
		}
		if single && p.peek() == '-' && p.at+1 < len(p.src) && p.src[p.at+1] != ']' {
			back := p.at
			p.at++
			hi, one, err := p.item()
			if err != nil {
				return nil, err
			}
			if one {
				if hi[0][0] < item[0][0] {
					return nil, p.fail("range out of order")
				}
				item = ranges{{item[0][0], hi[0][0]}}
			} else {
				p.at = back
			}
		}
		cur = append(cur, item...)
	}
	join()
	return negate(all, not), nil
}

// item parses one member of a class. single says that it is one character.
func (p *parser) item() (r ranges, single bool, err error) {
	switch c := p.peek(); {
	case c == '[' && strings.HasPrefix(p.src[p.at:], "[:"):
		if end := strings.Index(p.src[p.at:], ":]"); end > 0 {
			name := p.src[p.at+2 : p.at+end]
			name, not := strings.CutPrefix(name, "^")
			set, ok := property(name)
			if !ok {
				return nil, false, p.fail("unknown class %q", name)
			}
			p.at += end + 2
			return negate(set, not), false, nil
		}
		fallthrough
	case c == '[':
		r, err = p.class()
		return r, false, err
	case c == '\\':
		if p.at+1 < len(p.src) && p.src[p.at+1] == 'b' {
			p.at += 2
			return ranges{{'\b', '\b'}}, true, nil
		}
		r, err = p.escape()
		return r, len(r) == 1 && r[0][0] == r[0][1], err
	}
	x := p.rune()
	return ranges{{x, x}}, true, nil
}
