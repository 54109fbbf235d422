package router

// This test is internal because the heartbeat is not exported.

import (
	"slices"
	"testing"
	"time"
)

func TestHeartbeat_LostOnceAndBackWhenQuick(t *testing.T) {
	const limit = time.Second
	answer := func(took time.Duration) func(*heartbeat) { return func(b *heartbeat) { b.answered(took) } }
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
		b := heartbeat{limit: limit}
		for _, probe := range tc.probes {
			probe(&b)
		}
		if b.alive() != tc.alive {
			t.Errorf("%s: alive is %v", name, b.alive())
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
