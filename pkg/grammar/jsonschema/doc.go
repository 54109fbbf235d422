// Package jsonschema compiles a JSON Schema to a Grammar of the JSON texts that it allows.
//
// The work goes in three steps. A document (document.go) finds all subschemas and what
// references name. The expander (expand.go, own.go, apply.go, negate.go) turns the constraint
// on one value, to match some subschemas and not to match others, into a union of shapes: sets of
// values of one JSON type with every constraint on them, intersected pairwise. The builder
// (builder.go and the files named after types) writes one rule for every distinct constraint;
// constraints on members and items become rules of their own, so that recursion in the schema is
// recursion in the grammar.
//
// docs/json-schema.md lists what is accepted, what is refused and why.
package jsonschema
