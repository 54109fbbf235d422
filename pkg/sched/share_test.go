package sched_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// timed is a pipeline whose batches take time: each stage computes one after another, in time that
// grows with the number of rows.
type timed struct {
	t         *testing.T
	s         *sched.Scheduler
	base, row time.Duration
	now       time.Duration
	busy      []time.Duration // until when each stage computes
	plan      []planned       // in the order of their times
	first     map[sched.ID]time.Duration
	cached    map[sched.ID]int
	logs      map[sched.ID][]int32
	ended     int
	rows      int
	steps     int
	attend    time.Duration // what a row takes more for each position before it
	emitted   map[sched.ID][]time.Duration
	batches   map[sched.ID]int     // how many had rows of it before its first token
	longest   time.Duration        // of a batch, from its start on the first stage to its end
	late      func() time.Duration // by which a batch takes longer; nil for not at all
}

type planned struct {
	at time.Duration
	e  sched.Event
}

func newTimed(t *testing.T, stages int, base, row time.Duration, c sched.Config) *timed {
	c.Stages = stages
	return &timed{t: t, s: sched.New(c), base: base, row: row, busy: make([]time.Duration, stages),
		first: map[sched.ID]time.Duration{}, cached: map[sched.ID]int{}, logs: map[sched.ID][]int32{},
		emitted: map[sched.ID][]time.Duration{}, batches: map[sched.ID]int{}}
}

func (p *timed) at(at time.Duration, e sched.Event) {
	i := slices.IndexFunc(p.plan, func(o planned) bool { return o.at > at })
	if i < 0 {
		i = len(p.plan)
	}
	p.plan = slices.Insert(p.plan, i, planned{at, e})
}

func (p *timed) submit(at time.Duration, e sched.Submit) {
	e.Epoch = 1
	p.logs[e.ID] = slices.Clone(e.Log)
	p.at(at, e)
}

// run runs until nothing is planned any more.
func (p *timed) run() {
	for len(p.plan) > 0 {
		next := p.plan[0]
		p.plan = p.plan[1:]
		p.now = next.at
		for _, c := range p.s.Step(p.now, []sched.Event{next.e}) {
			p.carryOut(c)
		}
		if p.steps++; p.steps%64 == 0 {
			if err := p.s.Check(); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

func (p *timed) carryOut(c sched.Command) {
	switch c := c.(type) {
	case sched.Add:
		p.at(p.now+p.base/10, sched.Accepted(c))
	case sched.Admit:
		if !c.Again {
			p.cached[c.ID] = c.Cached
		}
	case sched.Share:
		p.cached[c.ID] = c.Cached
	case sched.Remove:
		p.ended++
	case sched.Emit:
		if _, known := p.first[c.ID]; !known {
			p.first[c.ID] = p.now
		}
		p.logs[c.ID] = append(p.logs[c.ID], c.Data.(int32))
		p.emitted[c.ID] = append(p.emitted[c.ID], p.now)
	case sched.Batch:
		p.compute(c)
	case sched.Fail, sched.TurnAway, sched.End:
		p.t.Fatalf("%T%+v", c, c)
	}
}

func (p *timed) compute(b sched.Batch) {
	at, start, took := p.now, time.Duration(0), p.base+time.Duration(len(b.Tokens))*p.row
	for _, e := range b.Entries {
		took += time.Duration(e.Rows*e.Position+e.Rows*(e.Rows-1)/2) * p.attend
		if _, known := p.first[e.ID]; !known {
			p.batches[e.ID]++
		}
	}
	if p.late != nil {
		took += p.late()
	}
	for i := range p.busy {
		at = max(at, p.busy[i])
		if i == 0 {
			start = at
		}
		at += took
		p.busy[i] = at
	}
	p.longest = max(p.longest, at-start)
	p.rows += len(b.Tokens)
	chunks := false
	for _, e := range b.Entries {
		if e.Logits == 0 {
			chunks = true
			continue
		}
		id := after(p.logs[e.ID])
		p.at(at, sched.Picked{ID: e.ID, Epoch: e.Epoch, Position: e.Position + e.Rows, Token: id, Data: id})
	}
	if chunks {
		p.at(at, sched.Computed{Step: b.Step})
	}
}

// prompt returns n random tokens.
func prompt(rnd *rand.Rand, n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = rnd.Int32N(1000)
	}
	return out
}

// TestScheduler_SamePromptTogether submits 16 requests with one prompt of 1,000 tokens, alone and beside a
// sequence that generates.
func TestScheduler_SamePromptTogether(t *testing.T) {
	for _, stages := range []int{1, 3} {
		for _, beside := range []bool{false, true} {
			first := map[string]time.Duration{}
			for _, shared := range []bool{true, false} {
				c := config(4096)
				c.ChunkRows, c.BatchRows = 256, 1024
				p := newTimed(t, stages, 10*time.Millisecond, time.Millisecond, c)
				want := 16
				log := prompt(rand.New(rand.NewPCG(1, 1)), 1000)
				if beside {
					p.submit(0, sched.Submit{ID: "beside", Log: []int32{1, 2, 3}, MaxLen: 1000})
					want++
				}
				for i := range 16 {
					e := sched.Submit{ID: sched.ID(fmt.Sprint(i)), Log: log, MaxLen: 1010}
					if !shared {
						e.Namespace = fmt.Sprint(i)
					}
					p.submit(time.Second+time.Duration(i)*50*time.Microsecond, e)
				}
				p.run()
				if p.ended != want {
					t.Fatalf("%d sequences have ended, want %d", p.ended, want)
				}
				last, cached := time.Duration(0), 0
				for i := range 16 {
					id := sched.ID(fmt.Sprint(i))
					last = max(last, p.first[id]-time.Second)
					cached += p.cached[id]
				}
				first[fmt.Sprint(shared)] = last
				if shared && cached != 15*62*16 {
					t.Errorf("stages %d, beside %v: %d positions are reused, want 62 pages of 16 for each but one", stages,
						beside, cached)
				}
			}
			t.Logf("stages %d, beside %v: the last first token comes after %v, and after %v if nothing is shared", stages,
				beside, first["true"], first["false"])
			if first["true"]*4 > first["false"] {
				t.Errorf("stages %d, beside %v: %v with shared pages, %v without", stages, beside, first["true"],
					first["false"])
			}
		}
	}
}

// TestScheduler_SharingIsNeverMuchSlower compares the time to the first token with shared pages with the
// time without, for random loads. A request waits for what others compute, but for no more than two steps
// longer than if it computed all of its prompt itself, or three tenths of that time.
func TestScheduler_SharingIsNeverMuchSlower(t *testing.T) {
	faster, slower := 0, 0
	var worst float64
	for seed := range uint64(200) {
		run := func(shared bool) *timed {
			rnd := rand.New(rand.NewPCG(seed, 11))
			c := config(1 << 13)
			c.PageLen = 1 << rnd.IntN(5)
			c.ChunkRows = 16 << rnd.IntN(5)
			c.BatchRows = c.ChunkRows << rnd.IntN(3)
			row := time.Duration(1+rnd.IntN(1000)) * time.Microsecond
			p := newTimed(t, 1+rnd.IntN(4), 10*time.Millisecond, row, c)
			var prompts [][]int32
			for range 1 + rnd.IntN(3) {
				prompts = append(prompts, prompt(rnd, 1+rnd.IntN(400)))
			}
			for i := range rnd.IntN(3) {
				p.submit(0, sched.Submit{ID: sched.ID(fmt.Sprint("beside", i)), Log: prompt(rnd, 5), MaxLen: 100})
			}
			// What steps cost is measured before, as it is on a pipeline that is probed.
			p.submit(0, sched.Submit{ID: "probe", Log: []int32{1, 2}, MaxLen: 8})
			over := 1 + rnd.IntN(1000)
			for i := range 1 + rnd.IntN(12) {
				log := prompts[rnd.IntN(len(prompts))]
				log = append(slices.Clone(log[:1+rnd.IntN(len(log))]), prompt(rnd, rnd.IntN(200))...)
				if rnd.IntN(2) == 0 {
					log = prompts[0]
				}
				e := sched.Submit{ID: sched.ID(fmt.Sprint(i)), Log: log, MaxLen: len(log) + 1 + rnd.IntN(20)}
				if !shared {
					e.Namespace = fmt.Sprint(i)
				}
				p.submit(time.Duration(500+rnd.IntN(over))*time.Millisecond, e)
			}
			open := len(p.plan)
			p.run()
			if p.ended != open {
				t.Fatalf("seed %d: %d of %d sequences have ended", seed, p.ended, open)
			}
			return p
		}
		with, without := run(true), run(false)
		if with.rows > without.rows {
			t.Errorf("seed %d: %d rows with shared pages, %d without", seed, with.rows, without.rows)
		}
		step := max(with.longest, without.longest)
		for id, at := range with.first {
			late := at - without.first[id]
			if late > 0 {
				slower++
			} else {
				faster++
			}
			worst = max(worst, float64(late)/float64(step))
			if late > 2*step && late > without.first[id]*3/10 {
				t.Errorf("seed %d: %s has its first token %v later with shared pages than after %v, a step takes %v", seed, id,
					late, without.first[id], step)
			}
		}
	}
	t.Logf("%d as early or earlier, %d later, at most by %.1f steps", faster, slower, worst)
}
