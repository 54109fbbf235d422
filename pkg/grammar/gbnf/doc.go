// Package gbnf parses GBNF, the grammar notation of llama.cpp.
package gbnf
