//go:build !linux

package cpu

// mapHuge makes n zeroed bytes.
func mapHuge(n int) (data []byte, free func()) { return make([]byte, n), func() {} }
