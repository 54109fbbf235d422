package regex

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// Op is the kind of a Node.
type Op uint8

const (
	Empty           Op = iota // the empty text
	Char                      // one character of set
	Seq                       // subs one after the other
	Alt                       // one of subs
	Repeat                    // subs[0] from min to max times; max < 0 means no maximum
	Begin                     // where the text begins
	End                       // where it ends
	WordBoundary              // between a word character and another, or the text's border
	NotWordBoundary           // anywhere else
	LineBegin                 // where a line begins
	LineEnd                   // where a line ends
	FinalEnd                  // where the text ends, or before the line feed that ends it
	Look                      // where subs[0] matches, or does not; only in Oniguruma, like Atomic
	Atomic                    // the first match of subs[0] that is found, and no other
)

// Node is a node of a parsed regular expression.
type Node struct {
	Op       Op
	Set      charset.Set
	Subs     []*Node
	Min, Max int
	Lazy     bool // of a Repeat: it prefers fewer repetitions
	Not      bool // of a Look: subs[0] must not match
	Behind   bool // of a Look: subs[0] ends here
	Anchored bool // it contains an assertion
}

func seqOf(subs []*Node) *Node { return node(&Node{Op: Seq, Subs: subs}) }

func node(n *Node) *Node {
	n.Anchored = n.Op >= Begin
	for _, s := range n.Subs {
		n.Anchored = n.Anchored || s.Anchored
	}
	return n
}

// parser reads an expression by recursive descent.
type parser struct {
	text    string
	dialect Dialect
	at      int
	depth   int
	nodes   int
	flags
}

// flags are what (?imsx) sets, to the end of the group around it.
type flags struct {
	fold     bool // i: letters match their other cases
	lines    bool // m: ^ and $ match at the ends of lines
	dotAll   bool // s: . matches line ends, too
	extended bool // x: white space and comments in the expression count for nothing
}

// The characters on whose meaning the dialects agree.
var (
	spaceSet    = charset.Set{{Lo: '\t', Hi: '\n'}, {Lo: '\f', Hi: '\r'}, {Lo: ' ', Hi: ' '}}
	notSpaceSet = charset.New(charset.Span{Lo: '\t', Hi: '\r'}, charset.Span{Lo: ' ', Hi: ' '},
		charset.Span{Lo: 0xA0, Hi: 0xA0}, charset.Span{Lo: 0x1680, Hi: 0x1680}, charset.Span{Lo: 0x2000, Hi: 0x200A},
		charset.Span{Lo: 0x2028, Hi: 0x2029}, charset.Span{Lo: 0x202F, Hi: 0x202F},
		charset.Span{Lo: 0x205F, Hi: 0x205F}, charset.Span{Lo: 0x3000, Hi: 0x3000},
		charset.Span{Lo: 0xFEFF, Hi: 0xFEFF}).Negate()
	digitSet = charset.Set{{Lo: '0', Hi: '9'}}
	Word     = charset.Set{{Lo: '0', Hi: '9'}, {Lo: 'A', Hi: 'Z'}, {Lo: '_', Hi: '_'}, {Lo: 'a', Hi: 'z'}}
	dotSet   = charset.New(charset.Span{Lo: '\n', Hi: '\n'}, charset.Span{Lo: '\r', Hi: '\r'},
		charset.Span{Lo: 0x2028, Hi: 0x2029}).Negate()
)

// Dialect says which constructs an expression may use and what they mean.
type Dialect uint8

const (
	// Common accepts what ECMA-262 and RE2 agree on. Where they read a construct differently
	// it accepts what both match, or refuses the construct.
	Common Dialect = iota
	// ECMA is ECMA-262 with the u flag, as JSON Schema requires.
	ECMA
	// Oniguruma accepts what Oniguruma and Rust's fancy-regex agree on, for tokenizer files:
	// look-around, atomic groups, possessive quantifiers, nested classes and their
	// intersection, and Unicode classes.
	Oniguruma
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
	p := &parser{text: source, dialect: d}
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
	return &ast.UnsupportedError{Kind: "regex", Feature: fmt.Sprintf("%s (character %d)", feature, p.column()),
		Why: why}
}

func (p *parser) has(prefix string) bool { return strings.HasPrefix(p.text[p.at:], prefix) }

func (p *parser) take(prefix string) bool {
	if !p.has(prefix) {
		return false
	}
	p.at += len(prefix)
	return true
}

// rune returns the next character; the caller has checked that there is one.
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
	defer func(f flags) { p.depth--; p.flags = f }(p.flags)
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
		if p.extended && p.skipped() {
			continue
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

// quantified reads the quantifiers after n.
func (p *parser) quantified(n *Node, grouped bool) (*Node, error) {
	for {
		least, most, ok, err := p.quantifier()
		if !ok || err != nil {
			return n, err
		}
		if p.dialect == Oniguruma {
			braces := p.text[p.at-1] == '}'
			n = node(&Node{Op: Repeat, Subs: []*Node{n}, Min: least, Max: most, Lazy: p.take("?")})
			if !n.Lazy && !braces && p.take("+") { // a{2}+ repeats a repeat
				n = node(&Node{Op: Atomic, Subs: []*Node{n}})
			}
			continue
		}
		switch {
		case n.Op >= Begin && !grouped:
			return nil, p.fail("repeat an assertion")
		case p.take("+"):
			return nil, p.refuse("possessive quantifier", "its meaning depends on how an engine backtracks")
		}
		p.take("?") // greedy or lazy is the same language
		if _, _, again, err := p.quantifier(); again || err != nil {
			return nil, p.fail("repeat a repetition")
		}
		return node(&Node{Op: Repeat, Subs: []*Node{n}, Min: least, Max: most}), nil
	}
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
	limit := ast.MaxRepeat
	if p.dialect == Oniguruma {
		limit = maxCopies
		if low == "" && digits(high) {
			low = "0"
		}
	}
	if !digits(low) || high != "" && !digits(high) {
		return 0, 0, false, nil // braces that are not a quantifier stand for themselves
	}
	if least, err = strconv.Atoi(low); err != nil || least > limit {
		return 0, 0, false, &ast.LimitError{What: "repetitions", Limit: limit}
	}
	most = least
	switch {
	case high != "":
		if most, err = strconv.Atoi(high); err != nil || most > limit {
			return 0, 0, false, &ast.LimitError{What: "repetitions", Limit: limit}
		}
	case comma:
		most = -1
	}
	if most >= 0 && most < least {
		return 0, 0, false, p.fail("repeat {%s,%s}: the minimum exceeds the maximum", low, high)
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
		read := p.class
		if p.dialect == Oniguruma {
			read = p.nestedClass
		}
		set, err := read()
		return &Node{Op: Char, Set: set}, err
	case p.take("."):
		return p.dot(), nil
	case p.take("^"):
		if p.lines {
			return node(&Node{Op: LineBegin}), nil
		}
		return node(&Node{Op: Begin}), nil
	case p.take("$"):
		if p.lines {
			return node(&Node{Op: LineEnd}), nil
		}
		return node(&Node{Op: End}), nil
	case p.has("\\"):
		return p.escaped()
	case p.has("*"), p.has("+"), p.has("?"):
		return nil, p.fail("read a quantifier: nothing precedes %q", p.text[p.at])
	case p.has("{"):
		if _, _, ok, err := p.quantifier(); ok || err != nil {
			return nil, p.fail("read a quantifier: nothing precedes {")
		}
	}
	return p.char(charset.Single(p.rune())), nil
}

// dot returns the characters that . matches.
func (p *parser) dot() *Node {
	switch {
	case p.dotAll:
		return &Node{Op: Char, Set: charset.Any()}
	case p.dialect == Oniguruma:
		return &Node{Op: Char, Set: charset.Single('\n').Negate()}
	}
	return p.char(dotSet)
}

// group reads a group, or nil for what matches nothing: flags and comments.
func (p *parser) group() (*Node, error) {
	if p.dialect == Oniguruma {
		if n, ok, err := p.extendedGroup(); ok || err != nil {
			return n, err
		}
	}
	for _, refused := range []struct{ open, name, why string }{
		{"(?=", "lookahead (?=", "text is matched once, from left to right"},
		{"(?!", "negative lookahead (?!", "text is matched once, from left to right"},
		{"(?<=", "lookbehind (?<=", "text is matched once, from left to right"},
		{"(?<!", "negative lookbehind (?<!", "text is matched once, from left to right"},
		{"(?>", "atomic group (?>", "its meaning depends on how an engine backtracks"},
		{"(?(", "conditional (?(", "its meaning depends on what groups matched"},
		{"(?#", "comment (?#", "dialects differ in its meaning"},
		{"(?|", "branch reset (?|", "dialects differ in its meaning"},
		{"(?P=", "backreference (?P=", "an automaton cannot remember what a group matched"},
		{"(?P>", "recursion (?P>", "recursion is not regular"},
		{"(?R", "recursion (?R", "recursion is not regular"},
	} {
		if p.has(refused.open) {
			return nil, p.refuse(refused.name, refused.why)
		}
	}
	outer := p.flags
	p.at++
	switch {
	case p.take("?:"), !p.has("?"):
	case p.take("?<"), p.take("?P<"):
		end := strings.IndexByte(p.text[p.at:], '>')
		if end < 1 {
			return nil, p.fail("read a group name: want a name and >")
		}
		p.at += end + 1
	default:
		p.at++
		closed, err := p.readFlags()
		if err != nil || closed {
			return nil, err // flags hold to the end of the group around them
		}
	}
	n, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	p.flags = outer
	if !p.take(")") {
		return nil, p.fail("close a group: ) is missing")
	}
	return n, nil
}

// readFlags reads flags and what they are followed by: ) or :.
func (p *parser) readFlags() (closed bool, err error) {
	on := true
	for p.at < len(p.text) {
		switch c := p.rune(); {
		case c == '-':
			on = false
		case c == 'i':
			p.fold = on
		case c == 's':
			p.dotAll = on
		case c == 'm' && p.dialect == Oniguruma:
			p.lines = on
		case c == 'x' && p.dialect == Oniguruma:
			p.extended = on
		case c == 'u' && p.dialect == Oniguruma: // Unicode classes are the default
		case c == 'U' && p.dialect != Oniguruma: // greedy or lazy is the same language
		case c == 'm':
			if on {
				return false, p.refuse("flag (?m)", "^ and $ match only at the ends of the text")
			}
		case c == ')':
			return true, nil
		case c == ':':
			return false, nil
		default:
			return false, p.fail("read flags: unknown flag %q", c)
		}
	}
	return false, p.fail("close a group: ) is missing")
}
