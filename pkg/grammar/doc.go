// Package grammar holds generated text to a language: GBNF, JSON Schema, regular
// expressions, lists of choices, tags around tool calls, or a structure of all of
// these. It says which tokens may come next, which text is forced, and when a text
// may end.
//
// A front end (GBNF, Schema, Regex, Choices, Tags, Structure) reads a source and makes a
// Grammar: rules over characters. Compile turns it into a program of small
// instructions, and a Matcher follows one text through it. Every construct is
// honoured exactly or refused by an error that names it; nothing is ignored.
//
// Inside one rule the program is a finite automaton whose states are made when
// they are first reached. Rules call each other through stacks of return places,
// which are kept once each and shared, so that a position (all ways to have read
// the text so far) is a small value, rolling back is dropping it, and equal
// positions are the same object. Nothing is ever changed in place.
//
// The caller owes: a Compiled may be shared, a Matcher belongs to one goroutine at
// a time; tokens are accepted in the order in which they are emitted. A Matcher is
// a function of (grammar, vocabulary, accepted tokens) alone, so that any process
// can take a text over by accepting its tokens again.
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
// Forced is the text that is all that can follow, for jumping over it. Rollback
// takes back the last tokens, and Clone follows several ways, for speculation. With
// few tokens left, a token after which Shortest is more than those is rolled back,
// and what Completion says is emitted instead, so that a text never ends cut off.
//
// Control tokens are no text. A vocabulary may give them as ControlBytes, and then they
// fit where a Structure asks for them by their spelling, and nowhere else.
//
// Costs are bounded by counts, never by clocks (limits.go), so that a grammar is
// taken or refused alike everywhere. The package knows no model, no tokenizer and
// no service: a vocabulary is a list of byte strings.
package grammar
