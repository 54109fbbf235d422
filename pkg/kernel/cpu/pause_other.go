//go:build !amd64

package cpu

import "runtime"

// pause lets other goroutines run while the caller spins.
func pause() { runtime.Gosched() }
