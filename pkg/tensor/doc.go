// Package tensor defines the element types of tensors, plain and block-quantised, and converts elements between types
// and host bytes.
//
// It dequantises rows to the same bits as the decoders of the formats' authors. It does not multiply, allocate device
// memory, read files or use the network: kernels (pkg/kernel), file formats (pkg/weights) and the wire format
// (pkg/wire) build on it. It imports only the standard library.
package tensor
