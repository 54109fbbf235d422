//go:build !linux

package cputime

import "time"

var started = time.Now()

// Process returns the time since the process started.
func Process() time.Duration { return time.Since(started) }

// Thread returns the time since the process started.
func Thread() time.Duration { return time.Since(started) }
