// Package automaton runs a grammar over bytes.
//
// Compile turns the rules into a Program of small instructions, one piece for each rule.
// A Machine explores it lazily. Inside one rule it is a finite automaton whose states, sets
// of places in the program, are made when a byte first leads to them. A rule that calls
// another pushes where to go on onto a stack; stacks are shared and merged as in generalised
// LR parsing, so that many ways to read the text cost no more than one.
//
// A Position is every way to have read the text so far: pairs of a state and the stacks
// below it. Equal positions are one object and nothing changes in place, so that going back
// is keeping an old pointer, and what is known of a position (masks) is known wherever a
// text reaches it again.
//
// Arrays whose items must differ need one more thing, the items so far: see memory.go.
// All work is counted, and an operation that exceeds its credit fails with an
// *ast.LimitError.
package automaton
