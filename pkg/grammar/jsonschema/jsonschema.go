package jsonschema

import (
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// Options says how Parse reads a schema.
type Options struct {
	// Documents are other schemas that references may name, by URI. Without an entry a
	// reference to another document is refused: nothing is ever fetched.
	Documents map[string][]byte
	// Bounded allows at most MaxWhitespace characters of white space in one place, and
	// numbers of at most 16 digits on either side of the point.
	Bounded       bool
	MaxWhitespace int
}

// Parse compiles a JSON Schema (draft 2020-12, 2019-09 or 7) to the JSON texts that it
// allows.
//
// White space is allowed between the tokens of JSON, but not before or after the whole.
// Members that one properties names come in its order; members that several schemas name
// together, or that are only required, come in any order; other members, where they are
// allowed, come anywhere. A number has an exponent only if its type is the only constraint;
// an integer may end in .0. A known format is an assertion, an unknown one an annotation. A
// schema without type that has items and bounds their number means an array.
//
// What cannot be enforced exactly is an *ast.UnsupportedError with the keyword and its JSON
// pointer. Malformed JSON and malformed keywords are an *ast.SyntaxError, and what is too
// large an *ast.LimitError.
func Parse(source []byte, o Options) (*ast.Grammar, error) {
	v, err := parseValue(source)
	if err != nil {
		return nil, err
	}
	doc, err := newDocument(v, o.Documents)
	if err != nil {
		return nil, err
	}
	x, err := newExpander(doc)
	if err != nil {
		return nil, err
	}
	b := &schemaBuilder{x: x, space: ast.Star(ast.Char(charset.Of(" \t\n\r"), ast.PlainUTF8)),
		byTerms: map[string]int{}, byKey: map[string]int{}}
	if o.Bounded {
		b.space = ast.Repeat(ast.Char(charset.Of(" \t\n\r"), ast.PlainUTF8), 0, o.MaxWhitespace)
		b.wholeCap, b.fractionCap = boundedDigits, boundedDigits
	}
	if v.kind != isObject && v.kind != isBool {
		return nil, x.fail(doc.root, "a schema", "an object, true or false")
	}
	root, err := b.add("root", nil, false)
	if err != nil {
		return nil, err
	}
	body, err := b.value(x.terms(doc.root, false))
	if err != nil {
		return nil, err
	}
	b.rules[root].Body = body
	if err := b.finish(); err != nil {
		return nil, err
	}
	if err := b.countItems(); err != nil {
		return nil, err
	}
	return &ast.Grammar{Rules: b.rules, Root: root, Kind: "schema"}, nil
}
