// Package toolloop decides how a chat goes on whose model calls tools that the server runs. It is the core of the loop
// without the model, the tools and the clock: turns go in, calls to run and messages come out.
//
// # Order of use
//
// New begins a loop for one request. For each turn of the model, Turn says which calls to run; if there are none, the
// answer is complete. Otherwise the caller runs the calls and passes their results to Results, which returns the
// messages that the next turn sees. Before each turn, Offers says whether the tools are offered to the model.
//
// # Guarantees
//
// A loop ends: Rounds bounds the turns that may call tools, and the turn after the last one is not offered any, so
// that the model answers from what it has. Calls, ResultBytes and Bytes bound what the tools may do and say. Calls of
// tools that the client runs end the answer at once, and calls of the server's tools in the same turn are not run.
//
// Whatever a tool returns reaches the model as data, between two lines with a mark that the text cannot contain
// (Frame). Sources get numbers in the order in which they come, and Citations finds the numbers in the answer.
//
// The package is pure: no clock, no I/O, no goroutine. A Loop is not safe for concurrent use. The caller bounds the
// time of calls.
package toolloop
