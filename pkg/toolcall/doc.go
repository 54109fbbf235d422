// Package toolcall reads what a model writes back into what it meant: the answer,
// the reasoning before it and the calls of tools. It is the inverse of the part of
// a chat template that writes an assistant's turn.
//
// # Order of use
//
// Detect names the Format of a model from its chat template. New makes a Parser
// for one generation; Push takes text as it comes, Flush ends it. Each returns a
// Delta: what became certain. Deltas are added up by the caller: contents and
// reasonings are joined, arguments are joined for each call's index.
//
// Format.Structure is the way back: the texts that a model may write so that what the
// Parser reads are calls of offered tools with valid arguments, as JSON for pkg/grammar.
// A family's spelling there (spellings.go, native.go, channels.go) and its states here
// are one contract, which structure_test.go holds to by random texts.
//
// # What holds
//
// The deltas of a text add up to the same whatever pieces it comes in. No piece of
// a marker is ever part of a content: text that may still become a marker is held
// back until it cannot, or until the text ends. White space between the parts of an
// answer belongs to the format and is left out.
//
// A call's name comes whole and first, its arguments as they are written. A call
// that breaks off before its name is known is content, as it stands; where the
// model was cut off it is dropped, as is half a marker.
//
// A Parser is a function of the text: no clock, no randomness, no goroutine. It is
// not safe for concurrent use.
package toolcall
