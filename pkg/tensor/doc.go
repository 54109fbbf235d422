// Package tensor defines the element types of tensors, plain and block-quantised, and
// converts elements between types and host bytes.
//
// It dequantises rows bit for bit as the formats' authors do. It does not
// multiply, allocate devices, read files or talk to a network: kernels
// (pkg/kernel), file formats (pkg/weights) and the wire (pkg/wire) build on it.
//
// It imports the standard library alone.
package tensor
