// Package ast is what the notations of package grammar have in common: a Grammar is rules
// over characters, each with an expression as its body. The front ends (gbnf, jsonschema,
// language, tags) build it, package automaton compiles it.
//
// An expression says which characters come in which order, and an Encoding says how each
// character is spelled in bytes: as UTF-8, or inside a JSON string with or without the
// choice of escapes. The constructors (Seq, Alt, Repeat, ...) simplify as they build, so
// that an expression that cannot match anything is always OpFail.
//
// The package also holds the errors that every front end returns and the bounds on what a
// source may ask for.
package ast
