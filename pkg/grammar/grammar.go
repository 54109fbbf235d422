package grammar

import (
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/gbnf"
	"github.com/lamina-mesh/lamina/pkg/grammar/jsonschema"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
	"github.com/lamina-mesh/lamina/pkg/grammar/mask"
	"github.com/lamina-mesh/lamina/pkg/grammar/tags"
)

// Grammar is a language: rules over characters, one of which is the root. It never
// changes, and any number of goroutines may compile it.
type Grammar = ast.Grammar

// Vocabulary is the bytes of a model's tokens, laid out for masks. Any number of
// grammars and goroutines may share it.
type Vocabulary = mask.Vocabulary

// Compiled is a grammar ready for matching. Goroutines share it through Matchers of
// their own.
type Compiled = mask.Compiled

// Matcher follows one text through a grammar. It belongs to one goroutine at a time.
type Matcher = mask.Matcher

// Errors of this package. All of them have the code fault.Invalid.
type (
	// SyntaxError says where a source is malformed.
	SyntaxError = ast.SyntaxError
	// UnsupportedError names a well-formed construct that cannot be enforced exactly.
	UnsupportedError = ast.UnsupportedError
	// LimitError says which bound a grammar exceeds.
	LimitError = ast.LimitError
	// RejectError says that bytes or a token do not fit the grammar.
	RejectError = ast.RejectError
)

// SchemaOptions says how SchemaWith reads a schema.
type SchemaOptions = jsonschema.Options

// Tag is a part of a text that a grammar describes, between a begin and an end.
type Tag = tags.Tag

// TagOptions says how tags are placed in the text around them.
type TagOptions = tags.Options

// GBNF parses llama.cpp's grammar notation; package gbnf describes it.
func GBNF(source string) (*Grammar, error) { return gbnf.Parse(source) }

// Schema returns the grammar of the JSON texts that a JSON Schema allows; see package
// jsonschema.
func Schema(source []byte) (*Grammar, error) { return jsonschema.Parse(source, SchemaOptions{}) }

// SchemaWith is like Schema, with options.
func SchemaWith(source []byte, o SchemaOptions) (*Grammar, error) { return jsonschema.Parse(source, o) }

// Regex returns the grammar of the texts that a regular expression matches as a whole. Package
// regex lists the constructs that it may use.
func Regex(source string) (*Grammar, error) { return language.Regex(source) }

// Choices returns the grammar of the given texts and no others. It returns a *SyntaxError if
// there are none or one is not UTF-8, and a *LimitError if they are too long together.
func Choices(texts []string) (*Grammar, error) { return ast.Choices(texts) }

// Tags returns the grammar of free text with tags in it, for example a model's tool calls: free
// text that contains no trigger, then what the tags allow, then free text again. It returns a
// *SyntaxError for tags that contradict the options, and a *LimitError if they are too large.
func Tags(list []Tag, o TagOptions) (*Grammar, error) { return tags.New(list, o) }

// Structure returns the grammar of a text composed of parts that JSON describes; package tags
// lists the parts.
func Structure(source []byte) (*Grammar, error) { return tags.ParseStructure(source) }

// Compile prepares g for matching, and for masks over v; without a v a Matcher only
// follows bytes. It returns an *UnsupportedError for left recursion or an empty
// language, and a *LimitError if g exceeds the bounds of package automaton.
func Compile(g *Grammar, v *Vocabulary) (*Compiled, error) { return mask.Compile(g, v) }

// warmup holds what most grammars hold: bounded and free JSON strings, and a format.
const warmup = `{
	"type": "object",
	"properties": {
		"a": {"type": "string", "maxLength": 64},
		"b": {"format": "email"},
		"c": {"type": "string"}
	}
}`

// NewVocabulary takes the bytes of every id and the ids that end a text. Ids without
// bytes never fit a grammar, and neither do the bytes of ids that end a text. A control
// token has no bytes, or those of ControlBytes for grammars that ask for it by name. The
// caller must not change the slices afterwards.
func NewVocabulary(tokens [][]byte, ends ...int32) (*Vocabulary, error) {
	v, err := mask.NewVocabulary(tokens, ends...)
	if err != nil {
		return nil, err
	}
	g, err := Schema([]byte(warmup))
	if err != nil {
		return nil, err
	}
	return v, v.Learn(g)
}

// ControlBytes represents a control token in a vocabulary's list of tokens. It fits only
// where a grammar asks for the token by its spelling, never where it asks for text.
func ControlBytes(spelling string) []byte { return ast.ControlBytes(spelling) }

// ControlSpelling returns the spelling of the control token that ControlBytes
// represented as token; ok is false for any other bytes.
func ControlSpelling(token []byte) (spelling string, ok bool) { return ast.ControlSpelling(token) }

// Allowed counts the tokens of a mask.
func Allowed(words []uint64) int { return mask.Allowed(words) }
