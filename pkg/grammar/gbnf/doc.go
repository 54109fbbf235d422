// Package gbnf parses GBNF, llama.cpp's grammar notation, to a Grammar.
package gbnf
