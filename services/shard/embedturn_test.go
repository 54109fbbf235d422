package shard

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestEmbedTurn_CallsWithPriorityComeFirst has calls that compute for a second each.
func TestEmbedTurn_CallsWithPriorityComeFirst(t *testing.T) {
	for name, c := range map[string]struct {
		come, want []string
	}{
		"those without priority come last": {
			[]string{"first", "low a", "low b", "c", "d"}, []string{"first", "c", "d", "low a", "low b"}},
		"alone they compute in order": {[]string{"first", "low a", "low b"}, []string{"first", "low a", "low b"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var e embedTurn
			var order []string // changed by who has the lock
			for _, call := range c.come {
				go func() {
					if err := e.lock(t.Context(), strings.HasPrefix(call, "low")); err != nil {
						t.Error(err)
						return
					}
					order = append(order, call)
					time.Sleep(time.Second) // of virtual time
					e.unlock()
				}()
				synctest.Wait()
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if !slices.Equal(order, c.want) {
				t.Errorf("%s: %q, want %q", name, order, c.want)
			}
		})
	}
}

// TestEmbedTurn_NobodyWaitsForEver lets calls with priority come faster than they are computed.
func TestEmbedTurn_NobodyWaitsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e embedTurn
		ctx, cancel := context.WithCancel(t.Context())
		if err := e.lock(ctx, false); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var turn atomic.Int64 // when it came, after start
		go func() {
			if err := e.lock(ctx, true); err != nil {
				t.Error(err)
				return
			}
			turn.Store(int64(time.Since(start)))
			e.unlock()
		}()
		synctest.Wait()
		for range 30 {
			go func() {
				if e.lock(ctx, false) == nil {
					time.Sleep(2 * time.Second) // of virtual time
					e.unlock()
				}
			}()
			time.Sleep(time.Second)
			if turn.Load() == 0 && time.Since(start) < 2*time.Second {
				e.unlock() // of the first call
			}
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if took := time.Duration(turn.Load()); took < lowMost || took > lowMost+3*time.Second {
			t.Errorf("the call without priority had its turn after %v, want %v", took, lowMost)
		}
		cancel()
	})
}

func TestEmbedTurn_WhoGoesKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e embedTurn
		if err := e.lock(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.lock(ctx, false) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("it ends with %v", err)
		}
		e.unlock()
		if e.taken || len(e.waiting) != 0 {
			t.Errorf("the lock is taken: %v, and %d wait", e.taken, len(e.waiting))
		}
	})
}
