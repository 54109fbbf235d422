// Package shard is the service that owns layers. It holds ranges of models with their KV
// caches and computes them in pipelines (infer.go, stage.go, downstream.go), and it trains
// ranges (train.go, trainstep.go, exchange.go, gradient.go). The conversations are
// specified in proto/lamina/shard/v1; DESIGN.md is an overview.
//
// A stage sends its result straight to the next one; the router never sees a hidden state.
// An entry that cannot be computed is refused by itself and the rest of its batch goes on. A
// kernel panics on impossible shapes, which is a bug: the panic is recovered in the stream's
// compute goroutine and ends the stream with INTERNAL.
package shard
