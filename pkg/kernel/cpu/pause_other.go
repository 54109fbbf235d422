//go:build !amd64

package cpu

import "runtime"

// pause waits a moment.
func pause() { runtime.Gosched() }
