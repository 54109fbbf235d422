// Package spelling is byte automata of single characters: which byte sequences spell a
// character of a set in an encoding, such as UTF-8 or the inside of a JSON string with its
// escapes. No spelling is the beginning of another, so that the end of a character is
// always known.
package spelling
