package sample

import (
	"cmp"
	"math"
	"slices"
)

// Beams is a beam search: the best sequences by the sum of their log-probabilities
// divided by their length to a power. In each step the caller passes the logits rows of the
// live beams and learns which of them continue, and with which id.
type Beams struct {
	width   int
	most    int // maximum number of new ids of a sequence
	penalty float64
	end     map[int32]bool

	live []Beam
	done []Beam // best first, at most width
	step int
}

// Beam is a sequence of new ids.
type Beam struct {
	IDs   []int32
	Sum   float64 // of log-probabilities
	Score float64 // Sum / len(IDs)^penalty
	From  int     // the live beam of the step before that it continues
	// Ended reports that its last id ends the text.
	Ended bool
}

// NewBeams starts a search with one beam without ids.
func NewBeams(width, most int, penalty float64, ends []int32) *Beams {
	b := &Beams{width: width, most: most, penalty: penalty, end: map[int32]bool{}, live: []Beam{{}}}
	for _, id := range ends {
		b.end[id] = true
	}
	return b
}

// Live returns the beams whose logits rows Advance takes next, best first. There are none when
// the search is over.
func (b *Beams) Live() []Beam { return b.live }

// Advance takes the rows of the live beams, in their order.
func (b *Beams) Advance(rows [][]float32) {
	b.step++
	// Look at enough candidates that width beams continue even if the others end.
	look := max(2, 1+len(b.end)) * b.width
	var next []Beam
	for from, row := range rows {
		best := Best(row, min(look, len(row)))
		top := float64(best[0].Logit)
		var total float64
		for _, v := range row {
			total += math.Exp(float64(v) - top)
		}
		lse := top + math.Log(total)
		for _, c := range best {
			next = append(next, Beam{IDs: []int32{c.ID}, Sum: b.live[from].Sum + float64(c.Logit) - lse, From: from,
				Ended: b.end[c.ID]})
		}
	}
	slices.SortStableFunc(next, func(x, y Beam) int {
		if c := cmp.Compare(y.Sum, x.Sum); c != 0 {
			return c
		}
		if c := cmp.Compare(x.From, y.From); c != 0 {
			return c
		}
		return cmp.Compare(x.IDs[0], y.IDs[0])
	})
	var live []Beam
	last := b.step == b.most
	for rank, n := range next[:min(look, len(next))] {
		if len(live) == b.width {
			break
		}
		n.IDs = append(slices.Clone(b.live[n.From].IDs), n.IDs[0])
		n.Score = n.Sum / math.Pow(float64(len(n.IDs)), b.penalty)
		switch {
		case !n.Ended:
			live = append(live, n)
		case rank < b.width: // a finished sequence among the best
			b.finish(n)
		}
	}
	b.live = live
	if last {
		for _, n := range live {
			b.finish(n)
		}
		b.live = nil
		return
	}
	if len(b.done) == b.width && len(live) > 0 {
		// Stop if no live beam can become better than the worst finished one.
		if attainable := live[0].Sum / math.Pow(float64(b.step), b.penalty); b.done[b.width-1].Score >= attainable {
			b.live = nil
		}
	}
}

// finish adds a sequence, best first.
func (b *Beams) finish(n Beam) {
	at, _ := slices.BinarySearchFunc(b.done, n, func(x, y Beam) int { return cmp.Compare(y.Score, x.Score) })
	for at < len(b.done) && b.done[at].Score == n.Score {
		at++ // of equal scores the earlier one ranks first
	}
	b.done = slices.Insert(b.done, at, n)
	b.done = b.done[:min(len(b.done), b.width)]
}

// Done returns the finished sequences, best first.
func (b *Beams) Done() []Beam { return b.done }
