// Package model turns weights into stages. A Spec describes a model as data: its layers in
// order, the settings of each and the names of its tensors. A Stage is a contiguous range
// of those layers, with the embedding if it starts at layer 0 and the final norm and head
// if it ends at the last; a whole model is the stage [0, L). It runs forward over a paged
// cache (inference) and forward and backward over whole sequences (training), on any
// kernel set.
//
// Every architecture has one file (llama.go, gemma.go, gpt2.go, ...) that builds the Spec from
// config.json or GGUF metadata; DESIGN.md says how to add one. Open reads the metadata of a model
// folder or file and no weights. Load reads only the stage's own tensors.
//
// The package knows nothing of services, streams or sessions. A Stage is used by
// one goroutine at a time.
//
// # Letters
//
// B batch (sequences), T time (rows, positions), C width of the hidden state,
// H query heads, K key/value heads, D head size, F feed-forward width, E experts,
// V vocabulary, L layers. Activations are row-major: hidden is [T,C], logits [T,V].
//
// # Names
//
// Parameters are named as transformers names them in memory, whatever file they came from
// (Name.Param). A head that shares the embedding's weight is listed as lm_head.weight with TiedTo
// set: its gradient is kept separate from the embedding's. The code that steps the weight adds the
// two, embedding first, so that the sum has the same bits if the two uses of the weight are on
// different hosts. A stage that holds both has one slice for both and steps it once. This package
// decides which stage holds, steps and stores a parameter: Spec.Holders, Stage.Stepped,
// Stage.TiedEnd, Params.FoldTied and Param.Tied.
//
// A matrix is [N,I] in this package: row n holds the weights of output n. Files may hold it in
// another form (transposed, fused, stacked, interleaved): only loading and ExportHF know that.
package model
