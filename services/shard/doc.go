// Package shard is the service that owns layers: it holds ranges of models with
// their KV caches and runs them in pipelines (infer.go, stage.go), and it trains
// ranges (train.go, exchange.go). proto/lamina/shard/v1 tells both conversations.
//
// A stage pushes its result straight to the next one; the router never sees a
// hidden state. Kernels panic on a shape that cannot be; that is recovered once a
// stream and ends it with INTERNAL. DESIGN.md tells who owns which goroutine.
package shard
