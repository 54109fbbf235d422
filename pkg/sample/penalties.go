package sample

import (
	"math"
	"slices"
)

// LogitBias adds to the logits of single ids.
type LogitBias map[int32]float64

// RepetitionPenalty divides positive and multiplies negative logits of all ids so far
// (Keskar et al., arXiv 1909.05858).
type RepetitionPenalty float64

// Penalties lower the logits of the ids in a window of the history: positive logits are
// divided by Repeat and others multiplied, then Frequency is subtracted once per occurrence
// and Presence once.
type Penalties struct {
	Repeat, Frequency, Presence float64
	LastN                       int  // ids of the window; negative means all
	EmittedOnly                 bool // the window holds only emitted ids
}

// DRY lowers the logits of ids that would continue a repetition. Continuing a repetition of n
// ids, where n is at least AllowedLength, costs Multiplier·Base^(n-AllowedLength).
type DRY struct {
	Multiplier, Base float64
	AllowedLength    int
	LastN            int       // ids considered; negative means all
	Breakers         [][]int32 // sequences that end a repetition
}

// NoRepeatNGram drops ids that would complete an n-gram that occurred before.
type NoRepeatNGram int

// BadWords drops ids that would complete one of the sequences.
type BadWords [][]int32

// MinTokens drops the stop ids until N ids have been emitted.
type MinTokens struct {
	N    int
	Ends []int32
}

// Name is logit_bias.
func (LogitBias) Name() string         { return "logit_bias" }
func (RepetitionPenalty) Name() string { return "repetition_penalty" }
func (Penalties) Name() string         { return "penalties" }
func (DRY) Name() string               { return "dry" }
func (NoRepeatNGram) Name() string     { return "no_repeat_ngram" }
func (BadWords) Name() string          { return "bad_words" }
func (MinTokens) Name() string         { return "min_tokens" }

func (b LogitBias) apply(s *state) error {
	affected, raises := make(map[int32]bool, len(b)), false
	for id, v := range b {
		affected[id] = true
		raises = raises || v > 0
	}
	return s.change(affected, raises, func(e entry) float64 { return e.logit + b[e.id] })
}

// repeated returns a logit after a repetition penalty.
func repeated(logit, penalty float64) float64 {
	if logit > 0 {
		return logit / penalty
	}
	return logit * penalty
}

func keys(counts map[int32]int) map[int32]bool {
	out := make(map[int32]bool, len(counts))
	for id := range counts {
		out[id] = true
	}
	return out
}

func (p RepetitionPenalty) apply(s *state) error {
	if p == 1 || p <= 0 {
		return nil
	}
	return s.change(keys(s.history.seen), p < 1, func(e entry) float64 { return repeated(e.logit, float64(p)) })
}

func (p Penalties) off() bool {
	return (p.Repeat == 1 || p.Repeat <= 0) && p.Frequency == 0 && p.Presence == 0
}

func (p Penalties) counts(h *History) map[int32]int {
	if p.EmittedOnly {
		return h.emitted
	}
	return h.counts(p.LastN)
}

func (p Penalties) raises() bool {
	return p.Repeat > 0 && p.Repeat < 1 || p.Frequency < 0 || p.Presence < 0
}

func (p Penalties) apply(s *state) error {
	if p.off() {
		return nil
	}
	counts := p.counts(s.history)
	return s.change(keys(counts), p.raises(), func(e entry) float64 {
		logit := e.logit
		if p.Repeat > 0 {
			logit = repeated(logit, p.Repeat)
		}
		return logit - float64(counts[e.id])*p.Frequency - p.Presence
	})
}

func (d DRY) apply(s *state) error {
	penalties := d.penalties(s.history.window(d.LastN))
	affected := make(map[int32]bool, len(penalties))
	for id := range penalties {
		affected[id] = true
	}
	return s.change(affected, d.Multiplier < 0, func(e entry) float64 { return e.logit - penalties[e.id] })
}

// penalties returns the penalty of each id that would continue a repetition.
func (d DRY) penalties(ids []int32) map[int32]float64 {
	if d.Multiplier == 0 || d.Base < 1 || len(ids) <= d.AllowedLength {
		return nil
	}
	limit := d.reach(ids)
	if limit < d.AllowedLength {
		return nil
	}
	longest := map[int32]int{}
	for i, n := range suffixes(ids) {
		if n = min(n, limit); n >= d.AllowedLength && i+1 < len(ids) {
			longest[ids[i+1]] = max(longest[ids[i+1]], n)
		}
	}
	for _, b := range d.Breakers {
		if len(b) == 1 {
			delete(longest, b[0]) // a breaker ends a repetition and never continues it
		}
	}
	out := make(map[int32]float64, len(longest))
	for id, n := range longest {
		power := float64(n - d.AllowedLength)
		if d.Base > 1.000001 {
			power = min(power, math.Floor(dryMost/math.Log(d.Base)))
		}
		out[id] = d.Multiplier * math.Pow(d.Base, power)
	}
	return out
}

// dryMost is the logarithm of the greatest float32, which penalties must not exceed.
const dryMost = 88.7228391

// reach returns the number of ids after the last breaker.
func (d DRY) reach(ids []int32) int {
	for n := range len(ids) { // a breaker's first id is the one before the last n
		at := len(ids) - 1 - n
		longest := 0
		for _, b := range d.Breakers {
			if len(b) > 0 && len(b) <= n+1 && equal(ids[at:at+len(b)], b) {
				longest = max(longest, len(b))
			}
		}
		if longest > 0 {
			return n + 1 - longest
		}
	}
	return len(ids)
}

func equal(a, b []int32) bool {
	for i, v := range a {
		if v != b[i] {
			return false
		}
	}
	return true
}

// suffixes returns, for every index, the length of the longest sequence that ends there and
// also ends ids. It is the Z function of the reversed ids, so it takes linear time. The last
// index has 0.
func suffixes(ids []int32) []int {
	n := len(ids)
	z := make([]int, n) // of the reverse
	from, to := 0, 0
	for i := 1; i < n; i++ {
		k := 0
		if i < to {
			k = min(to-i, z[i-from])
		}
		for i+k < n && ids[n-1-k] == ids[n-1-i-k] {
			k++
		}
		if i+k > to {
			from, to = i, i+k
		}
		z[i] = k
	}
	out := make([]int, n)
	for i := 1; i < n; i++ {
		out[n-1-i] = z[i]
	}
	return out
}

func (n NoRepeatNGram) apply(s *state) error {
	size, ids := int(n), s.history.ids
	if size <= 0 || len(ids) < size {
		return nil
	}
	prefix, banned := ids[len(ids)-size+1:], map[int32]bool{}
	for i := 0; i+size <= len(ids); i++ {
		if equal(ids[i:i+size-1], prefix) {
			banned[ids[i+size-1]] = true
		}
	}
	return s.ban(banned)
}

func (b BadWords) apply(s *state) error {
	ids, banned := s.history.ids, map[int32]bool{}
	for _, word := range b {
		if n := len(word) - 1; n == 0 || n > 0 && n <= len(ids) && equal(word[:n], ids[len(ids)-n:]) {
			banned[word[n]] = true
		}
	}
	return s.ban(banned)
}

// Without returns the words except single stop ids: a text must be able to end.
func (b BadWords) Without(ends []int32) BadWords {
	return slices.DeleteFunc(slices.Clone(b),
		func(word []int32) bool { return len(word) == 1 && slices.Contains(ends, word[0]) })
}

func (m MinTokens) apply(s *state) error {
	if s.history.Emitted() >= m.N {
		return nil
	}
	banned := make(map[int32]bool, len(m.Ends))
	for _, id := range m.Ends {
		banned[id] = true
	}
	return s.ban(banned)
}
