// Package model turns weights into stages. A Spec describes a model as data: its layers in
// order, the settings of each and the names of its tensors. A Stage is a contiguous range
// of those layers, with the embedding if it starts at layer 0 and the final norm and head
// if it ends at the last; a whole model is the stage [0, L). It runs forward over a paged
// cache (inference) and forward and backward over whole sequences (training), on any
// kernel set.
//
// Every architecture has one file (llama.go, gemma.go, gpt2.go, ...) that builds the Spec
// from config.json or GGUF metadata; DESIGN.md says how to add one. Open reads what a model
// folder or file says before any weight is touched; Load touches the stage's own tensors
// alone.
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
// (Name.Param). A head that shares the embedding's weight is listed as lm_head.weight with
// TiedTo set: its gradient is kept apart from the embedding's, and whoever steps the weight
// adds the two, embedding first, so that the sum has the same bits when the two ends live
// on different hosts. A stage that holds both ends has one slice for both weights: it is
// stepped once. Which stage holds, steps and stores a parameter is decided here:
// Spec.Holders, Stage.Stepped, Stage.TiedEnd, Params.FoldTied and Param.Tied.
//
// A matrix is [N,I] here, row n the weights of output n. Files may hold it in another
// form (transposed, fused, stacked, interleaved): only loading and ExportHF know that.
package model
