// Package export writes models to GGUF files and Hugging Face folders, and quantises them on the way.
//
// A model comes from a Hugging Face folder or from a GGUF file. GGUF to GGUF keeps the metadata and works for any
// architecture; the other directions need one that pkg/model knows. A Recipe says which type each tensor gets. Its
// rules and names are those of llama.cpp's llama-quantize, so that files have the sizes that users expect.
//
// Tensors are read, quantised and written one after the other: the memory is bounded by the largest tensor (one
// expert of it where experts are stacked), not by the model. Rows are quantised on all processors and the bytes do
// not depend on their number. A file is written under a temporary name and renamed when it is complete.
//
// The package does not know how blocks are quantised (pkg/quant), how files are laid out (pkg/weights) or what an
// architecture's tensors are called (pkg/model).
package export
