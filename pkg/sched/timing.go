package sched

import (
	"slices"
	"time"
)

const (
	stepFloor  = 250 * time.Millisecond // default of Config.Floor
	loneFloor  = 2 * time.Second        // default of Config.LoneFloor, unless Floor is longer
	stepFactor = 5                      // a deadline is this many times the slow steps' time
	timesKept  = 256                    // steps whose times decide what is slow
	coldSteps  = 4                      // steps before times are trusted
	coldLimit  = 60 * time.Second       // the deadline until then: weights may have to be read from disk
	coldRow    = 20 * time.Millisecond  // what a prompt's row adds until it has been measured
	rowFactor  = 4                      // what it adds afterwards, as a multiple of the measured time
	firstChunk = 32                     // rows of a prompt beside decoding rows before any were measured
	leastChunk = 4
	chunkShare = 0.8 // what the rows of prompts beside decoding rows may take, of the decoding rows' time
	fewRows    = 8
	average    = 0.2 // weight of a new value in moving averages
)

// timing measures batches. All times are seconds.
type timing struct {
	floor, lone time.Duration
	spare       bool
	unproven    bool // a stage is new and has computed nothing

	took  []float64 // of the last batches without prompts, from sending to the last token
	next  int
	slow  float64       // the 99th percentile of took
	plain time.Duration // moving average of batches without prompts and draft tokens

	measured int     // batches, of any kind
	longest  float64 // decaying maximum of their times

	last    time.Duration // when the last batch was done
	service float64       // moving average of what a batch without prompts adds to the time of those before it
	row     float64       // moving average of what a row of a prompt adds to its batch
	worst   float64       // decaying maximum of the same
}

func newTiming(floor, lone time.Duration) timing {
	if floor == 0 {
		floor = stepFloor
	}
	if lone == 0 {
		lone = max(loneFloor, floor)
	}
	return timing{floor: floor, lone: lone}
}

// done measures a batch that is done.
func (t *timing) done(f *flight, now time.Duration) {
	took := (now - f.sent).Seconds()
	service := (now - max(f.sent, t.last)).Seconds()
	t.last = now
	t.unproven = false
	if f.replay { // not all stages had a part in it
		return
	}
	t.measured++
	t.longest = max(took, t.longest*0.98)
	if !f.decode {
		if f.prompts > 0 {
			more := max(service-t.service, service/10)
			t.row = blend(t.row, more/float64(f.prompts))
			// The time of a few rows is mostly that of the batch.
			t.worst = max(more/float64(max(f.prompts, fewRows)), t.worst*0.98)
		}
		return
	}
	if len(t.took) < timesKept {
		t.took = append(t.took, took)
	} else {
		t.took[t.next] = took
	}
	t.next = (t.next + 1) % timesKept
	if n := len(t.took); took > t.slow || n < 2*coldSteps || t.next%16 == 0 {
		sorted := slices.Clone(t.took)
		slices.Sort(sorted)
		t.slow = sorted[min(n-1, n*99/100)]
	}
	if f.mixed {
		return
	}
	// A step with draft tokens takes at least as long as one without, so it can only lower the averages.
	if f.drafts > 0 {
		t.plain = min(t.plain, now-f.sent)
		t.service = min(t.service, service)
		return
	}
	t.plain = time.Duration(blend(t.plain.Seconds(), took) * float64(time.Second))
	t.service = blend(t.service, service)
}

func blend(old, value float64) float64 {
	if old == 0 {
		return value
	}
	return old + average*(value-old)
}

// limit returns the deadline of a batch: several times a slow step, and time for the rows of prompts
// in it and before it. Without a spare pipeline nothing is gained by an early end, so the floor is
// higher.
func (t *timing) limit(f *flight) time.Duration {
	limit, row := coldLimit, coldRow
	slow := t.slow
	if len(t.took) < coldSteps { // so far nearly all batches had prompts
		slow = t.longest
	}
	if t.measured >= coldSteps {
		floor := t.lone
		if t.spare {
			floor = t.floor
		}
		limit = max(floor, time.Duration(stepFactor*slow*float64(time.Second)))
	}
	if t.unproven {
		if t.spare {
			limit += unprovenLimit
		} else {
			limit = max(limit, coldLimit)
		}
	}
	if t.worst > 0 {
		row = time.Duration(rowFactor * t.worst * float64(time.Second))
	}
	return limit + time.Duration(f.prompts+f.ahead)*row
}

// promptRows returns how many rows of prompts a batch with decoding rows may have: as many as take
// about as long as the decoding rows do. The time of a row grows with the length of the prefix that it
// attends to, and so the chunks of a long prompt shrink.
func (t *timing) promptRows(most int) int {
	if t.row == 0 || t.service == 0 {
		return min(most, firstChunk)
	}
	return min(most, max(leastChunk, int(chunkShare*t.service/t.row)))
}
