// Package mask follows texts through a compiled grammar and finds the tokens that may come
// next: the Vocabulary's trie, token masks of states and positions, forced text, and the
// shortest completion.
//
// A mask is found by walking the trie of all tokens along the automaton. Three things make
// that cheap. Masks belong to states and are shared by all positions above which they hold;
// only tokens that leave the state's rule are looked at again for what is open below. Where
// all characters of a large class lead to the same next state, as inside a JSON string, the
// tokens are taken by the number of such characters they begin with (runs), learnt once for
// a vocabulary. And states that differ only in counts that no token can exhaust share one
// mask.
package mask
