package router

// This test is internal because nobody outside sees which loss counts.

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// TestFailures_LossesThatCount loses pipelines over the hosts a and b. Those that a host or a sampler explains do not
// count, nor those that a request is to blame for, whether it says so before the loss is noted, before it counts, or
// later.
func TestFailures_LossesThatCount(t *testing.T) {
	chain := plan.Chain{{Shard: "a", Digest: "d"}, {Shard: "b", Digest: "d"}}
	lost := fault.New(fault.Unavailable, "lost")
	for name, tc := range map[string]struct {
		id       string
		err      error
		before   bool          // it is excused before it is noted
		excused  time.Duration // after which it is excused
		troubled time.Duration // from the loss to b's missing answer
		gone     string        // what is not listed any more
		row, all int
	}{
		"the hosts live":               {id: "p", all: 1},
		"it was not connected":         {row: 1, all: 1},
		"a host misses a probe":        {id: "p", troubled: time.Second},
		"and a connection fails":       {troubled: time.Second, row: 1},
		"a host has missed one":        {id: "p", troubled: -time.Second},
		"that was long ago":            {id: "p", troubled: -lossAfter - time.Second, all: 1},
		"a host is not listed":         {id: "p", gone: "a"},
		"the sampler is not listed":    {id: "p", gone: "mem:sampler"},
		"it is left":                   {id: "p", err: errLeaving},
		"a request is to blame":        {id: "p", before: true},
		"it says so soon":              {id: "p", excused: time.Second},
		"it says so when it counts":    {id: "p", excused: 5 * time.Second},
		"it says so after two minutes": {id: "p", excused: 2 * lossKept, all: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // no time passes between a loss and what is said of it
				s := New(Config{})
				for kind, ids := range map[string][]string{"shard": {"a", "b"}, "sampler": {"mem:sampler"}} {
					for _, id := range ids {
						if id != tc.gone {
							s.instances[kind] = append(s.instances[kind], discovery.Instance{ID: id, Addr: id})
						}
					}
				}
				if tc.err == nil {
					tc.err = lost
				}
				f := s.failuresOf("d")
				if tc.before {
					f.excuse([]string{"p"}, time.Now())
				}
				s.pipelineLost(chain, tc.id, "mem:sampler", tc.err)
				at := time.Now()
				troubled := map[string]time.Time{"a": {}}
				if tc.troubled != 0 {
					troubled["b"] = at.Add(tc.troubled)
				}
				for after := time.Duration(0); after <= 3*lossKept; after += time.Second {
					f.settle(at.Add(after), s.explained(troubled))
					if after == tc.excused && after > 0 {
						f.excuse([]string{"p", "another"}, at.Add(after))
					}
					if after == lossAfter-time.Second && f.all != 0 {
						t.Error("it counts at once")
					}
				}
				if f.row != tc.row || f.all != tc.all {
					t.Errorf("%d tries in a row and %d losses count, want %d and %d", f.row, f.all, tc.row, tc.all)
				}
				if len(f.losses) > 0 {
					t.Errorf("%d losses are kept", len(f.losses))
				}
			})
		})
	}
}
