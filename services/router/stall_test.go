package router_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// stalled runs n requests as streams does, and returns the longest time between two tokens of each, sorted, and
// the 99th percentile of all times between two tokens that came before the fault of a shard.
func (m *mesh) stalled(n, tokens int, victim string) (longest []time.Duration, calm time.Duration) {
	m.t.Helper()
	var mu sync.Mutex
	var before []time.Duration
	var wg sync.WaitGroup
	s := m.shards[victim]
	for i := range n {
		wg.Go(func() {
			prompt, last, most := fmt.Sprintf("stream %d", i), time.Time{}, time.Duration(0)
			a, err := m.retry(greedy(prompt, tokens), func(int) {
				now := time.Now()
				if last.IsZero() {
					last = now
				}
				s.mu.Lock()
				struck := s.struck > 0
				s.mu.Unlock()
				mu.Lock()
				defer mu.Unlock()
				if most = max(most, now.Sub(last)); !struck {
					before = append(before, now.Sub(last))
				}
				last = now
			})
			if want := expect(prompt, tokens); err != nil || a.text != want {
				m.t.Errorf("stream %d: %q, %v, want %q", i, a.text, err, want)
			}
			mu.Lock()
			defer mu.Unlock()
			longest = append(longest, most)
		})
	}
	wg.Wait()
	m.struck(victim)
	m.check()
	slices.Sort(longest)
	return longest, quantile(before, 0.99)
}

// pipelines returns how many pipelines the router has.
func (m *mesh) pipelines() int {
	m.t.Helper()
	resp, err := m.client.Topology(m.t.Context(), &routerv1.TopologyRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	return len(resp.GetMesh().GetPipelines())
}

// startCold makes the next n batches of a shard take longer than all later ones, as those of a new process do.
func (s *fakeShard) startCold(n int, cold, later time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var done atomic.Int64
	s.cost = func(int) time.Duration {
		if done.Add(1) <= int64(n) {
			return cold
		}
		return later
	}
}

// A stage stops computing in pipelines of 2 to 8 stages, while all its connections are healthy. The streams
// stall for the step deadline and for the time in which the other pipeline computes their logs, and no longer.
func TestService_WedgedStage_StallsEndAtTheDeadline(t *testing.T) {
	const batch, row = 2 * time.Millisecond, 250 * time.Microsecond
	for _, stages := range some(2, 3, 4, 5, 6, 7, 8) {
		t.Run(fmt.Sprintf("%d stages", stages), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, stages, 2, router.Config{})
				m.takes(batch, row)
				victim := fmt.Sprintf("shard-1-%d", stages/2)
				m.shards[victim].freeze(60 * (stages + 1) / 3)
				stalls, p99 := m.stalled(16, 120, victim)
				deadline := max(250*time.Millisecond, 5*p99)
				// Half of the streams have moved. Each has at most 128 positions, which every stage computes at
				// the same time as the others, beside some work for the streams that were there.
				replay := 8*128*row + time.Duration(4*stages)*batch
				t.Logf("step p99 %v, stalls %v to %v, at most %v", p99, stalls[8], stalls[15], deadline+replay)
				if stalls[15] > deadline+replay {
					t.Errorf("a stream has stalled for %v, want at most %v and %v", stalls[15], deadline, replay)
				}
			})
		})
	}
}

// One stream on each pipeline: nothing waits for anything, so the stall is the step deadline and the replay of
// one log. It is the deadline itself, not the next tick of a clock after it.
func TestService_WedgedStage_IsNoticedAtTheDeadline(t *testing.T) {
	for _, at := range some(20, 21, 22, 23, 24, 25, 26, 27, 28, 29) { // at different distances from the tick
		t.Run(fmt.Sprintf("batch %d", at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, 2, 2, router.Config{})
				m.takes(5*time.Millisecond, 0)
				m.shards["shard-1-1"].freeze(at)
				stalls, _ := m.stalled(2, 60, "shard-1-1")
				if most := 310 * time.Millisecond; stalls[1] > most {
					t.Errorf("the stream has stalled for %v, want at most %v", stalls[1], most)
				}
			})
		})
	}
}

// The first batches of a process take much longer than all later ones. They say nothing about deadlines: a stage
// that freezes soon after its pipeline was opened is left as soon as any other.
func TestService_FrozenInTheFirstSteps_DeadlineIsThatOfLaterOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 2, router.Config{})
		m.takes(4*time.Millisecond, 0)
		m.network.Cut("shard-1-1", true)
		eventually(t, "the loss of the pipeline", func() bool { return m.pipelines() == 1 })
		m.shards["shard-1-1"].startCold(4, 400*time.Millisecond, 4*time.Millisecond)
		m.network.Cut("shard-1-1", false)
		eventually(t, "the new pipeline", func() bool { return m.pipelines() == 2 })
		m.shards["shard-1-1"].freeze(8)
		stalls, _ := m.stalled(4, 60, "shard-1-1")
		if most := 400 * time.Millisecond; stalls[3] > most {
			t.Errorf("a stream has stalled for %v, want at most %v", stalls[3], most)
		}
	})
}

// A killed shard is noticed at once, and the streams are told apart only by the rows that nobody had computed.
func TestService_KilledShard_LogsAreReplayedTogether(t *testing.T) {
	const batch, row = 4 * time.Millisecond, 250 * time.Microsecond
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2, 2, router.Config{})
		m.takes(batch, row)
		victim := "shard-1-1"
		m.shards[victim].strike(60, func() { m.network.Cut(victim, true) })
		stalls, _ := m.stalled(16, 120, victim)
		t.Logf("stalls %v to %v", stalls[8], stalls[15])
		if most := 550 * time.Millisecond; stalls[15] > most {
			t.Errorf("a stream has stalled for %v, want at most %v", stalls[15], most)
		}
	})
}
