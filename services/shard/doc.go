// Package shard is the service that holds a model's layers. It holds spans of layers with their KV
// caches and computes them in pipelines (infer.go, stage.go, downstream.go), and it trains spans
// (train.go, trainstep.go, exchange.go, gradient.go). proto/lamina/shard/v1 specifies its streams,
// and DESIGN.md is an overview.
//
// A stage sends its result straight to the next one; the router never sees a hidden state. If an
// entry cannot be computed, only that entry is refused and the rest of its batch goes on. A kernel
// panics on impossible shapes, which is a bug. The panic is recovered in the stream's compute
// goroutine and ends the stream with INTERNAL.
package shard
