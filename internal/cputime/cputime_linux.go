package cputime

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Process returns the user and system time of all threads of the process.
func Process() time.Duration { return usage(unix.RUSAGE_SELF) }

// Thread returns the user and system time of the calling thread. The caller has locked
// its goroutine to the thread.
func Thread() time.Duration { return usage(unix.RUSAGE_THREAD) }

func usage(who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		panic(fmt.Sprintf("getrusage(%d): %v", who, err)) // fails only for an unknown who
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
