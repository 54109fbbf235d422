package router_test

import (
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/services/router"
)

// A stage that takes frames and answers none of them is found out by the probe of the next pipeline
// that is opened over it: requests never get there, and the log names the stage.
func TestService_WedgedStage_GetsNoRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logtest.Buffer
		m := newMesh(t, 2, 2, router.Config{
			Log: slog.New(slog.NewTextHandler(&log, nil)), ProbeLimit: 300 * time.Millisecond,
		})
		m.shards["shard-1-1"].freeze(3)
		m.streams(6, 60) // those on the frozen pipeline move
		eventually(t, "a log line that names the wedged stage", func() bool {
			return log.Has("stage 1, layers 1-2 at mem:shard-1-1, computes nothing")
		})
		m.streams(6, 60)
		if err := m.service.Backend().Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		m.check()
	})
}

// A lone pipeline that has missed a step deadline is opened again before it is given up, but the router is not
// ready meanwhile. When the stage computes again, so is the router.
func TestService_WedgedStageOfALonePipeline_NotReadyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 1, router.Config{ProbeLimit: 300 * time.Millisecond})
		ready := func() bool { return m.service.Backend().Ready() == nil }
		m.streams(1, 20) // by which the deadline is measured
		s := m.shards["shard-0-1"]
		s.freeze(1)
		begin := time.Now()
		var asking sync.WaitGroup
		asking.Go(func() {
			if _, err := m.generate(t.Context(), greedy("a request", 60), nil); status.Code(err) != codes.Unavailable {
				t.Errorf("the request ends with %v", err)
			}
		})
		eventually(t, "the router not to be ready", func() bool { return !ready() })
		if took := time.Since(begin); took > 2500*time.Millisecond {
			t.Errorf("ready for %v after a stage has stopped computing", took)
		}
		for range 100 { // while it is opened again, lost, and probed
			if ready() {
				t.Fatal("ready while a stage computes nothing")
			}
			<-time.After(100 * time.Millisecond)
		}
		s.mu.Lock()
		s.silent = false
		s.mu.Unlock()
		eventually(t, "the router to be ready", ready)
		asking.Wait()
		m.streams(1, 60)
		m.check()
	})
}

// The probe of stages that have computed before is short, unless they are slow: a step of these takes a second, and
// their probe half a minute.
func TestService_SlowStages_AreOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 1, router.Config{})
		m.slow(time.Second)
		m.streams(1, 30)
		ready := func() bool { return m.service.Backend().Ready() == nil }
		m.network.Cut("shard-0-1", true)
		eventually(t, "the router not to be ready", func() bool { return !ready() })
		m.network.Cut("shard-0-1", false)
		eventually(t, "the router to be ready", ready)
		m.streams(1, 10)
		m.check()
	})
}

// A stage that another router uses grants a new pipeline no pages until the older one has given some up.
// The probe waits for them.
func TestService_PagesThatComeLater_AreAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 1, router.Config{})
		for _, s := range m.shards {
			s.mu.Lock()
			s.lend = 300 * time.Millisecond
			s.mu.Unlock()
		}
		var log logtest.Buffer
		m.peer("router-b", router.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if log.Has("pipeline is lost") {
			t.Error("a pipeline was given up before it had pages")
		}
		m.check()
	})
}
