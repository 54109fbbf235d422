// Package lamina splits a large language model into services.
//
// # The life of a token
//
// A client calls the router (services/router), over gRPC or the HTTP API, which is
// compatible with OpenAI's. The router asks the tokenizer (services/tokenizer) for
// token ids, admits the request, and puts its sequence into the running batch of a
// pipeline: a chain of layer shards (services/shard) that holds the whole model.
// Each step is one batch frame to the first stage. A stage runs its layers with its
// own KV cache and pushes the hidden states to the next stage. The last stage pushes
// logits to the sampler (services/sampler), which picks by (seed, position) and sends
// the token to the router. No hop goes back through the router: N stages cost N+2
// one-way hops per token.
//
// # The life of a gradient
//
// The trainer (services/trainer) fixes a run: the order of the data, the seed, and a
// global batch of S slots. It drives the slots through chains of the same shards by a
// schedule (pkg/schedule). Activations go forward and gradients come back between
// neighbours. Replicas exchange the gradients of their slots over NATS (pkg/gradbus),
// every stage sums them over one fixed binary tree, and the optimizer steps. The result
// is a Hugging Face folder that the shards can serve.
//
// # Where to start
//
// ARCHITECTURE.md describes the whole. proto/lamina/shard/v1/shard.proto is the central
// protocol. cmd/lamina is the only program besides the examples.
package lamina
