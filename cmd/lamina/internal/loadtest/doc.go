// Package loadtest implements the command `lamina loadtest`. It sends streamed requests to any server
// with OpenAI's HTTP API (chat completions or completions, server-sent events) and measures what a
// user sees: time to first token, inter-token latency, stalls, errors by class, refusals with their
// Retry-After, and whether the same request always gets the same text.
//
// There are two kinds of load. A closed loop has a fixed number of streams: each sends its next
// request when its last one has ended. An open loop sends requests at the times of a Poisson process,
// whether or not earlier ones have ended; latencies then count from the planned time of a request, so
// that a slow server cannot hide its queue by slowing the client down.
//
// Everything random (arrival times, tenants, sampling seeds) follows from Config.Seed. Memory is
// bounded by the number of streams and of different requests, not by the duration: latencies are kept
// in sketches with a relative error of 0.5 %.
//
// Run measures and returns a Report. The package knows nothing of Lamina but the tenant header and how
// streams are resumed, and writes no logs. `lamina chaos` uses it to put load on a fleet that it disturbs.
package loadtest
