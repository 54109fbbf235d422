package regex

import (
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

type Op uint8

const (
	Empty Op = iota
	Char     // one of set
	Seq
	Alt
	Repeat          // subs[0] from min to max times; max < 0 is no bound
	Begin           // where the text begins
	End             // where it ends
	WordBoundary    // between a word character and another, or the text's border
	NotWordBoundary // anywhere else
)

// Node is a node of a parsed regular expression.
type Node struct {
	Op       Op
	Set      charset.Set
	Subs     []*Node
	Min, Max int
	Anchored bool // an assertion is somewhere in it
}

func seqOf(subs []*Node) *Node { return node(&Node{Op: Seq, Subs: subs}) }

func node(n *Node) *Node {
	n.Anchored = n.Op >= Begin
	for _, s := range n.Subs {
		n.Anchored = n.Anchored || s.Anchored
	}
	return n
}

// parser reads the common ground of ECMA-262 and RE2: where the two give a
// construct different meanings it takes what both match, or refuses by name.
type parser struct {
	text  string
	at    int
	depth int
	nodes int
	fold  bool // (?i)
	ecma  bool // the dialect is ECMA
	dot   charset.Set
}

// The characters on whose meaning the dialects agree.
var (
	spaceSet    = charset.Set{{Lo: '\t', Hi: '\n'}, {Lo: '\f', Hi: '\r'}, {Lo: ' ', Hi: ' '}}
	notSpaceSet = charset.New(charset.Span{Lo: '\t', Hi: '\r'}, charset.Span{Lo: ' ', Hi: ' '}, charset.Span{Lo: 0xA0, Hi: 0xA0}, charset.Span{Lo: 0x1680, Hi: 0x1680}, charset.Span{Lo: 0x2000, Hi: 0x200A},
		charset.Span{Lo: 0x2028, Hi: 0x2029}, charset.Span{Lo: 0x202F, Hi: 0x202F}, charset.Span{Lo: 0x205F, Hi: 0x205F}, charset.Span{Lo: 0x3000, Hi: 0x3000}, charset.Span{Lo: 0xFEFF, Hi: 0xFEFF}).Negate()
	digitSet = charset.Set{{Lo: '0', Hi: '9'}}
	Word     = charset.Set{{Lo: '0', Hi: '9'}, {Lo: 'A', Hi: 'Z'}, {Lo: '_', Hi: '_'}, {Lo: 'a', Hi: 'z'}}
	dotSet   = charset.New(charset.Span{Lo: '\n', Hi: '\n'}, charset.Span{Lo: '\r', Hi: '\r'}, charset.Span{Lo: 0x2028, Hi: 0x2029}).Negate()
)

// Dialect says which constructs an expression may use and what they mean.
type Dialect uint8

const (
	// Common is what ECMA-262 and RE2 agree on. Where they read a construct
	// differently it takes what both match, or refuses.
	Common Dialect = iota
	// ECMA is ECMA-262 with the u flag, as JSON Schema has it.
	ECMA
)

const maxRegexNodes = 50_000

// Parse reads source, or returns a *SyntaxError, an *UnsupportedError or a
// *LimitError.
func Parse(source string, d Dialect) (*Node, error) {
	if len(source) > ast.MaxSource {
		return nil, &ast.LimitError{What: "source bytes", Limit: ast.MaxSource}
	}
	if !utf8.ValidString(source) {
		return nil, &ast.SyntaxError{Kind: "regex", Msg: "read text: it is not valid UTF-8"}
	}
	p := &parser{text: source, dot: dotSet, ecma: d == ECMA}
	n, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	if p.at < len(p.text) {
		return nil, p.fail("close a group: no ( is open")
	}
	return n, nil
}

func (p *parser) column() int { return utf8.RuneCountInString(p.text[:min(p.at, len(p.text))]) + 1 }

func (p *parser) fail(format string, args ...any) error {
	return &ast.SyntaxError{Kind: "regex", Column: p.column(), Msg: fmt.Sprintf(format, args...)}
}

func (p *parser) refuse(feature, why string) error {
	return &ast.UnsupportedError{Kind: "regex", Feature: fmt.Sprintf("%s (character %d)", feature, p.column()), Why: why}
}

func (p *parser) has(prefix string) bool { return strings.HasPrefix(p.text[p.at:], prefix) }

func (p *parser) take(prefix string) bool {
	if !p.has(prefix) {
		return false
	}
	p.at += len(prefix)
	return true
}

// rune is the next character, which is there.
func (p *parser) rune() rune {
	r, n := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += n
	return r
}

func (p *parser) char(set charset.Set) *Node {
	if p.fold {
		set = set.Fold()
	}
	return &Node{Op: Char, Set: set}
}

func (p *parser) alternatives() (*Node, error) {
	if p.depth++; p.depth > ast.MaxNesting {
		return nil, &ast.LimitError{What: "nested groups", Limit: ast.MaxNesting}
	}
	defer func(fold bool, dot charset.Set) { p.depth--; p.fold, p.dot = fold, dot }(p.fold, p.dot)
	var subs []*Node
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
	return node(&Node{Op: Alt, Subs: subs}), nil
}

func (p *parser) sequence() (*Node, error) {
	var subs []*Node
	for p.at < len(p.text) && !p.has("|") && !p.has(")") {
		if p.nodes++; p.nodes > maxRegexNodes {
			return nil, &ast.LimitError{What: "nodes of a regular expression", Limit: maxRegexNodes}
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
	return seqOf(subs), nil
}

func (p *parser) quantified(n *Node, grouped bool) (*Node, error) {
	least, most, ok, err := p.quantifier()
	if !ok || err != nil {
		return n, err
	}
	switch {
	case n.Op >= Begin && !grouped:
		return nil, p.fail("repeat an assertion")
	case p.take("+"):
		return nil, p.refuse("possessive quantifier", "it depends on how an engine searches")
	}
	p.take("?") // greedy or not is the same language
	if _, _, again, err := p.quantifier(); again || err != nil {
		return nil, p.fail("repeat a repetition")
	}
	return node(&Node{Op: Repeat, Subs: []*Node{n}, Min: least, Max: most}), nil
}

func (p *parser) quantifier() (least, most int, ok bool, err error) {
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
	if least, err = strconv.Atoi(low); err != nil || least > ast.MaxRepeat {
		return 0, 0, false, &ast.LimitError{What: "repetitions", Limit: ast.MaxRepeat}
	}
	most = least
	switch {
	case high != "":
		if most, err = strconv.Atoi(high); err != nil || most > ast.MaxRepeat {
			return 0, 0, false, &ast.LimitError{What: "repetitions", Limit: ast.MaxRepeat}
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
func (p *parser) element() (*Node, error) {
	switch {
	case p.has("("):
		return p.group()
	case p.has("["):
		set, err := p.class()
		return &Node{Op: Char, Set: set}, err
	case p.take("."):
		return p.char(p.dot), nil
	case p.take("^"):
		return node(&Node{Op: Begin}), nil
	case p.take("$"):
		return node(&Node{Op: End}), nil
	case p.has("\\"):
		return p.escaped()
	case p.has("*"), p.has("+"), p.has("?"):
		return nil, p.fail("repeat nothing: %q has nothing before it", p.text[p.at])
	case p.has("{"):
		if _, _, ok, err := p.quantifier(); ok || err != nil {
			return nil, p.fail("repeat nothing: { has nothing before it")
		}
	}
	return p.char(charset.Single(p.rune())), nil
}

func (p *parser) group() (*Node, error) {
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
func (p *parser) flags() (closed bool, err error) {
	on := true
	for p.at < len(p.text) {
		switch c := p.rune(); c {
		case '-':
			on = false
		case 'i':
			p.fold = on
		case 's':
			p.dot = dotSet
			if on {
				p.dot = charset.Any()
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
