// Package lamina takes a large language model apart into services.
//
// # The life of a token
//
// A client asks the router (services/router), over gRPC or the OpenAI-style HTTP
// face. The router has the tokenizer (services/tokenizer) turn the text into ids,
// admits the request, and puts its sequence into the running batch of a pipeline:
// a chain of layer shards (services/shard) that covers the whole model. Each step
// is one batch frame to the first stage. A stage runs its layers over its own KV
// cache and pushes the hidden state to the next; the last stage pushes logits to
// the sampler (services/sampler), which picks by (seed, position) and answers the
// router. No hop goes back through the router: N stages cost N+2 one-way hops.
//
// # The life of a gradient
//
// The trainer (services/trainer) fixes a run: data order, seed, a global batch of
// S slots. It drives the slots through chains of the same shards by a schedule
// (pkg/schedule); activations go forward and gradients come back between
// neighbours. Slots of several replicas meet on NATS as gradient events
// (pkg/gradbus), every stage folds them over one fixed binary tree, and the
// optimizer steps. What comes out is a Hugging Face folder that the shards serve.
//
// # Where to go on
//
// ARCHITECTURE.md is the map. proto/lamina/shard/v1/shard.proto is the heart.
// cmd/lamina is the only program.
package lamina
