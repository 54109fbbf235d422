// Package pyjson reads JSON files as Python programs write them, which is how models'
// configurations come: with a byte-order mark, and with the numbers Infinity,
// -Infinity and NaN, which JSON lacks. It also bounds how deep values nest, since
// decoders of nested types take time for every level.
package pyjson

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// MaxDepth is how deep values may nest. Model files nest less than ten deep.
const MaxDepth = 64

// Unmarshal is json.Unmarshal of Plain(text) for values that nest at most MaxDepth deep.
func Unmarshal(text []byte, into any) error {
	if at := tooDeep(text); at >= 0 {
		return fmt.Errorf("values nest more than %d deep at byte %d", MaxDepth, at)
	}
	return json.Unmarshal(Plain(text), into)
}

// Plain returns text without a byte-order mark and with quotes around Infinity,
// -Infinity and NaN, so that any JSON decoder takes it. Such a number where a decoder
// wants one is an error of that decoder.
func Plain(text []byte) []byte {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	if !bytes.Contains(text, []byte("Infinity")) && !bytes.Contains(text, []byte("NaN")) {
		return text
	}
	words := [][]byte{[]byte("-Infinity"), []byte("Infinity"), []byte("NaN")}
	out := make([]byte, 0, len(text)+16)
	quoted := false
next:
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\' && i+1 < len(text):
			out = append(out, c)
			i++
		case c == '"':
			quoted = !quoted
		case !quoted:
			for _, word := range words {
				if bytes.HasPrefix(text[i:], word) {
					out = append(append(append(out, '"'), word...), '"')
					i += len(word) - 1
					continue next
				}
			}
		}
		out = append(out, text[i])
	}
	return out
}

// tooDeep returns where values nest too deep, or -1.
func tooDeep(text []byte) int {
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			if depth++; depth > MaxDepth {
				return i
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return -1
}
