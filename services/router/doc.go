// Package router is the service that clients talk to. It watches discovery, connects shards
// into pipelines (inventory.go, pipeline.go), runs each pipeline's continuous batching
// (scheduler.go), and runs requests on the pipelines (generate.go). The HTTP face and the
// console are packages below this one. DESIGN.md is an overview.
//
// A pipeline is an actor: one goroutine owns its sequences and batches, and everything else
// sends it events. A request's own goroutine keeps the token log, so when a pipeline dies
// the request is replayed on another one and its client sees a pause (generate.go,
// refusal.go). It also decodes the tokens (text.go), without a hop to a tokenizer.
//
// Speculative decoding verifies draft tokens in the batches of the model (speculate.go).
// They are proposed by n-grams of the sequence's own log or by a draft model's pipeline
// (draft.go, draftfit.go), and never change a text.
package router
