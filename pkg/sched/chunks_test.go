package sched_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// gaps returns the times between tokens of all sequences but one, sorted, in a span of time; and at least a number of
// them for each sequence.
func (p *timed) gaps(but sched.ID, from, to time.Duration, least int) (out []time.Duration) {
	for id, at := range p.emitted {
		n := 0
		for i := 1; i < len(at) && id != but; i++ {
			if at[i] > from && (at[i-1] < to || n < least) {
				n++
				out = append(out, at[i]-at[i-1])
			}
		}
	}
	slices.Sort(out)
	return out
}

func percentile(sorted []time.Duration, part float64) time.Duration {
	return sorted[min(len(sorted)-1, int(float64(len(sorted))*part))]
}

// besideStreams runs some streams and, from a time on, a prompt beside them.
func besideStreams(t *testing.T, stages, streams, prompts int, from, base, row time.Duration) *timed {
	p := newTimed(t, stages, base, row, config(1<<13))
	for i := range streams {
		p.submit(0, sched.Submit{ID: sched.ID(fmt.Sprint("stream", i)), Log: []int32{int32(i), 2, 3}, MaxLen: 6000})
	}
	if prompts > 0 {
		log := prompt(rand.New(rand.NewPCG(1, 1)), prompts)
		p.submit(from, sched.Submit{ID: "prompt", Log: log, MaxLen: prompts + 1})
	}
	p.run()
	return p
}

// TestScheduler_LongPromptBesideStreams checks what is promised for costs of a step of base + rows * row: the 99th
// percentile of the time between tokens is at most twice as long beside a long prompt, and the prompt gets at least
// 28 % of the time.
func TestScheduler_LongPromptBesideStreams(t *testing.T) {
	const base, rows = 10 * time.Millisecond, 4000
	for _, stages := range []int{1, 2} {
		for _, streams := range []int{1, 3} {
			for _, ratio := range []float64{0.01, 0.1, 0.3, 0.7, 1, 4, 16} {
				row := time.Duration(ratio * float64(base))
				from := 20 * time.Duration(stages+streams) * (base + row)
				alone := besideStreams(t, stages, streams, 0, from, base, row)
				p := besideStreams(t, stages, streams, rows, from, base, row)
				end := p.first["prompt"]
				before := percentile(alone.gaps("", from, end, 800), 0.99)
				beside := percentile(p.gaps("prompt", from, end, 800), 0.99)
				share := rows * row.Seconds() / (end - from).Seconds()
				t.Logf("stages %d, streams %d, row/base %.2f: p99 %v, and %v beside the prompt (%.2fx), which gets %.0f %%",
					stages, streams, ratio, before, beside, float64(beside)/float64(before), 100*share)
				if beside > 2*before {
					t.Errorf("stages %d, streams %d, row/base %.2f: p99 %v, want at most twice %v", stages, streams, ratio,
						beside, before)
				}
				if share < 0.28*63/64 {
					t.Errorf("stages %d, streams %d, row/base %.2f: the prompt gets %.0f %% of the time", stages, streams,
						ratio, 100*share)
				}
			}
		}
	}
}

// TestScheduler_ShortPromptsBesideAStream checks that a short prompt takes a step for every four rows, however long a
// row takes, as long as few steps are slow; and that many short prompts do not make the stream slow.
func TestScheduler_ShortPromptsBesideAStream(t *testing.T) {
	const base, row = 10 * time.Millisecond, 10 * time.Millisecond
	run := func(every time.Duration, n, length int) *timed {
		p := newTimed(t, 1, base, row, config(1<<13))
		p.submit(0, sched.Submit{ID: "stream", Log: []int32{1, 2, 3}, MaxLen: 3000})
		rnd := rand.New(rand.NewPCG(1, 1))
		for i := range n {
			p.submit(time.Second+time.Duration(i)*every,
				sched.Submit{ID: sched.ID(fmt.Sprint(i)), Log: prompt(rnd, length), MaxLen: length + 1})
		}
		p.run()
		return p
	}
	for length := 1; length <= 16; length++ {
		if steps := run(0, 1, length).batches["0"]; steps > (length+3)/4 {
			t.Errorf("a prompt of %d tokens takes %d steps", length, steps)
		}
	}
	p := run(200*time.Millisecond, 200, 12)
	if p99 := percentile(p.gaps("", time.Second, 0, 3000), 0.99); p99 > 2*(base+row) {
		t.Errorf("the 99th percentile of the time between tokens is %v beside short prompts, want at most %v", p99,
			2*(base+row))
	}
}

// TestScheduler_ShortRequestsTogether submits 64 requests of 16 tokens that want 32 more each, one after another beside
// a stream. They take at most 1.4 times as long as they would if all of their rows were in full batches, also if
// batches are late now and then: rows of prompts are not taken for expensive because the number of decoding rows has
// grown, or because a few of them were late.
func TestScheduler_ShortRequestsTogether(t *testing.T) {
	const base, requests, length, more = 12 * time.Millisecond, 64, 16, 32
	for _, late := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond} {
		for _, row := range []time.Duration{500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond} {
			const seeds = 5
			var took time.Duration
			for seed := range uint64(seeds) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				p := newTimed(t, 1, base, row, config(1<<13))
				p.late = func() time.Duration { return time.Duration(rnd.ExpFloat64() * float64(late)) }
				p.submit(0, sched.Submit{ID: "stream", Log: []int32{1, 2, 3}, MaxLen: 1000})
				from, end := time.Second, time.Duration(0)
				for i := range requests {
					p.submit(from+time.Duration(i)*time.Millisecond, sched.Submit{ID: sched.ID(fmt.Sprint(i)),
						Log: prompt(rnd, length), MaxLen: length + more})
				}
				p.run()
				for id, at := range p.emitted {
					if id != "stream" {
						end = max(end, at[len(at)-1])
					}
				}
				took += end - from
			}
			best := requests*(length+more-1)*row + more*(base+row+late)
			t.Logf("late %v, row %v: %.2f times as long", late, row, took.Seconds()/seeds/best.Seconds())
			if took/seeds > best*7/5 {
				t.Errorf("late by %v on average, rows of %v: %v, want at most 1.4 times %v", late, row, took/seeds, best)
			}
		}
	}
}
