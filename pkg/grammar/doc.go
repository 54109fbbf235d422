// Package grammar constrains generated text to a language: GBNF, JSON Schema, a regular
// expression, a list of choices, tags around tool calls, or a structure of all of these. It
// says which tokens may come next, which text is forced, and when a text may end.
//
// This package is the API; the work is done below it. A front end (gbnf, jsonschema,
// language for regular expressions, tags) parses a source to a Grammar, rules over
// characters (ast). Compile makes a program of it that a machine explores lazily
// (automaton), and a Matcher follows one text through it and makes token masks (mask).
// DESIGN.md says how. Every construct is enforced exactly or refused by an error that names
// it; none is ignored.
//
// A Compiled may be shared; a Matcher belongs to one goroutine at a time, and its tokens are
// accepted in the order in which they are emitted. A Matcher is a function of (grammar,
// vocabulary, accepted tokens) alone, so that another process can take a text over by
// accepting its tokens again.
//
// # Use
//
//	v, err := grammar.NewVocabulary(tokens, ends...) // once for a model: bytes of every id, ids that end a text
//	g, err := grammar.Schema(source)                 // or GBNF, Regex, Choices, Tags, Structure
//	c, err := grammar.Compile(g, v)                  // once for a grammar; sequences share it
//	m := c.NewMatcher()                              // for each sequence
//	mask := make([]uint64, v.Words())
//	err = m.Mask(mask)                               // a bit for each id that may come
//	err = m.Accept(id)
//
// Forced returns the text that must follow, for jumping ahead. Rollback takes back the last
// tokens and Clone follows several continuations, for speculation. When few tokens are left,
// a caller rolls back a token after which Shortest exceeds them and emits what Completion
// returns instead, so that a text never ends cut off.
//
// Control tokens are not text. A vocabulary may represent them by ControlBytes; then they
// fit where a Structure asks for them by their spelling, and nowhere else.
//
// Costs are bounded by counts, never by clocks, so that a grammar is accepted or refused
// alike everywhere. The package knows no model, no tokenizer and no service: a vocabulary is
// a list of byte strings.
package grammar
