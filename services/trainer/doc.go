// Package trainer is the service that runs pre-training over layer shards. A run is
// fixed by its manifest (manifest.go): model, data, seed, global batch as slots,
// steps. How many stages and replicas compute it changes its speed and not a bit of
// its result.
//
// A step: every chain of shards is sent its slots (chain.go); the stages run them,
// meet on the gradient bus and report the norms of the whole gradient; the trainer
// adds losses and norms in a fixed order, works out clipping and learning rate, and
// has every stage step its optimizer. Replicas must then agree on the digest of
// their weights. The data of step n is a function of (seed, n), so the cursor is the
// step, and a checkpoint (checkpoint.go) is weights, moments and step.
//
// When a shard is lost the step ends everywhere, chains are built anew over the
// shards that live, and the run goes on from its last committed checkpoint.
package trainer
