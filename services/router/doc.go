// Package router is the service that clients talk to. It watches discovery, connects shards into
// pipelines (inventory.go, pipeline.go), runs each pipeline's continuous batching (scheduler.go),
// and runs requests on the pipelines (generate.go). The HTTP API and the console are packages below
// this one. DESIGN.md is an overview.
//
// A pipeline is an actor: one goroutine owns its sequences and batches, and everything else
// sends it events. A request's own goroutine keeps the token log, so when a pipeline dies
// the request is replayed on another one and its client sees a pause (generate.go,
// refusal.go). It also decodes the tokens (text.go), without a hop to a tokenizer.
//
// Speculative decoding verifies draft tokens in the batches of the model (pkg/sched). An n-gram
// lookup in the sequence's own log or a draft model's pipeline (draft.go, draftvocab.go) proposes
// them. They never change a text.
package router
