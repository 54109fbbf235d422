package chaos_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/chaos"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
)

const ms = time.Millisecond

// good is a stream that ended well with the right text.
func good(sent, end time.Duration, gaps ...chaos.Gap) chaos.Stream {
	return chaos.Stream{Sent: sent, End: end, Outcome: loadtest.OK, Compared: true, Identical: true, Gaps: gaps}
}

func killing(p chaos.Promise, at time.Duration) chaos.Fault {
	return chaos.Fault{Spec: chaos.FaultSpec{Kind: chaos.Kill, Promise: p}, At: at, Healed: at + 100*ms}
}

func TestJudge_PromisesHold(t *testing.T) {
	faults := []chaos.Fault{killing("S1", 1000*ms), killing("S2", 5000*ms)}
	faults[0].Detected = 1050 * ms
	got := chaos.Judge(faults, []chaos.Stream{
		good(500*ms, 2000*ms, chaos.Gap{From: 990 * ms, To: 1300 * ms}),
		good(500*ms, 900*ms, chaos.Gap{From: 500 * ms, To: 800 * ms}), // before any fault
		good(1500*ms, 6000*ms, chaos.Gap{From: 4990 * ms, To: 5790 * ms}, chaos.Gap{From: 5800 * ms, To: 5850 * ms}),
		// it was not waiting when the fault came
		good(5200*ms, 9000*ms, chaos.Gap{From: 5200 * ms, To: 8000 * ms, First: true}),
	}, 0)
	if len(got) != 2 || got[0].Promise != "S1" || got[1].Promise != "S2" || !got[0].Pass || !got[1].Pass {
		t.Fatalf("got %+v", got)
	}
	if a := got[0]; a.Running != 1 || a.Streams != 1 || a.Stalled != 1 || a.StallMS.Max != 310 || a.DetectMS.P50 != 50 {
		t.Errorf("S1 is %+v", a)
	}
	if b := got[1]; b.Running != 1 || b.Streams != 2 || b.Identical != 2 || b.Stalled != 1 || b.StallMS.P99 != 800 ||
		b.DetectMS.Count != 0 {
		t.Errorf("S2 is %+v", b)
	}
}

func TestJudge_BrokenPromisesSayWhy(t *testing.T) {
	running := good(500*ms, 2000*ms)
	wrong := running
	wrong.Identical = false
	ended := func(o loadtest.Outcome, at time.Duration) chaos.Stream {
		return chaos.Stream{Sent: 500 * ms, End: at, Outcome: o}
	}
	diverged := ended(loadtest.ErrorEvent, 1100*ms)
	diverged.Compared = true
	drained := killing("S11", 1000*ms)
	drained.Drains = []time.Duration{100 * ms, 31 * time.Second}
	failed := killing("S1", 1000*ms)
	failed.Err = errors.New("no such process")
	readers := killing("S10", 1000*ms)
	readers.Spec.Kind, readers.Spec.Count, readers.Cut, readers.Healed = chaos.SlowRead, 4, 3, 20000*ms
	beside := good(12000*ms, 15000*ms, chaos.Gap{From: 13000 * ms, To: 13090 * ms})
	for name, test := range map[string]struct {
		fault   chaos.Fault
		streams []chaos.Stream
		why     string
	}{
		"another text": {killing("S1", 1000*ms), []chaos.Stream{running, wrong}, "1 of 2 answers differ"},
		"a failed stream": {killing("S1", 1000*ms), []chaos.Stream{running, ended(loadtest.Cut, 1100*ms)},
			"1 stream failed"},
		"a refusal": {killing("S12", 1000*ms), []chaos.Stream{running, ended(loadtest.Refused, 1100*ms)},
			"0 streams failed, 1 refused"},
		"a wrong beginning": {killing("S3", 1000*ms), []chaos.Stream{running, diverged}, "begun with another text"},
		"a long stall": {killing("S2", 1000*ms),
			[]chaos.Stream{good(0, 3000*ms, chaos.Gap{From: 900 * ms, To: 2000 * ms})}, "p99 of stalls is 1100 ms"},
		"a stall of prefill": {killing("S2", 1000*ms),
			[]chaos.Stream{good(900*ms, 3000*ms, chaos.Gap{From: 900 * ms, To: 2000 * ms, First: true})}, "1100 ms"},
		"nothing ran": {killing("S1", 1000*ms), []chaos.Stream{good(1100*ms, 2000*ms)}, "no stream ran"},
		"nothing compared": {killing("S1", 1000*ms), []chaos.Stream{{Sent: 0, End: 2000 * ms, Outcome: loadtest.OK}},
			"no answer was compared"},
		"no injection":      {failed, []chaos.Stream{running}, "no such process"},
		"S4 looks finished": {killing("S4", 1000*ms), []chaos.Stream{wrong}, "1 of 1 answers differ"},
		"S4 cut": {killing("S4", 1000*ms), []chaos.Stream{ended(loadtest.Cut, 1100*ms)},
			"without an error event: cut"},
		"S4 hangs": {killing("S4", 1000*ms), []chaos.Stream{ended(loadtest.Timeout, 9000*ms)},
			"without an error event: timeout"},
		"S4 told late": {killing("S4", 1000*ms), []chaos.Stream{ended(loadtest.ErrorEvent, 6100*ms)},
			"told after 5.1 s"},
		"S4 not told": {killing("S4", 1000*ms),
			[]chaos.Stream{good(0, 9000*ms, chaos.Gap{From: 990 * ms, To: 8000 * ms})}, "waited 7.0 s"},
		"S11 drains":        {drained, []chaos.Stream{running}, "a drain took 31.0 s"},
		"S10 not cut":       {readers, []chaos.Stream{running, beside}, "1 readers were not cut"},
		"S10 others suffer": {readers, []chaos.Stream{running, beside}, "p99 of others is 90.0 ms"},
		"S13 not resumed":   {killing("S13", 1000*ms), []chaos.Stream{running}, "no stream had to be resumed"},
		"S10 no others":     {readers, []chaos.Stream{running}, "no stream ran from"},
	} {
		got := chaos.Judge([]chaos.Fault{test.fault}, test.streams, 0)
		if len(got) != 1 || got[0].Pass || !strings.Contains(strings.Join(got[0].Why, "; "), test.why) {
			t.Errorf("%s: got %+v, want %q", name, got, test.why)
		}
	}
}

func TestJudge_ToldInTimeHoldsS4(t *testing.T) {
	told := chaos.Stream{Sent: 0, End: 2000 * ms, Outcome: loadtest.ErrorEvent}
	refused := chaos.Stream{Sent: 3000 * ms, End: 3010 * ms, Outcome: loadtest.Refused}
	got := chaos.Judge([]chaos.Fault{killing("S4", 1000*ms)}, []chaos.Stream{told, refused, good(0, 4000*ms)}, 0)
	if !got[0].Pass || got[0].Failed != 1 || got[0].Refused != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestManifest_ScheduleIsInOrderOfTime(t *testing.T) {
	m, err := chaos.ParseManifest([]byte(`{"faults":[
		{"kind":"kill","target":"shard-*","at":"3s","every":"4s","times":3},{"kind":"pause","target":"shard-*","at":"5s"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	got := chaos.Schedule(m)
	for i, want := range []time.Duration{3, 5, 7, 11} {
		if i >= len(got) || got[i] != want*time.Second {
			t.Fatalf("got %v", got)
		}
	}
}
