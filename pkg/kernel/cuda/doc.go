// Package cuda computes on NVIDIA cards. Its kernels are PTX text (*.ptx) that pkg/kernel/cuda/gen writes; Kernels
// lists them with their parameters.
package cuda
