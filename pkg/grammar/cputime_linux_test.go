package grammar_test

import (
	"syscall"
	"testing"
	"time"
)

// threadTime is the CPU time that the calling thread has used; the caller has locked its
// goroutine to it.
func threadTime(t testing.TB) time.Duration {
	t.Helper()
	const thread = 1 // RUSAGE_THREAD
	var usage syscall.Rusage
	if err := syscall.Getrusage(thread, &usage); err != nil {
		t.Fatalf("read the thread's CPU time: %v", err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
