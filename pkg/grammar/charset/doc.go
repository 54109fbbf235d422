// Package charset implements sets of Unicode code points, such as the character classes of
// grammars and regular expressions, and partitions of all code points into the classes that a
// list of sets distinguishes. No set contains surrogates. Sets are immutable; the functions
// return new ones.
package charset
