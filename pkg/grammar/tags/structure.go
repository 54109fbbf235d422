package tags

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
	"github.com/lamina-mesh/lamina/pkg/grammar/gbnf"
	"github.com/lamina-mesh/lamina/pkg/grammar/jsonschema"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
)

// ParseStructure parses a text composed of parts, in JSON. A part is {"type": ...} with
//
//   - const_string: value, that text;
//   - token: token, the control token with that spelling, as one token;
//   - json_schema: json_schema, a text that the schema allows, with at most max_whitespace
//     characters of white space in one place;
//   - regex: pattern; grammar: grammar, in GBNF;
//   - any_text: any text that contains none of excludes and, within a tag, not its end. It
//     does not start with a character of not_first, not even after white space;
//   - sequence, or: elements, one after the other or one of them;
//   - optional, star, plus, repeat: content, repeated; repeat has min and max;
//   - tag: begin, content, end. begin and end are texts or tokens, and end may be a list.
//     schema instead of content is short for a json_schema;
//   - triggered_tags: triggers, tags, at_least_one, stop_after_first, as Options describes
//     them, and not_first as in any_text. A token as a begin is its own trigger;
//   - tags_with_separator: tags, separator, at_least_one, stop_after_first. No free text;
//   - structure: structure, a complete structure.
//
// The whole may be wrapped in {"type": "structural_tag", "format": ...}. A whole without a
// type is triggered_tags. Unknown parts and fields are refused by name, as an
// *ast.SyntaxError or *ast.UnsupportedError that starts with the place; the errors of
// schemas, regular expressions and grammars inside are wrapped in one, too.
func ParseStructure(source []byte) (*ast.Grammar, error) {
	if len(source) > ast.MaxSource {
		return nil, &ast.LimitError{What: "source bytes", Limit: ast.MaxSource}
	}
	if !utf8.Valid(source) {
		return nil, &ast.SyntaxError{Kind: "tags", Msg: "read JSON: it is not valid UTF-8"}
	}
	b := &structure{out: &ast.Grammar{Rules: []ast.Rule{{Name: "root"}}, Kind: "tags"}, known: map[string]*ast.Expr{}}
	root, err := b.whole("", source, 0)
	if err != nil {
		return nil, err
	}
	b.out.Rules[0].Body = root
	return b.out, nil
}

// whole parses a structure and its optional wrapper.
func (b *structure) whole(at string, source []byte, depth int) (*ast.Expr, error) {
	n, err := b.node(at, source)
	if err != nil {
		return nil, err
	}
	if kind := n.kind; kind == "structural_tag" && n.has("format") {
		format := n.fields["format"]
		delete(n.fields, "format")
		if err := n.done(); err != nil {
			return nil, err
		}
		if n, err = b.node(n.place("format"), format); err != nil {
			return nil, err
		}
	} else if kind == "" || kind == "structural_tag" {
		n.kind = "triggered_tags"
	}
	return b.build(n, depth, nil)
}

const (
	maxParts     = 20_000 // of a structure
	maxPartDepth = 64
	maxWhite     = 1000
	maxPartsRead = 8 << 20
)

// structure builds a grammar from parts.
type structure struct {
	out   *ast.Grammar
	known map[string]*ast.Expr // schemas, expressions and grammars by kind and source
	parts int
	read  int // bytes of all parts; nested ones count each time
}

// part is one JSON object. Fields that nobody reads are refused.
type part struct {
	at     string // its place, for errors
	kind   string
	fields map[string]json.RawMessage
}

func (b *structure) node(at string, source []byte) (*part, error) {
	n := &part{at: at}
	b.parts++
	b.read += len(source)
	if b.parts > maxParts {
		return nil, &ast.LimitError{What: "parts of a structure", Limit: maxParts}
	}
	if b.read > maxPartsRead {
		return nil, &ast.LimitError{What: "bytes of parts within parts", Limit: maxPartsRead}
	}
	d := json.NewDecoder(bytes.NewReader(source))
	if err := d.Decode(&n.fields); err != nil || n.fields == nil {
		return nil, n.fail("", "want an object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, n.fail("", "there is text after the object")
	}
	if err := n.read("type", &n.kind, "a string"); err != nil {
		return nil, err
	}
	return n, nil
}

// place returns the place of a field.
func (n *part) place(field string) string {
	switch {
	case n.at == "":
		return field
	case field == "":
		return n.at
	}
	return n.at + "." + field
}

func (n *part) fail(field, format string, args ...any) error {
	msg := fmt.Sprintf(format, args...)
	if at := n.place(field); at != "" {
		msg = at + ": " + msg
	}
	return &ast.SyntaxError{Kind: "tags", Msg: msg}
}

func (n *part) has(field string) bool {
	raw, ok := n.fields[field]
	return ok && string(raw) != "null"
}

// read removes a field, if it exists, and decodes it.
func (n *part) read(field string, into any, want string) error {
	raw, ok := n.fields[field]
	delete(n.fields, field)
	if ok && string(raw) != "null" && json.Unmarshal(raw, into) != nil {
		return n.fail(field, "want %s", want)
	}
	return nil
}

// must is like read, for a required field.
func (n *part) must(field string, into any, want string) error {
	if !n.has(field) {
		return n.fail(field, "is missing: want %s", want)
	}
	return n.read(field, into, want)
}

// done refuses what was not read.
func (n *part) done() error {
	left := make([]string, 0, len(n.fields))
	for name := range n.fields {
		left = append(left, name)
	}
	if len(left) == 0 {
		return nil
	}
	slices.Sort(left)
	why := "unknown field"
	if n.at != "" {
		why = n.at + ": " + why
	}
	return &ast.UnsupportedError{Kind: "tags", Feature: left[0], Why: why}
}

// build returns the expression of a part. any_text must not contain the texts in not, in addition
// to its own excludes.
func (b *structure) build(n *part, depth int, not []string) (out *ast.Expr, err error) {
	if depth > maxPartDepth {
		return nil, &ast.LimitError{What: "parts within parts", Limit: maxPartDepth}
	}
	switch n.kind {
	case "const_string":
		var text string
		err, out = n.must("value", &text, "a string"), ast.Text(text)
	case "token":
		out, err = n.token()
	case "json_schema":
		white := -1
		if err = n.read("max_whitespace", &white, "a whole number"); err == nil {
			if white < -1 || white > maxWhite {
				return nil, n.fail("max_whitespace", "%d is not within 0..%d", white, maxWhite)
			}
			out, err = b.inner(n, "json_schema", fmt.Sprint(white), func(raw json.RawMessage) (*ast.Grammar, error) {
				return jsonschema.Parse(raw, jsonschema.Options{Bounded: white >= 0, MaxWhitespace: white})
			})
		}
	case "regex":
		out, err = b.inner(n, "pattern", "", fromText(language.Regex))
	case "grammar":
		out, err = b.inner(n, "grammar", "", fromText(gbnf.Parse))
	case "any_text":
		var excludes []string
		var notFirst string
		if err = errors.Join(n.read("excludes", &excludes, "a list of strings"),
			n.read("not_first", &notFirst, "a string")); err == nil {
			out, err = anyTextBut(n, append(slices.Clone(not), excludes...), notFirst)
		}
	case "structure":
		var raw json.RawMessage
		if err = n.must("structure", &raw, "an object"); err == nil {
			out, err = b.whole(n.place("structure"), raw, depth+1)
		}
	case "sequence", "or":
		out, err = b.elements(n, depth, not)
	case "optional", "star", "plus", "repeat":
		out, err = b.repeated(n, depth, not)
	case "tag":
		var t builtTag
		if t, err = b.tag(n, depth); err == nil {
			out = t.whole()
		}
	case "triggered_tags", "tags_with_separator":
		out, err = b.tags(n, depth)
	case "":
		return nil, n.fail("type", "is missing")
	default:
		why := "unknown part"
		if n.at != "" {
			why = n.at + ": " + why
		}
		return nil, &ast.UnsupportedError{Kind: "tags", Feature: fmt.Sprintf("type %q", n.kind), Why: why}
	}
	if err != nil {
		return nil, err
	}
	return out, n.done()
}

// token returns the control token that n spells.
func (n *part) token() (*ast.Expr, error) {
	var spelling string
	if err := n.must("token", &spelling, "a string"); err != nil {
		return nil, err
	}
	if spelling == "" {
		return nil, n.fail("token", "want the spelling of a control token")
	}
	return ast.Control(spelling), nil
}

func fromText(front func(string) (*ast.Grammar, error)) func(json.RawMessage) (*ast.Grammar, error) {
	return func(raw json.RawMessage) (*ast.Grammar, error) {
		var text string
		if json.Unmarshal(raw, &text) != nil {
			return nil, errNoText
		}
		return front(text)
	}
}

var errNoText = fault.New(fault.Invalid, "want a string")

// inner returns the rule that another front end builds from a field. Equal fields with equal
// options share one rule.
func (b *structure) inner(n *part, field, options string,
	front func(json.RawMessage) (*ast.Grammar, error)) (*ast.Expr, error) {
	var raw json.RawMessage
	if err := n.must(field, &raw, "one"); err != nil {
		return nil, err
	}
	key := n.kind + " " + options + " " + string(raw)
	if e, ok := b.known[key]; ok {
		return e, nil
	}
	g, err := front(raw)
	switch {
	case errors.Is(err, errNoText):
		return nil, n.fail(field, "want a string")
	case err != nil:
		return nil, fmt.Errorf("read tags at %s: %w", n.place(field), err)
	}
	e, err := b.out.Embed(g)
	if err != nil {
		return nil, err
	}
	b.known[key] = e
	return e, nil
}

// anyTextBut returns the texts that contain none of excludes. They are the states of an
// Aho-Corasick automaton over excludes in which no excluded text ends.
func anyTextBut(n *part, excludes []string, notFirst string) (*ast.Expr, error) {
	if len(excludes) == 0 && notFirst == "" {
		return ast.Star(ast.Char(charset.Any(), ast.PlainUTF8)), nil
	}
	if slices.Contains(excludes, "") {
		return nil, n.fail("excludes", "every text contains the empty text")
	}
	a, err := newSearch(excludes)
	if err != nil {
		return nil, err
	}
	g := &ast.Graph{States: make([]ast.GraphState, 1+len(a.nodes))} // state 0 is the beginning
	for i, node := range a.nodes {
		if len(node.found) > 0 {
			continue
		}
		g.States[1+i].Final = true
		for _, s := range a.steps(i) {
			g.Edge(1+i, ast.Char(s.set, ast.PlainUTF8), 1+s.to)
		}
	}
	if notFirst == "" {
		g.Edge(0, nil, 1)
		return g.Expr(), nil
	}
	g.States[0].Final = true
	for _, s := range a.firstSteps(notFirst) {
		g.Edge(0, ast.Char(s.set, ast.PlainUTF8), 1+s.to)
	}
	return g.Expr(), nil
}

// list reads a list of parts; short gives a part without a type that one.
func (b *structure) list(n *part, field, short string) ([]*part, error) {
	var raws []json.RawMessage
	if err := n.must(field, &raws, "a list"); err != nil {
		return nil, err
	}
	if len(raws) == 0 {
		return nil, n.fail(field, "want at least one")
	}
	out := make([]*part, len(raws))
	for i, raw := range raws {
		sub, err := b.node(n.place(fmt.Sprintf("%s[%d]", field, i)), raw)
		if err != nil {
			return nil, err
		}
		if sub.kind == "" {
			sub.kind = short
		}
		out[i] = sub
	}
	return out, nil
}

func (b *structure) elements(n *part, depth int, not []string) (*ast.Expr, error) {
	parts, err := b.list(n, "elements", "")
	if err != nil {
		return nil, err
	}
	subs := make([]*ast.Expr, len(parts))
	for i, sub := range parts {
		if subs[i], err = b.build(sub, depth+1, not); err != nil {
			return nil, err
		}
	}
	if n.kind == "or" {
		return ast.Alt(subs...), nil
	}
	return ast.Seq(subs...), nil
}

// content builds the part in the field content.
func (b *structure) content(n *part, depth int, not []string) (*ast.Expr, error) {
	var raw json.RawMessage
	if err := n.must("content", &raw, "a part"); err != nil {
		return nil, err
	}
	sub, err := b.node(n.place("content"), raw)
	if err != nil {
		return nil, err
	}
	return b.build(sub, depth+1, not)
}

func (b *structure) repeated(n *part, depth int, not []string) (*ast.Expr, error) {
	e, err := b.content(n, depth, not)
	if err != nil {
		return nil, err
	}
	switch n.kind {
	case "optional":
		return ast.Optional(e), nil
	case "star":
		return ast.Star(e), nil
	case "plus":
		return ast.Repeat(e, 1, -1), nil
	}
	least, most := 0, -1
	if err := errors.Join(n.read("min", &least, "a whole number"), n.read("max", &most, "a whole number")); err != nil {
		return nil, err
	}
	if least < 0 || most < -1 || most >= 0 && least > most || max(least, most) > ast.MaxInstructions {
		return nil, n.fail("min", "%d to %d is not a valid range", least, most)
	}
	return ast.Repeat(e, least, most), nil
}
