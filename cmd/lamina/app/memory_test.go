package app_test

import (
	"context"
	"fmt"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// heapMiB returns the memory that the Go heap has from the operating system, in MiB.
func heapMiB() float64 {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(samples)
	var sum uint64
	for _, s := range samples {
		sum += s.Value.Uint64()
	}
	return float64(sum) / (1 << 20)
}

func TestMesh_GivesTheMemoryOfALoadBack(t *testing.T) {
	set := cpu.New(2)
	defer set.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m, err := app.Start(ctx, app.MeshConfig{
		Kernels: app.Kernels{Set: set, Threads: 2}, Model: "../../../models/lamina-tolstoy", Stages: 2,
		TrimInterval: 100 * time.Millisecond, Scheduling: app.Scheduling{CacheIdle: time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	conn, err := m.Router()
	if err != nil {
		t.Fatal(err)
	}
	router := routerv1.NewRouterServiceClient(conn)
	// One request and two collections give the memory of an idle mesh.
	generateText(t, router, "The prince", 8)
	debug.FreeOSMemory()
	debug.FreeOSMemory()
	before := heapMiB()
	var streams sync.WaitGroup
	for i := range 150 { // prompts that have no prefix in common
		streams.Go(func() { generateText(t, router, fmt.Sprintf("%d princes said that they would come back", i), 64) })
	}
	peak := 0.0
	done := make(chan struct{})
	go func() { streams.Wait(); close(done) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for loaded := true; loaded; {
		select {
		case <-tick.C:
			peak = max(peak, heapMiB())
		case <-done:
			loaded = false
		}
	}
	if peak < before+8 {
		t.Fatalf("the load only takes the heap from %.0f to %.0f MiB: the test proves nothing", before, peak)
	}
	after := heapMiB()
	for after > before+0.4*(peak-before) {
		select {
		case <-tick.C:
			after = heapMiB()
		case <-ctx.Done():
			t.Fatalf("the heap holds %.0f MiB, %.0f at its peak and %.0f before the load", after, peak, before)
		}
	}
	t.Logf("heap: %.0f MiB before, %.0f at the peak, %.0f after", before, peak, after)
}
