// Package charset is sets of Unicode code points, as the character classes of grammars and
// regular expressions are, and partitions of all code points into the classes that a list
// of sets tells apart. Surrogates are in no set. Sets never change; the functions return
// new ones.
package charset
