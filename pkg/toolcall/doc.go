// Package toolcall parses a model's output into the answer, the reasoning before it and
// the tool calls. It is the inverse of the part of a chat template that writes an
// assistant's turn.
//
// # Order of use
//
// Detect names the Format of a model from its chat template. New makes a Parser
// for one generation; Push takes text as it arrives and Flush ends it. Both return a
// Delta, the part that has become certain. The caller adds deltas up: it concatenates
// content and reasoning, and the arguments of each call by the call's index.
//
// Format.Structure works in the other direction: it returns a grammar for pkg/grammar
// whose texts the Parser reads as calls of the offered tools with valid arguments. A
// family's grammar (spellings.go, native.go, channels.go) and its parser states have to
// agree; structure_test.go checks that with random texts.
//
// # Guarantees
//
// The deltas of a text add up to the same result however the text is split. Content never
// contains a part of a marker: text that may still become a marker is held back until it
// cannot, or until the text ends. White space between the parts of an answer belongs to
// the format and is dropped.
//
// A call's name is reported first and whole, its arguments as they arrive. A call that
// breaks off before its name is known is reported as content; if the model was stopped
// there (for example by max_tokens), it is dropped, and so is an incomplete marker.
//
// A Parser is a function of the text: no clock, no randomness, no goroutine. It is
// not safe for concurrent use.
package toolcall
