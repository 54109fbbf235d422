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
	rowFactor  = 4                      // what it adds afterwards, as a multiple of the average; at least the longest
	firstChunk = 32                     // rows of a prompt beside decoding rows before any were measured
	chunkShare = 0.8                    // what prompts may take beside decoding rows, of the time of those
	// Beside decoding rows, a sequence that comes from another pipeline, or is replayed, may take movedShare times
	// as long as they do, but no longer than movedMost: its client has had no token since the loss.
	movedShare = 4
	movedMost  = 50 * time.Millisecond
	// A short prompt has chunks of at least leastChunk rows, even if such a step takes too long. At most slackMost
	// steps in a row and one in slackEvery do, so that they are beyond the 99th percentile of the time between
	// tokens: over n tokens there are slackMost + n/slackEvery of them, less than n/100 from 800 on.
	leastChunk   = 4
	slackMost    = 4
	slackEvery   = 200
	shortRows    = slackMost * leastChunk
	measureEvery = 256 // batches with rows of prompts beside decoding rows until one has none
	manyMore     = 4   // decoding rows more, at least, for such a batch before that
	fewRows      = 8
	average      = 0.2 // weight of a new value in moving averages
	singleShare  = 0.05
)

// timing measures batches. All times are seconds.
type timing struct {
	floor, lone time.Duration
	spare       bool
	unproven    bool // a stage is new and has computed nothing
	cold        int  // so many batches more are slower than later ones, because a stage is new
	stalePlain  bool // the moving averages of batches without prompts are those of cold stages
	staleRows   bool // the same of rows of prompts

	took  []float64 // of the last batches without prompts, from sending to the last token, without prompts before
	next  int
	slow  float64       // the 99th percentile of took
	plain time.Duration // moving average of batches without prompts and draft tokens
	// single is the moving average of batches of one row without others in flight, and singles how many there were.
	single  float64
	singles int

	measured int     // batches, of any kind
	longest  float64 // decaying maximum of their times

	last  time.Duration // when the last batch was done
	chain cost          // what a batch adds to the time of those before it
	stage share         // the same as far as one stage is busy with it
	worst float64       // decaying maximum of chain.row

	draft    float64 // moving average of what the draft model takes for a token
	draftRow float64 // moving average of what the row of a draft token adds to a batch

	slack      float64 // steps that may take too long because of a short prompt
	unmeasured int     // batches with decoding rows since one had no rows of prompts
	decodes    int     // the decoding rows of that one
}

// cost has moving averages, in seconds.
type cost struct {
	batch float64 // of a batch without rows of prompts
	row   float64 // what a row of a prompt adds
}

// of measures a batch with rows of prompts and returns what they have added.
func (c *cost) of(service float64, prompts int) float64 {
	more := max(service-c.batch, service/10)
	c.row = blend(c.row, more/float64(prompts))
	return more
}

// share is the cost from which the number of rows of prompts beside decoding rows follows. Its row is the average of
// times over the average of rows, not that of their ratios: in that one a few rows that were late by chance count as
// much as many, and because rows that seem slow are sent a few at a time, they would seem slow for good.
type share struct {
	cost
	decodes    int     // the rows of a batch that takes as long as batch
	more, rows float64 // what batches with rows of prompts took longer than batch, and with how many rows more
}

// of measures a batch with rows of prompts.
func (c *share) of(busy float64, prompts, decodes int) {
	c.more = blend(c.more, max(busy-c.batch, busy/10))
	c.rows = blend(c.rows, float64(prompts+max(0, decodes-c.decodes)))
	c.row = c.more / c.rows
}

// resize makes batch the time of a batch with another number of decoding rows, as far as that is known.
func (c *share) resize(decodes int) {
	if c.batch > 0 && c.decodes > 0 {
		c.batch = max(c.batch+float64(decodes-c.decodes)*c.row, c.batch/2)
	}
	c.decodes = decodes
}

func newTiming(floor, lone time.Duration) timing {
	if floor == 0 {
		floor = stepFloor
	}
	if lone == 0 {
		lone = max(loneFloor, floor)
	}
	return timing{floor: floor, lone: lone, slack: slackMost, unmeasured: measureEvery - coldSteps}
}

// done measures a batch that is done. part is the part of the stages that were busy: where few batches are in
// flight, the time between them is longer than a stage needs for one. beside says that rows of prompts are in flight,
// and only that nothing else is.
func (t *timing) done(f *flight, now time.Duration, part float64, beside, only bool) {
	took := (now - f.sent).Seconds()
	service := (now - max(f.sent, t.last)).Seconds()
	only = only && f.sent >= t.last
	busy := service * part
	t.last = now
	t.unproven = false
	if t.cold > 0 {
		t.cold--
		return
	}
	if f.replay { // not all stages had a part in it
		return
	}
	t.measured++
	t.longest = max(took, t.longest*0.98)
	if !f.decode {
		if f.prompts > 0 {
			if t.staleRows {
				t.staleRows, t.chain.row, t.worst = false, 0, 0
				t.stage.row, t.stage.more, t.stage.rows = 0, 0, 0
			}
			t.stage.of(busy, f.prompts, f.decodes)
			more := t.chain.of(service, f.prompts)
			// The time of a few rows is mostly that of the batch.
			t.worst = max(more/float64(max(f.prompts, fewRows)), t.worst*0.98)
		}
		return
	}
	// What rows of prompts before it have taken is in the deadlines of its like already (limit).
	own := max(took-float64(f.ahead)*t.chain.row, took/4)
	if len(t.took) < timesKept {
		t.took = append(t.took, own)
	} else {
		t.took[t.next] = own
	}
	t.next = (t.next + 1) % timesKept
	if n := len(t.took); own > t.slow || n < 2*coldSteps || t.next%16 == 0 {
		sorted := slices.Clone(t.took)
		slices.Sort(sorted)
		t.slow = sorted[min(n-1, n*99/100)]
	}
	if f.mixed {
		return
	}
	if f.drafts > 0 && len(f.entries) == 1 && t.plain > 0 {
		t.draftRow = blend(t.draftRow, max(took-t.plain.Seconds(), 0)/float64(f.drafts))
	}
	// A step with draft tokens takes at least as long as one without, so it can only lower the averages.
	if f.drafts > 0 {
		t.plain = min(t.plain, now-f.sent)
		t.chain.batch, t.stage.batch = min(t.chain.batch, service), min(t.stage.batch, busy)
		return
	}
	if t.stalePlain && f.drafts == 0 {
		t.stalePlain, t.plain, t.chain.batch, t.stage.batch = false, 0, 0, 0
	}
	if only && f.rows == 1 {
		t.singles++
		t.single += (took - t.single) * max(singleShare, 1/float64(t.singles))
	}
	t.plain = time.Duration(blend(t.plain.Seconds(), took) * float64(time.Second))
	t.chain.batch = blend(t.chain.batch, service)
	if f.decodes > 0 {
		t.stage.resize(f.decodes)
	}
	if beside = beside || f.behind; beside && t.stage.batch > 0 { // it may have waited for prompts
		busy = min(busy, t.stage.batch)
	}
	t.stage.batch = blend(t.stage.batch, busy)
}

// warm begins to measure anew, because the stages had computed nothing before: they have read their weights from
// the disk and allocated memory. Deadlines are long until some batches have been measured. The averages are kept
// until there are others.
func (t *timing) warm() {
	t.took, t.next, t.slow, t.measured, t.longest = t.took[:0], 0, 0, 0, 0
	t.single, t.singles = 0, 0
	t.stalePlain, t.staleRows = true, true
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
	} else if t.cold > 0 {
		limit += unprovenLimit
	}
	if t.worst > 0 {
		// Not a multiple of the worst: one batch that was late would make all deadlines of the next minute long.
		row = time.Duration(max(rowFactor*t.chain.row, t.worst) * float64(time.Second))
	}
	return limit + time.Duration(f.prompts+f.ahead)*row
}

// fit returns how many rows of prompts take about as long as the decoding rows of a batch do, but from least to most.
// The time of a row grows with the length of the prefix that it attends to, and so the chunks of a long prompt shrink.
func (t *timing) fit(least, most int) int {
	if t.stage.row == 0 || t.stage.batch == 0 {
		return min(most, firstChunk)
	}
	return min(most, max(least, int(chunkShare*t.stage.batch/t.stage.row)))
}

// fitMoved does the same for a sequence that comes from another pipeline.
func (t *timing) fitMoved(most int) int {
	rows := t.fit(leastChunk, most)
	if t.stage.row > 0 {
		rows = max(rows, int(min(movedShare*t.stage.batch, movedMost.Seconds())/t.stage.row))
	}
	return min(rows, most)
}

// promptRows returns how many rows of prompts a batch with decoding rows may have, of which the first prompt has left
// rows to be sent. slow says that they take longer than the decoding rows, because the prompt is short. decodes is how
// many decoding rows the batch has already. Now and then, and when they have become many more or fewer, it has no
// others, so that their time is measured again.
//
// So a prompt at most doubles the time between tokens, unless a single row of it takes longer than the decoding rows.
// It gets at least 28 % of the time: where a number of rows is rounded down to one, that one takes more than 0.4 of
// the decoding rows' time. A moved sequence gets more.
func (t *timing) promptRows(most, left, decodes int, moved bool) (rows int, slow bool) {
	few := 4*decodes < 3*t.decodes
	many := t.decodes > 0 && decodes >= max(2*t.decodes, t.decodes+manyMore)
	if decodes > 0 && (t.unmeasured >= measureEvery || few || many) {
		return 0, false
	}
	if moved {
		return t.fitMoved(most), false
	}
	rows = t.fit(1, most)
	if rows < min(left, leastChunk) && left <= shortRows && t.slack >= 1 {
		return min(most, leastChunk), true
	}
	return rows, false
}

// sent notes a batch with some decoding rows. prompts says that it has rows of prompts, and slow that they take too
// long.
func (t *timing) sent(decodes int, prompts, slow bool) {
	if slow {
		t.slack--
	} else {
		t.slack = min(slackMost, t.slack+1.0/slackEvery)
	}
	if t.unmeasured++; !prompts {
		t.unmeasured, t.decodes = 0, decodes
	}
}
