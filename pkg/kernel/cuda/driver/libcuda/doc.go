// Package libcuda is the driver of NVIDIA's GPUs. It opens the driver's library (libcuda.so.1) when the program runs,
// and needs no toolkit and no C compiler. Usage comes from NVIDIA's management library, if that is there.
//
// It is built with the tag cuda on linux, for amd64 and arm64, because a program that opens a library is linked
// dynamically. cmd/lamina alone imports it.
//
// The driver's initialisation installs signal handlers that run on the stack of the goroutine that a signal hits. Go
// ends a program whose handlers do that. Open therefore reads all signal handlers before it and puts them back
// after it.
package libcuda
