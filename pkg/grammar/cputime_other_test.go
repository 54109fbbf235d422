//go:build !linux

package grammar_test

import (
	"testing"
	"time"
)

// threadTime is the time of the clock where a thread's CPU time cannot be had.
func threadTime(testing.TB) time.Duration { return time.Duration(time.Now().UnixNano()) }
