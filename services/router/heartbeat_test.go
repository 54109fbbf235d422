package router

// This test is internal because the heartbeat is not exported.

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHeartbeat_LostOnceAndBackWhenQuick(t *testing.T) {
	const limit = time.Second
	answer := func(took time.Duration) func(*heartbeat) { return func(b *heartbeat) { b.answered(took, limit) } }
	refused, silent := (*heartbeat).refused, (*heartbeat).silent
	quick, slow := answer(limit/10), answer(limit*9/10)
	for name, tc := range map[string]struct {
		probes []func(*heartbeat)
		alive  bool
	}{
		"not heard yet":                 {nil, false},
		"a first answer":                {[]func(*heartbeat){slow}, true},
		"always slow":                   {[]func(*heartbeat){slow, slow, slow, slow, slow}, true},
		"refused once":                  {[]func(*heartbeat){quick, refused, quick, refused}, true},
		"refused twice":                 {[]func(*heartbeat){quick, refused, refused}, false},
		"silent":                        {[]func(*heartbeat){quick, silent}, false},
		"silent, then slow":             {[]func(*heartbeat){quick, silent, slow, slow, slow, slow}, false},
		"silent, then quick":            {[]func(*heartbeat){quick, silent, quick}, false},
		"silent, then quick twice":      {[]func(*heartbeat){quick, silent, quick, quick}, true},
		"quick, but not twice in a row": {[]func(*heartbeat){quick, silent, quick, slow, quick}, false},
		"refused between quick answers": {[]func(*heartbeat){quick, silent, quick, refused, quick}, false},
		"silent, then slow for long": {
			append([]func(*heartbeat){quick, silent}, slices.Repeat([]func(*heartbeat){slow}, backSlow)...), true},
		"silent now and then": {
			slices.Repeat(append(slices.Repeat([]func(*heartbeat){slow}, backSlow-1), silent), 3), false},
		"back, and silent again": {[]func(*heartbeat){quick, silent, quick, quick, silent}, false},
	} {
		b := heartbeat{}
		for _, probe := range tc.probes {
			probe(&b)
		}
		if b.alive() != tc.alive {
			t.Errorf("%s: alive is %v", name, b.alive())
		}
	}
}

// TestLateness_SilenceOnABusyMachine simulates a placer and a host on a machine that wakes processes up late, by up to
// a time. The host answers each probe after it and the placer were woken some times. It is lost with the usual limit on
// a machine that has too much to do, and not with that of lateness; and one that has frozen is lost as soon as ever on
// a machine that has not.
func TestLateness_SilenceOnABusyMachine(t *testing.T) {
	for _, tc := range []struct {
		late    time.Duration // at most
		usual   bool          // the usual limit suffices
		longest time.Duration // limit
	}{
		{2 * time.Millisecond, true, silentAfter + 12*time.Millisecond},
		{50 * time.Millisecond, true, 2 * time.Second},
		{500 * time.Millisecond, false, 5 * time.Second},
		{time.Second, false, 8 * time.Second},
		{time.Minute, false, silentAfter + ownMost},
	} {
		random := rand.New(rand.NewPCG(7, uint64(tc.late)))
		woken := func() time.Duration { return time.Duration(random.Float64() * float64(tc.late)) }
		var own lateness
		usual, lost, longest := 0, 0, time.Duration(0)
		for tick := range 100_000 {
			own.ticked(woken())
			if tick < 100 { // it has to see what the machine is like
				continue
			}
			limit := own.limit(silentAfter)
			longest = max(longest, limit)
			took := time.Duration(0)
			for range 5 {
				took += woken()
			}
			if took > silentAfter {
				usual++
			}
			if took > limit {
				lost++
			}
		}
		if longest > tc.longest || (usual == 0) != tc.usual || lost > 0 && tc.late < time.Minute {
			t.Errorf("late by up to %v: lost %d times with the usual limit and %d times with one of up to %v", tc.late,
				usual, lost, longest)
		}
		for range 500 { // 50 s of a machine that has recovered
			own.ticked(0)
		}
		if now := own.limit(silentAfter); now > silentAfter+time.Millisecond {
			t.Errorf("late by up to %v: the limit is still %v", tc.late, now)
		}
	}
}

// TestCounted_TimeThatAProcessWasStopped waits in steps of which some last longer: a little, as on a busy machine, or
// by much, since the process was stopped.
func TestCounted_TimeThatAProcessWasStopped(t *testing.T) {
	const step = waitStep
	for name, tc := range map[string]struct{ took, want time.Duration }{
		"in time": {step, step}, "late": {step + lateMost, step + lateMost}, "stopped": {time.Minute, step},
		"ended early": {step / 2, step / 2},
	} {
		if got := counted(step, tc.took); got != tc.want {
			t.Errorf("%s: %v count as %v, want %v", name, tc.took, got, tc.want)
		}
	}
}
