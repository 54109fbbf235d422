package schedule_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// unit has equal costs of all passes, as in the papers' figures.
var unit = schedule.Costs{Forward: 1, Input: 1, Weight: 1}

func lists(t *testing.T, c schedule.Config) [][]schedule.Action {
	t.Helper()
	out, err := c.All()
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	return out
}

func simulate(t *testing.T, c schedule.Config, costs schedule.Costs) schedule.Result {
	t.Helper()
	r, err := schedule.Simulate(lists(t, c), costs)
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	return r
}

// configs calls do for every schedule in many sizes, among them numbers of micro-batches that
// the stages do not divide.
func configs(do func(schedule.Config)) {
	for _, name := range schedule.Names() {
		for stages := 1; stages <= 7; stages++ {
			for micro := 1; micro <= 17; micro++ {
				c := schedule.Config{Name: name, Stages: stages, Spans: 1, Micro: micro}
				do(c)
				if name == schedule.NameInterleaved {
					for _, c.Spans = range []int{2, 3, 5} {
						do(c)
					}
				}
			}
		}
	}
}

func TestConfig_EveryMicroBatchPassesEverySpanOnceInOrder(t *testing.T) {
	configs(func(c schedule.Config) {
		r := simulate(t, c, schedule.Costs{Forward: 2, Input: 3, Weight: 1.5})
		end := map[[3]int]float64{} // by pass (0 forward, 1 input, 2 weight), position and micro-batch
		start := map[[3]int]float64{}
		for stage, list := range r.Timeline {
			var last float64
			for _, a := range list {
				if a.Start < last {
					t.Fatalf("%+v: stage %d runs two actions at once", c, stage)
				}
				last = a.End
				position := a.Span*c.Stages + stage
				for pass, kinds := range [][]schedule.Kind{{schedule.Forward},
					{schedule.Backward, schedule.BackwardInput}, {schedule.Backward, schedule.BackwardWeight}} {
					if !slices.Contains(kinds, a.Kind) {
						continue
					}
					key := [3]int{pass, position, a.Micro}
					if _, again := end[key]; again {
						t.Fatalf("%+v: stage %d runs %v twice", c, stage, a.Action)
					}
					start[key], end[key] = a.Start, a.End
				}
			}
		}
		if want := 3 * c.Stages * c.Spans * c.Micro; len(end) != want {
			t.Fatalf("%+v: %d passes, want %d", c, len(end), want)
		}
		last := c.Stages*c.Spans - 1
		for m := range c.Micro {
			for p := 0; p <= last; p++ {
				f, i, w := [3]int{0, p, m}, [3]int{1, p, m}, [3]int{2, p, m}
				if start[i] < end[f] || end[w] < end[i] ||
					p > 0 && start[f] < end[[3]int{0, p - 1, m}] ||
					p < last && start[i] < end[[3]int{1, p + 1, m}] {
					t.Fatalf("%+v: position %d runs micro-batch %d out of order", c, p, m)
				}
			}
		}
	})
}

// The executor relies on it: what a stage sends for a span arrives in the order in which the
// neighbour takes it.
func TestConfig_EverySpanSeesMicroBatchesInOrder(t *testing.T) {
	configs(func(c schedule.Config) {
		for stage, list := range lists(t, c) {
			next := map[[2]int]int{}
			for _, a := range list {
				key := [2]int{int(a.Kind), a.Span}
				if a.Micro != next[key] {
					t.Fatalf("%+v: stage %d runs %v before micro-batch %d", c, stage, a, next[key])
				}
				next[key]++
			}
		}
	})
}

func TestSimulate_BubblesHaveTheKnownClosedForms(t *testing.T) {
	near := func(got, want float64) bool { return math.Abs(got-want) < 1e-9 }
	for _, costs := range []schedule.Costs{unit, {Forward: 1, Input: 1.5, Weight: 0.5},
		{Forward: 3, Input: 2, Weight: 2}} {
		configs(func(c schedule.Config) {
			p, m, v := float64(c.Stages), float64(c.Micro), float64(c.Spans)
			got := simulate(t, c, costs).Bubble
			switch {
			case c.Name == schedule.NameGPipe, c.Name == schedule.NameOneFOneB:
				if want := (p - 1) / (m + p - 1); !near(got, want) {
					t.Errorf("%+v: bubble %v, want %v", c, got, want)
				}
			case c.Name == schedule.NameInterleaved && c.Micro%c.Stages == 0:
				if want := (p - 1) / (v*m + p - 1); !near(got, want) {
					t.Errorf("%+v, costs %v: bubble %v, want %v", c, costs, got, want)
				}
			case c.Name == schedule.NameZeroBubble && costs == unit && c.Micro >= 2*c.Stages-1:
				// The paper gives (p-1)(F+I-W) of waiting in a stage.
				if want := (p - 1) / (3*m + p - 1); !near(got, want) {
					t.Errorf("%+v: bubble %v, want %v", c, got, want)
				}
			}
		})
	}
}

func TestSimulate_ZeroBubbleNeverWaitsLongerThan1F1B(t *testing.T) {
	for range 2000 {
		costs := schedule.Costs{
			Forward: 0.1 + rand.Float64(),
			Input:   0.1 + rand.Float64(),
			Weight:  0.1 + rand.Float64(),
		}
		c := schedule.Config{
			Name:   schedule.NameZeroBubble,
			Stages: 1 + rand.IntN(8),
			Spans:  1,
			Micro:  1 + rand.IntN(24),
		}
		zero := simulate(t, c, costs)
		c.Name = schedule.NameOneFOneB
		if plain := simulate(t, c, costs); zero.Makespan > plain.Makespan+1e-9 {
			t.Errorf("%+v, costs %v: %v with zero-bubble, %v with 1f1b", c, costs, zero.Makespan, plain.Makespan)
		}
	}
}

func TestSimulate_ActivationsStayBounded(t *testing.T) {
	configs(func(c schedule.Config) {
		for stage, held := range simulate(t, c, unit).Peak {
			var most float64
			switch c.Name {
			case schedule.NameGPipe:
				most = float64(c.Micro)
			case schedule.NameOneFOneB:
				most = float64(c.Stages - stage)
			case schedule.NameZeroBubble:
				most = float64(c.Stages)
			case schedule.NameInterleaved:
				most = float64(2*(c.Stages-stage-1)+(c.Spans-1)*c.Stages+1) / float64(c.Spans)
			}
			if most = min(most, float64(c.Micro)); held > most {
				t.Errorf("%+v: stage %d holds %v micro-batches, want at most %v", c, stage, held, most)
			}
		}
	})
}

// However slow a stage is, only so many activations wait for it on each of several spans. The
// executor's queues are that long, so one span's never hold up another's on the same stream.
func TestConfig_FewActivationsWaitForASpan(t *testing.T) {
	for stages := 2; stages <= 4; stages++ {
		for _, micro := range []int{1, 5, 8, 13} {
			for spans := 2; spans <= 3; spans++ {
				c := schedule.Config{Name: schedule.NameInterleaved, Stages: stages, Spans: spans, Micro: micro}
				for slow := range stages {
					all := lists(t, c)
					whole := all[slow]
					for stop := range whole {
						all[slow] = whole[:stop]
						r, err := schedule.Simulate(all, unit)
						var dead *schedule.Deadlock
						if err != nil && !errors.As(err, &dead) {
							t.Fatal(err)
						}
						for span, n := range waiting(r, stages, spans, slow) {
							if n > stages {
								t.Fatalf("%+v: %d tensors wait for span %d of stage %d", c, n, span, slow)
							}
						}
					}
				}
			}
		}
	}
}

// waiting counts the activations and gradients that a stage's spans have been sent and not taken.
func waiting(r schedule.Result, stages, spans, at int) map[[2]int]int {
	out := map[[2]int]int{}
	for stage, list := range r.Timeline {
		for _, a := range list {
			position := a.Span*stages + stage
			for kind, from := range map[schedule.Kind]int{schedule.Forward: 1, schedule.Backward: -1} {
				if a.Kind != kind {
					continue
				}
				if stage == at {
					out[[2]int{int(kind), a.Span}]--
				}
				if to := position + from; to >= 0 && to < stages*spans && to%stages == at {
					out[[2]int{int(kind), to / stages}]++
				}
			}
		}
	}
	return out
}

func TestSimulate_NamesTheStageAndActionOfADeadlock(t *testing.T) {
	f, b := schedule.Forward, schedule.Backward
	_, err := schedule.Simulate([][]schedule.Action{
		{{Kind: f}, {Kind: b}, {Kind: f, Micro: 1}, {Kind: b, Micro: 1}},
		{{Kind: f}, {Kind: f, Micro: 1}, {Kind: b}, {Kind: b, Micro: 1}},
	}, unit)
	var dead *schedule.Deadlock
	if !errors.As(err, &dead) || dead.Stage != 0 || dead.Action != (schedule.Action{Kind: b}) ||
		dead.Needs != "B0 of stage 1" || fault.CodeOf(err) != fault.Invalid {
		t.Errorf("stages that wait for each other: %v", err)
	}
	if err != nil && !strings.Contains(err.Error(), "stage 0 cannot start B0") {
		t.Errorf("text is %q", err)
	}
}

// Any exchange of two actions of a list either completes with each action in order, or is found.
func TestSimulate_FindsEveryDeadlockThatASwapMakes(t *testing.T) {
	var found, passed int
	for range 3000 {
		c := schedule.Config{Name: schedule.Names()[rand.IntN(4)], Stages: 1 + rand.IntN(5), Spans: 1,
			Micro: 1 + rand.IntN(8)}
		if c.Name == schedule.NameInterleaved {
			c.Spans = 1 + rand.IntN(3)
		}
		all := lists(t, c)
		list := all[rand.IntN(len(all))]
		i, j := rand.IntN(len(list)), rand.IntN(len(list))
		list[i], list[j] = list[j], list[i]
		r, err := schedule.Simulate(all, unit)
		var dead *schedule.Deadlock
		switch {
		case errors.As(err, &dead):
			found++
			if at := len(r.Timeline[dead.Stage]); all[dead.Stage][at] != dead.Action {
				t.Fatalf("%+v: %v names an action that is not next", c, dead)
			}
		case err != nil:
			t.Fatalf("%+v: %v", c, err)
		default:
			passed++
		}
	}
	if found == 0 || passed == 0 {
		t.Errorf("%d swaps made a deadlock and %d did not, want both", found, passed)
	}
}

func TestSimulate_RefusesActionsThatAreNotPossible(t *testing.T) {
	f := schedule.Action{Kind: schedule.Forward}
	for name, all := range map[string][][]schedule.Action{
		"twice":             {{f, f}},
		"no kind":           {{{}}},
		"before the first":  {{{Kind: schedule.Forward, Micro: -1}}},
		"beyond the last":   {{{Kind: schedule.Forward, Micro: schedule.MaxMicro}}},
		"no such span":      {{{Kind: schedule.Forward, Span: -1}}},
		"too many spans":    {{{Kind: schedule.Forward, Span: schedule.MaxSpans}}},
		"weight, no input":  {{f, {Kind: schedule.BackwardWeight}}},
		"backward, no next": {{f, {Kind: schedule.Backward}}, {}},
	} {
		if _, err := schedule.Simulate(all, unit); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfig_NamesTheFieldItRefuses(t *testing.T) {
	good := schedule.Config{Name: schedule.NameOneFOneB, Stages: 2, Spans: 1, Micro: 4}
	for want, change := range map[string]func(*schedule.Config){
		"schedule":     func(c *schedule.Config) { c.Name = "zigzag" },
		"stages":       func(c *schedule.Config) { c.Stages = 0 },
		"microbatches": func(c *schedule.Config) { c.Micro = schedule.MaxMicro + 1 },
		"spans":        func(c *schedule.Config) { c.Spans = 2 },
	} {
		c := good
		change(&c)
		if _, err := c.All(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error that names %s", c, err, want)
		}
	}
	if _, err := good.Stage(2); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("stage 2 of 2: %v", err)
	}
}
