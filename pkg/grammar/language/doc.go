// Package language implements sets of strings as deterministic automata (DFAs) over characters,
// built from regular expressions, of lists of strings or by exploring states, and combined by
// intersection, union and difference. A DFA becomes an expression of a grammar by Graph.
//
// It expresses what the rules of a grammar cannot: strings that match two patterns, all strings
// except some, a pattern of bounded length. The number of states is bounded everywhere; a set
// that needs more is an *ast.LimitError.
package language
