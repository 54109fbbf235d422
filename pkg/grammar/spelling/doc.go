// Package spelling builds byte automata of single characters: the byte sequences that spell a
// character of a set in an encoding, for example UTF-8 or the inside of a JSON string with its
// escapes. No spelling is a prefix of another, so that the end of a character is always known.
package spelling
