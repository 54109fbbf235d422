package router

// This test is internal because it needs no hosts.

import "testing"

func TestMeanHop_UnknownBandwidthsDoNotCount(t *testing.T) {
	for _, tc := range []struct {
		hops []hopTime
		want hopTime
	}{
		{[]hopTime{{ms: 1, mbps: 1000}}, hopTime{ms: 1, mbps: 1000}},
		{[]hopTime{{ms: 1}, {ms: 3, mbps: 1000}}, hopTime{ms: 2, mbps: 1000}},
		{[]hopTime{{ms: 1, mbps: 1000}, {ms: 3, mbps: 3000}}, hopTime{ms: 2, mbps: 2000}},
		{[]hopTime{{ms: 1}, {ms: 2}}, hopTime{ms: 1.5}},
	} {
		if got := meanHop(tc.hops); got != tc.want {
			t.Errorf("the mean of %v is %v, want %v", tc.hops, got, tc.want)
		}
	}
}
