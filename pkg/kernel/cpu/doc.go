// Package cpu is the fast kernel set for CPUs. It has four implementations, which are chosen at run time and give the
// same bits: AMX, AVX-512 (with VNNI and BF16), AVX2 and plain Go. The program in gen generates the assembly.
//
// Quantised weights are multiplied in quantised form. Pack interleaves the blocks of 16 rows, activations are rounded
// to bytes in blocks of 32, and the products of a block are summed in integers, which no instruction rounds.
// Weights of 16-bit floats are multiplied with activations rounded to bfloat16. Matrices of fewer than 512 inputs are
// multiplied in float32, and so are all products of training, unless the set was made by BFloat16.
//
// Every sum has one order, which depends on the shape of the weights alone and not on the number of rows in a pass,
// the number of threads or the instructions. DESIGN.md describes these orders and their cost.
package cpu
