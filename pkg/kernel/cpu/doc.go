// Package cpu is the fast kernel set for processors: AMX, AVX-512 (VNNI, BF16), AVX2 and
// plain Go, chosen at run time, all three with the same bits. The assembly is written
// by the generator in gen.
//
// Quantised weights are multiplied in quantised form: Pack interleaves the blocks of 16
// rows, activations are rounded to bytes in blocks of 32, and the products of a block are
// summed in integers, so no instruction can round them differently. 16-bit floats meet
// activations rounded to bfloat16. Matrices of fewer than 512 inputs, and all that
// training touches, are float32.
//
// Every sum has one order, given by the shape of the weights alone: not by how many rows
// share a pass, by threads or by the family of instructions. DESIGN.md says which and
// what that costs.
package cpu
