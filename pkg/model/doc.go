// Package model turns weights into stages. A Stage is a contiguous range of a
// model's layers, with the embedding if it starts at layer 0 and the final norm and
// head if it ends at the last; a whole model is the stage [0, Layers). It runs
// forward over a paged cache (inference) and forward and backward over whole
// sequences (training), on any kernel set.
//
// One file an architecture (llama.go, gpt2.go) reads its hyper-parameters and names
// its tensors; the block they share is in forward.go and train.go. What a model
// folder or file says is read by Open before any weight is touched; Load touches
// the stage's own tensors alone.
//
// The package knows nothing of services, streams or sessions. A Stage is used by
// one goroutine at a time.
//
// # Letters
//
// B batch (sequences), T time (rows, positions), C width of the hidden state,
// H query heads, K key/value heads, D head size, F feed-forward width,
// V vocabulary, L layers. Activations are row-major: hidden is [T,C], logits [T,V].
//
// # Names
//
// Parameters are named as in the architecture's Hugging Face safetensors file,
// whatever file they came from. A head that shares the embedding's weight is listed
// as lm_head.weight with TiedTo set: its gradient is kept apart from the
// embedding's, and whoever steps the weight adds the two, embedding first, so that
// the sum has the same bits when the two ends live on different hosts. A stage that
// holds both ends has one slice for both weights: it is stepped once.
//
// A matrix is [N,I] here, row n the weights of output n; GPT-2's files hold the
// attention's and feed-forward's transposed (Conv1D), and only loading and
// ExportHF know that.
package model
