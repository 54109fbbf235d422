package leak

// This test is internal because Check takes a minute to find a leak.

import (
	"testing"
	"time"
)

func TestFind_ReportsAGoroutineThatStays(t *testing.T) {
	leave := make(chan struct{})
	go func() { <-leave }()
	if err := find(0); err == nil {
		t.Error("a goroutine that waits is not found")
	}
	close(leave)
	Check(t)
}

func TestCheck_WaitsForAGoroutineThatEnds(t *testing.T) {
	go func() { <-time.After(time.Second) }() // longer than goleak waits
	Check(t)
}
