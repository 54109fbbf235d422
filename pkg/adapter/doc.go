// Package adapter reads and writes low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) in the layout of
// Hugging Face's PEFT: a folder with adapter_config.json and adapter_model.safetensors.
//
// An adapter adds to a matrix W[N,I] the product scale·B·A of B[N,r] and A[r,I], so that a layer computes
// W·x + scale·B·(A·x). scale is alpha/r, or alpha/sqrt(r) with rsLoRA (arXiv 2312.03732). With DoRA (arXiv
// 2402.09353) every row of W + scale·B·A is also scaled to a trained length, its magnitude. Modules that
// modules_to_save lists are replaced as a whole.
//
// Modules are named as transformers names them, such as "model.layers.0.self_attn.q_proj". The tensors of an
// adapter have the name of their module and one of the Part endings; in files, "base_model.model." comes first.
// Config.Selects says which modules an adapter is for, as PEFT decides it.
//
// The package does not know models: pkg/model checks that the modules and sizes of an adapter are those of a
// model, and computes with them. Errors are a *FieldError or *UnsupportedError, which name the file and field.
package adapter
