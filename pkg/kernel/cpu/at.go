package cpu

import "unsafe"

// at returns the address of element i after p, which must exist: the garbage collector does not
// allow a pointer past the end of a slice.
func at(p *float32, i int) *float32 { return (*float32)(unsafe.Add(unsafe.Pointer(p), 4*i)) }
