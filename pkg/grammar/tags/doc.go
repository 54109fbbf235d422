// Package tags builds grammars for text with structured parts in it: Tags for free text
// with tool calls, Structure for the structural-tag JSON of which tool-call formats are
// composed.
package tags
