// Package cpu is the fast kernel set for processors. Its inner loops are AVX-512
// assembly (kernels_amd64.s, written by the generator in gen), with plain Go of the
// same order where a machine has none; which one is chosen at run time.
//
// Every dot product is 16 lanes of fused multiply-adds in index order, folded in one
// way, whatever the tile around it, so a matrix-vector product equals the row of a
// matrix-matrix one bit for bit. Quantised rows are decoded to float32 in cache and
// multiplied by the same loops: a quantised matrix gives the bits of its decoded
// one. DESIGN.md says why and what it costs.
package cpu
