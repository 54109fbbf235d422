package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
)

// The flags of a router's schedulers have the same meaning for `lamina router` and `lamina up`.
func TestScheduling_FlagsReachTheRouter(t *testing.T) {
	want := app.Scheduling{
		Queue: 7, CacheIdle: 2 * time.Minute, StepFloor: 300 * time.Millisecond, Hedge: 400 * time.Millisecond,
		ReplayShare: 0.25, ReplayBurst: 77, ReplayRefill: 3 * time.Second, ReadLimit: 5 * time.Second,
	}
	defaults := app.Scheduling{Queue: 256, CacheIdle: 5 * time.Minute, ReplayShare: 0.5}
	none := defaults
	none.ReplayShare = -1 // 0 of app.Scheduling is the default
	for _, test := range []struct {
		name  string
		flags []string
		want  app.Scheduling
	}{
		{"all", []string{"--queue=7", "--prefix-cache-idle=2m", "--step-floor=300ms", "--hedge=400ms",
			"--replay-share=0.25", "--replay-burst=77", "--replay-refill=3s", "--read-limit=5s"}, want},
		{"none", nil, defaults},
		{"no share", []string{"--replay-share=0"}, none},
	} {
		for verb, got := range map[string]func(*cli) app.Scheduling{
			"router": func(c *cli) app.Scheduling { return c.Router.scheduling() },
			"up":     func(c *cli) app.Scheduling { return c.Up.scheduling() },
		} {
			var c cli
			parser, err := newParser(&c, io.Discard, io.Discard, func(int) {})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(append([]string{verb}, test.flags...)); err != nil {
				t.Fatalf("lamina %s, %s: %v", verb, test.name, err)
			}
			if s := got(&c); s != test.want {
				t.Errorf("lamina %s, flags %s: got %+v, want %+v", verb, test.name, s, test.want)
			}
		}
	}
}

// A shard that would never hold anything does not start.
func TestShard_WithoutAModelIsRefused(t *testing.T) {
	verbFails(t, 2, "model: a shard without a model does nothing", "", "shard", "--listen=127.0.0.1:0",
		"--consul=127.0.0.1:1")
}

// A value that nothing can serve with is refused before anything starts.
func TestServe_FlagsOutOfBoundsAreNamed(t *testing.T) {
	for _, args := range [][]string{
		{"up", "--kv-positions=-5"}, {"up", "--stages=0"}, {"up", "--replicas=-1"}, {"up", "--queue=0"},
		{"up", "--read-limit=-1s"}, {"shard", "--kv-positions=-1"}, {"router", "--queue=-1"}, {"router", "--step-floor=-1s"},
		{"router", "--replay-burst=-1"}, {"router", "--replay-refill=-1s"}, {"shard", "--drain=-5s"},
	} {
		name, _, _ := strings.Cut(strings.TrimPrefix(args[1], "--"), "=")
		verbFails(t, 2, name+": ", "", args...)
	}
}
