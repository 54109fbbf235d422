package mcptools

import (
	"testing"
	"time"
)

// SetTimes sets how long one program and all programs have to end, until the test ends.
func SetTimes(t *testing.T, one, all time.Duration) {
	t.Helper()
	before, beforeAll := terminate, closeTime
	terminate, closeTime = one, all
	t.Cleanup(func() { terminate, closeTime = before, beforeAll })
}
