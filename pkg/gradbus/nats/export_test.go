package nats

import (
	"testing"
	"time"
)

// SetIdle sets after how long subscriptions look for skipped events, until the test ends.
func SetIdle(t *testing.T, d time.Duration) {
	old := idleFirst
	t.Cleanup(func() { idleFirst = old })
	idleFirst = d
}
