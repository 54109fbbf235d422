// Package kernel declares the operations a language model needs, each with its
// backward, once and with shapes. Implementations are whole sets: kernel/ref is
// the plain oracle, kernel/cpu the fast one; kernel/kerneltest holds one
// contract suite that every set passes.
//
// # Exactness
//
// A set computes every output element by one reduction order, fixed by the
// operation's shape alone: never by the batch around it, by the number of
// threads, or by whether the call was a matrix-vector or a matrix-matrix one.
// Row t of a result over T rows equals, bit for bit, the result over row t
// alone. That is what lets a mesh split, batch and replay work freely. Two sets
// (or one set on two instruction families) may differ from each other; Class
// names the family within which bits are equal.
//
// # Buffers
//
// Operations read and write buffers of the set's device (Buffer, Memory). The host sees their elements
// only through Upload, Download and Host; ids, positions and row numbers are host slices.
//
// # Misuse
//
// A shape that does not fit is a programmer's error: the kernel panics with a
// message that names the operation and both sizes. The shard service recovers
// once per stream.
//
// # Letters
//
// T rows (time), C width, H query heads, K key/value heads, D head size, F
// feed-forward width, V vocabulary, N outputs and I inputs of a matrix. All
// slices are row-major; x[T,C] has len T*C. Grad operations ADD into their d…
// results, and the caller zeroes them, unless they say that they overwrite. A nil
// result slice is skipped.
package kernel
