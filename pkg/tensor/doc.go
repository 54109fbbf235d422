// Package tensor is the vocabulary of numbers that every other package speaks:
// element types (plain and block-quantised), shapes, and views on host bytes.
//
// It decodes a quantised row to floats, bit for bit as the format's author
// does, because what a block means is a property of its type. It does not
// multiply, allocate devices, read files or talk to a network: kernels
// (pkg/kernel), file formats (pkg/weights) and the wire (pkg/wire) build on it.
//
// It imports the standard library alone.
package tensor
