package regex

import (
	"strings"
	"unicode"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// maxCopies bounds the counts of Oniguruma's repeats: its matcher copies what it repeats.
const maxCopies = 1000

// skipped skips white space or a comment, where the flag x allows it.
func (p *parser) skipped() bool {
	switch c := p.text[p.at]; {
	case c == ' ' || c >= '\t' && c <= '\r':
		p.at++
	case c == '#':
		for p.at < len(p.text) && p.text[p.at] != '\n' {
			p.at++
		}
	default:
		return false
	}
	return true
}

// extendedGroup reads a group that only Oniguruma has, if there is one.
func (p *parser) extendedGroup() (*Node, bool, error) {
	if p.take("(?#") {
		end := strings.IndexByte(p.text[p.at:], ')')
		if end < 0 {
			return nil, false, p.fail("close a comment: ) is missing")
		}
		p.at += end + 1
		return nil, true, nil
	}
	var n *Node
	switch {
	case p.take("(?="):
		n = &Node{Op: Look}
	case p.take("(?!"):
		n = &Node{Op: Look, Not: true}
	case p.take("(?<="):
		n = &Node{Op: Look, Behind: true}
	case p.take("(?<!"):
		n = &Node{Op: Look, Not: true, Behind: true}
	case p.take("(?>"):
		n = &Node{Op: Atomic}
	default:
		return nil, false, nil
	}
	sub, err := p.alternatives()
	if err != nil {
		return nil, false, err
	}
	if !p.take(")") {
		return nil, false, p.fail("close a group: ) is missing")
	}
	n.Subs = []*Node{sub}
	return node(n), true, nil
}

// nestedClass reads a bracket expression: ranges, escapes, classes within, and &&
// between sets to intersect. Case is folded before the class is negated.
func (p *parser) nestedClass() (charset.Set, error) {
	if p.depth++; p.depth > ast.MaxNesting {
		return nil, &ast.LimitError{What: "nested classes", Limit: ast.MaxNesting}
	}
	defer func() { p.depth-- }()
	p.at++
	negated := p.take("^")
	var left charset.Set // of the last &&
	var spans []charset.Span
	both := false
	join := func() charset.Set {
		set := charset.New(spans...)
		if p.fold {
			set = set.Fold()
		}
		if both {
			set = left.Intersect(set)
		}
		return set
	}
	for first := true; ; first = false {
		switch {
		case p.at >= len(p.text):
			return nil, p.fail("read a class: the closing ] is missing")
		case !first && p.take("]"):
			set := join()
			if negated {
				set = set.Negate()
			}
			return set, nil
		case p.take("&&"):
			left, both, spans = join(), true, nil
			continue
		}
		low, err := p.nestedMember()
		if err != nil {
			return nil, err
		}
		lo, single := low.Single()
		if single && p.has("-") && !p.has("-]") && p.at+1 < len(p.text) {
			at := p.at
			p.at++
			high, err := p.nestedMember()
			if err != nil {
				return nil, err
			}
			if hi, ok := high.Single(); !ok {
				p.at = at // a hyphen before a set is itself
			} else if hi < lo {
				return nil, p.fail("read range %q-%q: its ends are reversed", lo, hi)
			} else {
				low = charset.New(charset.Span{Lo: lo, Hi: hi})
			}
		}
		spans = append(spans, low...)
	}
}

// nestedMember reads a character, an escape or a class within a class.
func (p *parser) nestedMember() (charset.Set, error) {
	if p.has("[:") {
		if end := strings.Index(p.text[p.at:], ":]"); end > 0 {
			name, negated := strings.CutPrefix(p.text[p.at+2:p.at+end], "^")
			set, ok := unicodeProperty(name)
			if !ok {
				return nil, p.fail("read a class: unknown name %q", name)
			}
			p.at += end + 2
			if negated {
				set = set.Negate()
			}
			return set, nil
		}
	}
	switch {
	case p.at >= len(p.text):
		return nil, p.fail("read a class: the closing ] is missing")
	case p.has("["):
		return p.nestedClass()
	case p.has("\\"):
		return p.escape(true)
	}
	return charset.Single(p.rune()), nil
}

// unicodeEscape returns the set of an escape that Oniguruma reads in its own way.
func unicodeEscape(c rune) (charset.Set, bool) {
	var set charset.Set
	switch unicode.ToLower(c) {
	case 'd':
		set = charset.FromTable(unicode.Nd)
	case 's':
		set = charset.FromTable(unicode.White_Space)
	case 'w':
		set = unicodeWord()
	case 'h':
		set = charset.New(charset.Span{Lo: '0', Hi: '9'}, charset.Span{Lo: 'A', Hi: 'F'},
			charset.Span{Lo: 'a', Hi: 'f'})
	default:
		switch c {
		case 'e':
			return charset.Single(0x1B), true
		case '0':
			return charset.Single(0), true
		case 'R':
			return charset.New(charset.Span{Lo: '\n', Hi: '\r'}, charset.Span{Lo: 0x85, Hi: 0x85},
				charset.Span{Lo: 0x2028, Hi: 0x2029}), true
		}
		return nil, false
	}
	if unicode.IsUpper(c) {
		set = set.Negate()
	}
	return set, true
}

// unicodeProperty returns the property of a name; case, spaces and a prefix do not matter.
func unicodeProperty(name string) (charset.Set, bool) {
	for _, p := range []string{"Script=", "sc=", "scx=", "General_Category=", "gc="} {
		name = strings.TrimPrefix(name, p)
	}
	clean := func(s string) string {
		return strings.ToLower(strings.NewReplacer("_", "", " ", "", "-", "").Replace(s))
	}
	want := clean(name)
	switch want {
	case "any":
		return charset.Any(), true
	case "ascii":
		return charset.Set{{Lo: 0, Hi: 0x7f}}, true
	case "alpha", "alphabetic":
		return charset.New(append(
			append(append(charset.FromTable(unicode.L), charset.FromTable(unicode.Nl)...),
				charset.FromTable(unicode.Other_Alphabetic)...), charset.Span{Lo: 0x345, Hi: 0x345})...), true
	case "space", "whitespace":
		return charset.FromTable(unicode.White_Space), true
	case "digit":
		return charset.FromTable(unicode.Nd), true
	case "upper", "uppercase":
		return charset.New(append(charset.FromTable(unicode.Lu), charset.FromTable(unicode.Other_Uppercase)...)...),
			true
	case "lower", "lowercase":
		return charset.New(append(charset.FromTable(unicode.Ll), charset.FromTable(unicode.Other_Lowercase)...)...),
			true
	case "punct":
		return charset.New(append(charset.FromTable(unicode.P),
			charset.Set{{Lo: '$', Hi: '$'}, {Lo: '+', Hi: '+'}, {Lo: '<', Hi: '>'}, {Lo: '^', Hi: '^'},
				{Lo: '`', Hi: '`'}, {Lo: '|', Hi: '|'}, {Lo: '~', Hi: '~'}}...)...), true
	case "alnum":
		return charset.New(append(charset.FromTable(unicode.L), charset.FromTable(unicode.Nd)...)...), true
	case "word":
		return unicodeWord(), true
	case "xdigit":
		return charset.Set{{Lo: '0', Hi: '9'}, {Lo: 'A', Hi: 'F'}, {Lo: 'a', Hi: 'f'}}, true
	case "cntrl":
		return charset.FromTable(unicode.Cc), true
	case "l&", "lc", "casedletter":
		return charset.New(append(append(charset.FromTable(unicode.Lu), charset.FromTable(unicode.Ll)...),
			charset.FromTable(unicode.Lt)...)...), true
	case "cn", "unassigned":
		var all charset.Set
		for _, name := range []string{"L", "M", "N", "P", "S", "Z", "C"} {
			all = append(all, charset.FromTable(unicode.Categories[name])...)
		}
		return charset.New(all...).Negate(), true
	}
	if long, ok := map[string]string{
		"letter": "L", "mark": "M", "number": "N", "punctuation": "P", "symbol": "S", "separator": "Z", "other": "C",
		"uppercaseletter": "Lu", "lowercaseletter": "Ll", "titlecaseletter": "Lt", "modifierletter": "Lm",
		"otherletter":    "Lo",
		"nonspacingmark": "Mn", "spacingmark": "Mc", "enclosingmark": "Me", "decimalnumber": "Nd", "letternumber": "Nl",
		"othernumber":          "No",
		"connectorpunctuation": "Pc", "dashpunctuation": "Pd", "control": "Cc", "format": "Cf", "spaceseparator": "Zs",
	}[want]; ok {
		return charset.FromTable(unicode.Categories[long]), true
	}
	for _, tables := range []map[string]*unicode.RangeTable{unicode.Categories, unicode.Scripts, unicode.Properties} {
		for key, t := range tables {
			if k := clean(key); k == want || "is"+k == want {
				return charset.FromTable(t), true
			}
		}
	}
	return nil, false
}

// unicodeWord returns the characters that \w matches in Unicode.
func unicodeWord() charset.Set {
	w := append(charset.FromTable(unicode.L), charset.FromTable(unicode.M)...)
	w = append(append(w, charset.FromTable(unicode.Nd)...), charset.FromTable(unicode.Pc)...)
	return charset.New(w...)
}
