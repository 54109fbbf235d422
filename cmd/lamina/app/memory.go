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
	// trimInterval is how often memory is looked at. What a load took and the following
	// interval did not need is released after two of them.
	trimInterval = 10 * time.Second
	// releaseLeast is the memory for which a garbage collection is worth its time.
	releaseLeast = 4 << 20
)

// trimmer is a service that can release memory which its last interval did not need. It
// reports whether it has released any.
type trimmer interface{ Trim() bool }

// memoryPart gives the memory of a past load back to the operating system. The services
// drop what they no longer need; Go's collector would find it only after as many new
// allocations as the load left behind, and an idle process allocates next to nothing.
func memoryPart(interval time.Duration, trim func() bool) lifecycle.Part {
	return runPart("memory", func(ctx context.Context) error {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		var before uint64 // bytes allocated since the process started
		trimmed := false  // since the last collection here
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			trimmed = trim() || trimmed
			m := readMemory()
			quiet := m.allocated-before < m.live/4+releaseLeast
			before = m.allocated
			if quiet && (trimmed || m.releasable() > releaseLeast) {
				trimmed = false
				runtime.GC() // what stands in a sync.Pool survives one collection
				debug.FreeOSMemory()
			}
		}
	})
}

// memory is the state of Go's heap in bytes.
type memory struct {
	allocated uint64 // since the process started
	live      uint64 // found by the last garbage collection
	objects   uint64 // live, and garbage that is not collected yet
	free      uint64 // not in use and not given back to the operating system
}

// releasable is what a garbage collection may give back at most.
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
	return memory{samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64(), samples[3].Value.Uint64()}
}
