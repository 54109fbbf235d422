package grammar

// Schema is the JSON texts that a JSON Schema (draft 2020-12 or draft 7) allows.
//
// Between the tokens of JSON there may be white space, but none before or after
// the whole. Members that properties names come in its order; others, where they
// are allowed, at any time, and members that several schemas name together or that
// are only required in any order. A number has an exponent only where nothing but its
// type is demanded; an integer may end in .0. A known format is a demand, an unknown
// one an annotation. A schema without type means an array where it has items and
// bounds their number.
//
// Nothing that a schema demands is left out: what cannot be honoured is an
// *UnsupportedError with the keyword and a JSON pointer. Malformed JSON or keywords
// are a *SyntaxError, and what is too large a *LimitError.
func Schema(source []byte) (*Grammar, error) { return SchemaWith(source, SchemaOptions{}) }

// SchemaOptions says how SchemaWith reads a schema.
type SchemaOptions struct {
	// Documents are other schemas that references may name, by URI. Without an entry a
	// reference to another document is refused: nothing is ever fetched.
	Documents map[string][]byte
	// Bounded allows at most MaxWhitespace characters of white space in one place, and
	// numbers of at most 16 digits on either side of the point.
	Bounded       bool
	MaxWhitespace int
}

// SchemaWith is Schema with options.
func SchemaWith(source []byte, o SchemaOptions) (*Grammar, error) {
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
	b := &schemaBuilder{x: x, space: star(char(runesOf(" \t\n\r"), plainUTF8)), byTerms: map[string]int{}, byKey: map[string]int{}}
	if o.Bounded {
		b.space = repeat(char(runesOf(" \t\n\r"), plainUTF8), 0, o.MaxWhitespace)
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
	b.rules[root].body = body
	if err := b.finish(); err != nil {
		return nil, err
	}
	if err := b.countItems(); err != nil {
		return nil, err
	}
	return &Grammar{rules: b.rules, root: root, kind: "schema"}, nil
}
