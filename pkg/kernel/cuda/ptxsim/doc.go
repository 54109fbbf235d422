// Package ptxsim runs CUDA kernels without a GPU. It interprets a subset of PTX, the one that kernels for sm_80 with
// tensor cores need, and checks every access, so that a kernel that runs here without a fault is free of the errors
// that a GPU answers with a wrong number now and then. It is a test tool: it is neither fast nor a model of time.
//
// A caller makes a Device, allocates global memory, loads a module and launches its kernels. Addresses of global
// memory are addresses of Go memory. The source of the semantics is NVIDIA's "PTX ISA".
//
// # Execution
//
// A warp is 32 threads in lockstep. Where a branch diverges, the warp runs one side and then the other up to the
// immediate post-dominator of the branch. This is the earliest point at which all lanes must meet again, however the
// blocks of the code are laid out; the rule of the lowest program counter would depend on the layout. A device since
// sm_70 may run the sides in turns. Code that needs this, in which lanes of one warp wait for one another, runs into
// the limit of steps, or into a fault if they wait in a .sync instruction.
//
// The warps of a block take turns, and blocks run on several goroutines, unless the kernel has atomic operations on
// global memory: then they run in order. A launch without a race between blocks always gives the same bits.
// Approximate instructions (ex2.approx and others) are rounded from float64. mma adds in the order of k in float64 and
// rounds once. Both differ from a device in the last places, within what PTX allows.
//
// # Checks
//
// A launch ends with a *Fault, which names the kernel, the line, the instruction, the block and the thread, at
//   - an access outside the allocations, shared memory, local memory or constants, or one that is not aligned;
//   - a read of a register, a predicate or shared memory that nothing wrote;
//   - a race: two accesses to the same bytes, of which one writes, by threads of a block without a barrier or
//     bar.warp.sync between them, or by two blocks of one launch. Atomic operations do not race with each other, and
//     order nothing. Shuffles, votes and lockstep order nothing either, because PTX does not say that they do;
//   - a write to what ld.global.nc reads in the same launch;
//   - an access to bytes of a cp.async that its thread has not waited for;
//   - a barrier that not all threads reach, and a .sync instruction without all of its members;
//   - a division of integers by zero, and a shuffle from a lane that does not take part;
//   - more instructions than the limit of a launch.
//
// The race checks treat the bytes of the smallest access of the kernel, at most 4, as one. An allocation is surrounded
// by 256 bytes that belong to no other, so that an index a little out of range never hits a neighbour.
package ptxsim
