package httpapi

import (
	"net/http"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// SetRunningEvery sets how often a stream says that tools run, until the test ends.
func SetRunningEvery(t *testing.T, d time.Duration) {
	t.Helper()
	before := runningEvery
	runningEvery = d
	t.Cleanup(func() { runningEvery = before })
}

// Bounded returns a handler whose requests share a room for bodies.
func Bounded(most int64, next http.HandlerFunc) http.Handler { return hold(rpc.NewBodies(most), next) }
