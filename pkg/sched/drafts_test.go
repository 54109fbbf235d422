package sched_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// costs are those of speculation on one stage: a step takes step and row for each row, and the draft model takes draft
// for each token. A draft token is right with the probability right.
type costs struct {
	step, row, draft time.Duration
	right            float64
}

// fixed returns the time for a token with n draft tokens in every round.
func (c costs) fixed(n int) time.Duration {
	tokens, all := 0.0, 1.0
	for range n + 1 {
		tokens += all
		all *= c.right
	}
	return time.Duration(float64(c.step+time.Duration(n+1)*c.row+time.Duration(n)*c.draft) / tokens)
}

// generate returns the time for a token over n tokens with at most most draft tokens in a round.
func (c costs) generate(t *testing.T, n, most int) time.Duration {
	conf := config(1 << 13)
	conf.Stages = 1
	s := sched.New(conf)
	rnd := rand.New(rand.NewPCG(7, 7))
	text := prompt(rnd, 3*n) // every token is new, so that there are no n-grams
	for i := range text {
		text[i] = int32(i)
	}
	log := 4
	var now, start time.Duration
	plan := []planned{{0, sched.Submit{ID: "a", Epoch: 1, Log: text[:log], MaxLen: log + n + 8, Speculate: most}}}
	for made := 0; len(plan) > 0 && made < n+8; {
		next := plan[0]
		plan = plan[1:]
		now = next.at
		for _, command := range s.Step(now, []sched.Event{next.e}) {
			switch e := command.(type) {
			case sched.Add:
				plan = append(plan, planned{now, sched.Accepted(e)})
			case sched.Fail:
				t.Fatalf("%+v", e)
			case sched.Emit:
				if made++; made == 8 { // as a probe does, some plain steps come first
					start = now
					plan = append(plan, planned{now, sched.DraftReady{ID: "a", Ready: true}})
				}
			case sched.Propose:
				d := sched.Drafted{ID: "a", Round: e.Round}
				for i := range e.N {
					id := text[len(e.Log)+i]
					if rnd.Float64() >= c.right {
						id = -1
					}
					d.IDs = append(d.IDs, id)
				}
				plan = append(plan, planned{now + time.Duration(e.N)*c.draft, d})
			case sched.Batch:
				b := e.Entries[0]
				at := now + c.step + time.Duration(b.Rows)*c.row
				for i, position := 0, b.Position+b.Rows-len(b.Drafts); ; i, position = i+1, position+1 {
					plan = append(plan, planned{at, sched.Picked{ID: "a", Epoch: 1, Position: position,
						Token: text[position]}})
					if i == len(b.Drafts) || b.Drafts[i] != text[position] {
						break
					}
				}
			}
		}
	}
	return (now - start) / time.Duration(n)
}

// TestScheduler_NumberOfDraftTokens compares the time for a token with that of plain decoding and of the best fixed
// number of draft tokens.
func TestScheduler_NumberOfDraftTokens(t *testing.T) {
	const step, most = 100 * time.Millisecond, 8
	for _, row := range []time.Duration{2, 10, 30, 60} {
		for _, draft := range []time.Duration{2, 10, 30, 60} {
			for _, right := range []float64{0.3, 0.5, 0.7, 0.8, 0.9, 0.97} {
				c := costs{step, row * time.Millisecond, draft * time.Millisecond, right}
				plain, best, at := c.fixed(0), c.fixed(0), 0
				for n := 1; n <= most; n++ {
					if d := c.fixed(n); d < best {
						best, at = d, n
					}
				}
				got := c.generate(t, 1500, most)
				t.Logf("row %2d, draft token %2d, right %.2f: %.2fx, best %.2fx with %d", row, draft, right,
					float64(plain)/float64(got), float64(plain)/float64(best), at)
				if float64(got) > float64(plain)/0.97 {
					t.Errorf("row %d, draft token %d, right %.2f: %v for a token, plain %v", row, draft, right, got, plain)
				}
				if float64(got) > 1.12*float64(best) {
					t.Errorf("row %d, draft token %d, right %.2f: %v for a token, best %v with %d", row, draft, right, got,
						best, at)
				}
			}
		}
	}
}
