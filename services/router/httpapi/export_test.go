package httpapi

import (
	"testing"
	"time"
)

// SetRunningEvery sets how often a stream says that tools run, until the test ends.
func SetRunningEvery(t *testing.T, d time.Duration) {
	t.Helper()
	before := runningEvery
	runningEvery = d
	t.Cleanup(func() { runningEvery = before })
}
