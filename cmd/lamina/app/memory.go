package app

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/lamina-mesh/lamina/pkg/lifecycle"
)

const (
	// trimInterval is how often the memory is checked. Memory that a load needed is released
	// after two intervals at the latest, if the second one did not need it.
	trimInterval = 10 * time.Second
	// minRelease is the number of bytes for which a garbage collection is worth its time.
	minRelease = 4 << 20
)

// trimmer is a service that can release memory which it did not need during the last interval. Trim
// reports whether it has released any.
type trimmer interface{ Trim() bool }

// memoryPart returns memory to the operating system after a load. The services drop buffers that
// they no longer need. Go would only collect them after as many new allocations as the heap is
// large, and an idle process allocates next to nothing. So memoryPart runs the collector itself,
// when the process is quiet and there is something to release.
func memoryPart(interval time.Duration, trim func() bool) lifecycle.Part {
	return runPart("memory", func(ctx context.Context) error {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		var before uint64 // bytes allocated since the process started
		trimmed := false  // whether a service has released memory since the last collection here
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			trimmed = trim() || trimmed
			m := readMemory()
			quiet := m.allocated-before < m.live/4+minRelease
			before = m.allocated
			if quiet && (trimmed || m.releasable() > minRelease) {
				trimmed = false
				runtime.GC() // objects in a sync.Pool survive one collection
				debug.FreeOSMemory()
			}
		}
	})
}

// memory is the state of the Go heap in bytes.
type memory struct {
	allocated uint64 // since the process started
	live      uint64 // found by the last garbage collection
	objects   uint64 // live objects, and garbage that is not collected yet
	free      uint64 // neither in use nor returned to the operating system
}

// releasable returns the maximum number of bytes that a garbage collection can release.
func (m memory) releasable() uint64 {
	garbage := m.objects - min(m.live, m.objects)
	return garbage + m.free
}

func readMemory() memory {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	return memory{samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64(),
		samples[3].Value.Uint64()}
}
