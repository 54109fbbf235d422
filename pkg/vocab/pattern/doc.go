// Package pattern matches the regular expressions that tokenizers cut text by,
// in time linear in the text.
//
// It reads the dialect that tokenizer files are written in: Oniguruma's and
// Rust's common part, with \p classes, class intersection, scoped case folding,
// lookahead, one-character-wide or fixed-width lookbehind, lazy and possessive
// repeats and atomic groups. There are no back references. A match is the one a
// backtracking engine finds: leftmost, and by the order of alternatives.
//
// The engine walks a program depth first and remembers every choice that failed
// at a position, for the whole text and not for one match alone, so no choice is
// tried twice (after D. Michael's and the Go standard library's bit-state
// matchers). A text of n bytes and a pattern of c choices cost at most n·c steps
// and n·c bits.
package pattern
