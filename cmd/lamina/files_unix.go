//go:build linux || darwin

package main

import "golang.org/x/sys/unix"

// openFiles returns how many files this process may open, or 0 if that is not known.
func openFiles() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return limit.Cur
}
