// Package language is sets of strings as deterministic automata (DFAs) over characters:
// built of regular expressions, of lists of strings or by exploring states, and combined by
// intersection, union and difference. A DFA becomes an expression of a grammar by Graph.
//
// It serves what a grammar of rules cannot express: both of two patterns, all strings but
// some, a pattern of bounded length. The number of states is bounded everywhere; a set
// that needs more is an *ast.LimitError.
package language
