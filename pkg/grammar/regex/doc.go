// Package regex parses regular expressions to a syntax tree. It is the only parser of them
// here: grammars (guided_regex, the pattern keyword of JSON Schema) and the pre-tokenizers
// of vocabularies share it.
//
// A Dialect says what a construct means. Where a caller cannot enforce a construct exactly
// the parser refuses it by name with an *ast.UnsupportedError; malformed text is an
// *ast.SyntaxError with the character. Nothing is matched here.
package regex
