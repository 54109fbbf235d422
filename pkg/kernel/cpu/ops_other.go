//go:build !amd64

package cpu

// native returns the machine's own loops, or false.
func native() (ops, bool) { return ops{}, false }
