// Package pattern matches the regular expressions that tokenizers split text by, in
// time linear in the text.
//
// It reads the dialect of tokenizer files, the common part of Oniguruma and Rust's
// regex: \p classes, class intersection, scoped case folding, look-ahead, fixed-width
// look-behind, lazy and possessive repeats and atomic groups. There are no back
// references. A match is the one that a backtracking engine finds: the leftmost, by
// the order of alternatives.
//
// The engine runs a program depth first and records every choice that failed at a
// position. It keeps these records for the whole text, not for one match alone, so no
// choice is tried twice at a position (compare the bit-state matcher of the Go standard
// library). A text of n bytes and a pattern with c choices take at most n·c steps and
// n·c bits.
package pattern
