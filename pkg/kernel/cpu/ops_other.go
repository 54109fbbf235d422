//go:build !amd64

package cpu

// native returns the loops that the machine can run besides the plain ones.
func native() []ops { return nil }
