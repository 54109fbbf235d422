// Package trainer is the service that runs pre-training over layer shards. The manifest of
// a run (manifest.go) fixes its model, data, seed, global batch (as slots) and steps. The
// number of stages and replicas changes the speed of a run, but no bit of its result.
//
// In a step the trainer sends every chain of shards its slots (chain.go). The stages compute
// them, exchange gradients on the gradient bus and report the norms of the whole gradient.
// The trainer adds losses and norms in a fixed order, computes clipping and learning rate,
// and tells every stage to step its optimizer. Replicas must then agree on the digest of
// their weights. The data of step n is a function of (seed, n), so a checkpoint
// (checkpoint.go) holds weights, moments and the step, and no data cursor.
//
// A run reads texts (data.go) or token data (dataset.go). ledger.jsonl lists the samples of every committed
// step (ledger.go), and samples.go lets the stages continue prompts while the run goes on.
//
// When a shard is lost, the step ends on all stages. The trainer rebuilds the chains over
// the live shards and continues the run from its last committed checkpoint.
package trainer
