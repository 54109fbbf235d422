//go:build unix

package vocab_test

import (
	"time"

	"golang.org/x/sys/unix"
)

// processorTime is what the process has used so far. A busy machine does not stretch it
// as it does the time on the wall.
func processorTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
