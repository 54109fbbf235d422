//go:build !linux

package cpu

// grantTiles reports whether AMX tiles may be used.
func grantTiles() bool { return false }
