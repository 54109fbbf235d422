package sched_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// TestBudget_BoundsReplays plays random work and replays, and checks the bound over every span of time.
func TestBudget_BoundsReplays(t *testing.T) {
	type moment struct {
		at          time.Duration
		work, again int
	}
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		b := sched.Budget{Share: float64(seed%4) / 4, Burst: 100 + rnd.IntN(1000), Refill: 10 * time.Second}
		now, longest := time.Duration(rnd.IntN(1000)), 0
		var list []moment
		waited := 0
		for range 400 {
			now += time.Duration(rnd.IntN(100)) * time.Millisecond
			m := moment{at: now}
			if rnd.IntN(2) == 0 {
				m.work = rnd.IntN(200)
				b.Earn(now, m.work)
			} else {
				n := 1 + rnd.IntN(400)
				wait, ok := b.Take(now, n)
				if ok {
					m.again, longest = n, max(longest, n)
				} else if waited++; wait <= 0 {
					t.Fatalf("seed %d: nothing is left, and the wait is %v", seed, wait)
				} else if later := b; later.Level(now+wait) <= 0 {
					t.Fatalf("seed %d: after %v there is %v", seed, wait, later.Level(now+wait))
				}
			}
			list = append(list, m)
		}
		for i := range list {
			work, again := 0, 0
			for _, m := range list[i:] {
				work, again = work+m.work, again+m.again
				span := (m.at - list[i].at).Seconds() / b.Refill.Seconds()
				if most := b.Share*float64(work) + float64(b.Burst)*(1+span) + float64(longest); float64(again) > most {
					t.Fatalf("seed %d: %d positions again beside %d of work, at most %v", seed, again, work, most)
				}
			}
		}
		if waited == 0 {
			t.Errorf("seed %d: nothing had to wait", seed)
		}
	}
}
