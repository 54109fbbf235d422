package grammar

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

type reOp uint8

const (
	reEmpty reOp = iota
	reChar       // one of set
	reSeq
	reAlt
	reRepeat // subs[0] from min to max times; max < 0 is no bound
	reBegin  // where the text begins
	reEnd    // where it ends
	reWord   // between a word character and another, or the text's border
	reNoWord // anywhere else
)

// re is a node of a parsed regular expression.
type re struct {
	op       reOp
	set      runeSet
	subs     []*re
	min, max int
	anchored bool // an assertion is somewhere in it
}

func reSeqOf(subs []*re) *re { return reNode(&re{op: reSeq, subs: subs}) }

func reNode(n *re) *re {
	n.anchored = n.op >= reBegin
	for _, s := range n.subs {
		n.anchored = n.anchored || s.anchored
	}
	return n
}

// reParser reads the common ground of ECMA-262 and RE2: where the two give a
// construct different meanings it takes what both match, or refuses by name.
type reParser struct {
	text  string
	at    int
	depth int
	nodes int
	fold  bool // (?i)
	ecma  bool // the dialect is ECMA-262 alone
	dot   runeSet
}

// The characters on whose meaning the dialects agree.
var (
	reSpace    = runeSet{{'\t', '\n'}, {'\f', '\r'}, {' ', ' '}}
	reNotSpace = newRuneSet(span{'\t', '\r'}, span{' ', ' '}, span{0xA0, 0xA0}, span{0x1680, 0x1680}, span{0x2000, 0x200A},
		span{0x2028, 0x2029}, span{0x202F, 0x202F}, span{0x205F, 0x205F}, span{0x3000, 0x3000}, span{0xFEFF, 0xFEFF}).negate()
	reDigit = runeSet{{'0', '9'}}
	reWords = runeSet{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}
	reDot   = newRuneSet(span{'\n', '\n'}, span{'\r', '\r'}, span{0x2028, 0x2029}).negate()
)

const maxRegexNodes = 50_000

// parseRegex reads source, or returns a *SyntaxError, an *UnsupportedError or a
// *LimitError.
func parseRegex(source string) (*re, error) { return parseDialect(source, false) }

func parseDialect(source string, ecma bool) (*re, error) {
	if len(source) > maxSource {
		return nil, &LimitError{What: "source bytes", Limit: maxSource}
	}
	if !utf8.ValidString(source) {
		return nil, &SyntaxError{Kind: "regex", Msg: "read text: it is not valid UTF-8"}
	}
	p := &reParser{text: source, dot: reDot, ecma: ecma}
	n, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	if p.at < len(p.text) {
		return nil, p.fail("close a group: no ( is open")
	}
	return n, nil
}

func (p *reParser) column() int { return utf8.RuneCountInString(p.text[:min(p.at, len(p.text))]) + 1 }

func (p *reParser) fail(format string, args ...any) error {
	return &SyntaxError{Kind: "regex", Column: p.column(), Msg: fmt.Sprintf(format, args...)}
}

func (p *reParser) refuse(feature, why string) error {
	return &UnsupportedError{Kind: "regex", Feature: fmt.Sprintf("%s (character %d)", feature, p.column()), Why: why}
}

func (p *reParser) has(prefix string) bool { return strings.HasPrefix(p.text[p.at:], prefix) }

func (p *reParser) take(prefix string) bool {
	if !p.has(prefix) {
		return false
	}
	p.at += len(prefix)
	return true
}

// rune is the next character, which is there.
func (p *reParser) rune() rune {
	r, n := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += n
	return r
}

func (p *reParser) char(set runeSet) *re {
	if p.fold {
		set = set.fold()
	}
	return &re{op: reChar, set: set}
}

func (p *reParser) alternatives() (*re, error) {
	if p.depth++; p.depth > maxNesting {
		return nil, &LimitError{What: "nested groups", Limit: maxNesting}
	}
	defer func(fold bool, dot runeSet) { p.depth--; p.fold, p.dot = fold, dot }(p.fold, p.dot)
	var subs []*re
	for {
		s, err := p.sequence()
		if err != nil {
			return nil, err
		}
		subs = append(subs, s)
		if !p.take("|") {
			break
		}
	}
	if len(subs) == 1 {
		return subs[0], nil
	}
	return reNode(&re{op: reAlt, subs: subs}), nil
}

func (p *reParser) sequence() (*re, error) {
	var subs []*re
	for p.at < len(p.text) && !p.has("|") && !p.has(")") {
		if p.nodes++; p.nodes > maxRegexNodes {
			return nil, &LimitError{What: "nodes of a regular expression", Limit: maxRegexNodes}
		}
		grouped := p.has("(")
		n, err := p.element()
		if err != nil {
			return nil, err
		}
		if n == nil {
			continue // flags
		}
		if n, err = p.quantified(n, grouped); err != nil {
			return nil, err
		}
		subs = append(subs, n)
	}
	if len(subs) == 1 {
		return subs[0], nil
	}
	return reSeqOf(subs), nil
}

func (p *reParser) quantified(n *re, grouped bool) (*re, error) {
	least, most, ok, err := p.quantifier()
	if !ok || err != nil {
		return n, err
	}
	switch {
	case n.op >= reBegin && !grouped:
		return nil, p.fail("repeat an assertion")
	case p.take("+"):
		return nil, p.refuse("possessive quantifier", "it depends on how an engine searches")
	}
	p.take("?") // greedy or not is the same language
	if _, _, again, err := p.quantifier(); again || err != nil {
		return nil, p.fail("repeat a repetition")
	}
	return reNode(&re{op: reRepeat, subs: []*re{n}, min: least, max: most}), nil
}

func (p *reParser) quantifier() (least, most int, ok bool, err error) {
	switch {
	case p.take("*"):
		return 0, -1, true, nil
	case p.take("+"):
		return 1, -1, true, nil
	case p.take("?"):
		return 0, 1, true, nil
	case !p.has("{"):
		return 0, 0, false, nil
	}
	end := strings.IndexByte(p.text[p.at:], '}')
	if end < 0 {
		return 0, 0, false, nil
	}
	low, high, comma := strings.Cut(p.text[p.at+1:p.at+end], ",")
	if !digits(low) || high != "" && !digits(high) {
		return 0, 0, false, nil // braces that are no quantifier stand for themselves
	}
	if least, err = strconv.Atoi(low); err != nil || least > maxRepeat {
		return 0, 0, false, &LimitError{What: "repetitions", Limit: maxRepeat}
	}
	most = least
	switch {
	case high != "":
		if most, err = strconv.Atoi(high); err != nil || most > maxRepeat {
			return 0, 0, false, &LimitError{What: "repetitions", Limit: maxRepeat}
		}
	case comma:
		most = -1
	}
	if most >= 0 && most < least {
		return 0, 0, false, p.fail("repeat {%s,%s}: the bounds are the wrong way round", low, high)
	}
	p.at += end + 1
	return least, most, true, nil
}

func digits(s string) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}

// element reads what a quantifier may follow, or nil for flags.
func (p *reParser) element() (*re, error) {
	switch {
	case p.has("("):
		return p.group()
	case p.has("["):
		set, err := p.class()
		return &re{op: reChar, set: set}, err
	case p.take("."):
		return p.char(p.dot), nil
	case p.take("^"):
		return reNode(&re{op: reBegin}), nil
	case p.take("$"):
		return reNode(&re{op: reEnd}), nil
	case p.has("\\"):
		return p.escaped()
	case p.has("*"), p.has("+"), p.has("?"):
		return nil, p.fail("repeat nothing: %q has nothing before it", p.text[p.at])
	case p.has("{"):
		if _, _, ok, err := p.quantifier(); ok || err != nil {
			return nil, p.fail("repeat nothing: { has nothing before it")
		}
	}
	return p.char(oneRune(p.rune())), nil
}

func (p *reParser) group() (*re, error) {
	for _, refused := range []struct{ open, name, why string }{
		{"(?=", "lookahead (?=", "a text is judged from left to right, once"},
		{"(?!", "negative lookahead (?!", "a text is judged from left to right, once"},
		{"(?<=", "lookbehind (?<=", "a text is judged from left to right, once"},
		{"(?<!", "negative lookbehind (?<!", "a text is judged from left to right, once"},
		{"(?>", "atomic group (?>", "it depends on how an engine searches"},
		{"(?(", "conditional (?(", "it depends on what groups have matched"},
		{"(?#", "comment (?#", "the dialects differ on it"},
		{"(?|", "branch reset (?|", "the dialects differ on it"},
		{"(?P=", "backreference (?P=", "no automaton remembers what a group has matched"},
		{"(?P>", "recursion (?P>", "a regular expression does not call itself"},
		{"(?R", "recursion (?R", "a regular expression does not call itself"},
	} {
		if p.has(refused.open) {
			return nil, p.refuse(refused.name, refused.why)
		}
	}
	fold, dot := p.fold, p.dot
	p.at++
	switch {
	case p.take("?:"), !p.has("?"):
	case p.take("?<"), p.take("?P<"):
		end := strings.IndexByte(p.text[p.at:], '>')
		if end < 1 {
			return nil, p.fail("name a group: want a name and >")
		}
		p.at += end + 1
	default:
		p.at++
		closed, err := p.flags()
		if err != nil || closed {
			return nil, err // flags hold to the end of the group around them
		}
	}
	n, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	p.fold, p.dot = fold, dot
	if !p.take(")") {
		return nil, p.fail("close a group: ) is missing")
	}
	return n, nil
}

// flags reads i, s, m, U and what they are followed by: ) or :.
func (p *reParser) flags() (closed bool, err error) {
	on := true
	for p.at < len(p.text) {
		switch c := p.rune(); c {
		case '-':
			on = false
		case 'i':
			p.fold = on
		case 's':
			p.dot = reDot
			if on {
				p.dot = anyRune()
			}
		case 'U': // greedy or not is the same language
		case 'm':
			if on {
				return false, p.refuse("flag (?m)", "^ and $ stand for the ends of the text")
			}
		case ')':
			return true, nil
		case ':':
			return false, nil
		default:
			return false, p.fail("read flags: %q is none", c)
		}
	}
	return false, p.fail("close a group: ) is missing")
}
