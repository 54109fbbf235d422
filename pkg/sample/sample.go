// Package sample picks tokens from logits. It is pure: what it picks depends on the
// rules, the tokens so far, the position and the logits alone, and randomness is a
// hash of (seed, position), so any sampler repeats any other's choice.
//
// The chain is: logit bias, penalties, temperature, top-k, min-p, top-p, draw. A
// temperature of 0 takes the best after the penalties, the lowest id of equals.
// Picking from the best candidates and the row's log-sum-exp gives what the whole
// row would give, or says that they are too few.
package sample

import (
	"cmp"
	"errors"
	"math"
	"slices"
)

// Rules say how a token is picked. The zero value is greedy.
type Rules struct {
	Temperature       float64
	TopK              int     // 0 keeps all
	TopP              float64 // 0 or 1 keeps all
	MinP              float64 // 0 drops none
	Seed              uint64
	RepetitionPenalty float64 // 0 or 1 is off
	FrequencyPenalty  float64
	PresencePenalty   float64
	LogitBias         map[int32]float64
	TopLogprobs       int // candidates to report
}

// Candidate is an id with its logit.
type Candidate struct {
	ID    int32
	Logit float32
}

// Choice is a picked token.
type Choice struct {
	ID      int32
	Logprob float64     // under the model, before any rule
	Top     []Candidate // the best before any rule, Logit being their log-probability
}

// History is the ids so far, counted for the penalties.
type History struct {
	prompt  map[int32]bool
	emitted map[int32]int
}

// NewHistory counts a prompt and the ids emitted after it.
func NewHistory(prompt, emitted []int32) *History {
	h := &History{prompt: map[int32]bool{}, emitted: map[int32]int{}}
	for _, id := range prompt {
		h.prompt[id] = true
	}
	for _, id := range emitted {
		h.Emit(id)
	}
	return h
}

// Emit counts one more emitted id.
func (h *History) Emit(id int32) { h.emitted[id]++ }

// ErrTooFew says that the candidates do not decide; the whole row is needed.
var ErrTooFew = errors.New("pick token: the candidates are too few for the rules")

// penalised reports whether the rules change single logits.
func (r *Rules) penalised() bool {
	return r.RepetitionPenalty != 0 && r.RepetitionPenalty != 1 || r.FrequencyPenalty != 0 || r.PresencePenalty != 0 || len(r.LogitBias) > 0
}

// firstTry is how many candidates are sent where min-p decides how many count.
const firstTry = 256

// Need is how many of the best candidates to ask for first; 0 means the whole row.
func (r *Rules) Need(vocab int) int {
	n := 1
	switch {
	case r.penalised():
		return 0
	case r.Temperature == 0:
	case r.TopK > 0:
		n = r.TopK
	case r.MinP > 0:
		n = firstTry
	default:
		return 0
	}
	n = max(n, r.TopLogprobs)
	if n >= vocab/2 {
		return 0
	}
	return n
}

// Best returns the k best of a row, best first, the lower id first among equals.
func Best(row []float32, k int) []Candidate {
	k = min(k, len(row))
	heap := make([]Candidate, 0, k) // the worst on top
	worse := func(a, b Candidate) bool { return a.Logit < b.Logit || a.Logit == b.Logit && a.ID > b.ID }
	down := func(i int) {
		for {
			child := 2*i + 1
			if child >= len(heap) {
				return
			}
			if child+1 < len(heap) && worse(heap[child+1], heap[child]) {
				child++
			}
			if !worse(heap[child], heap[i]) {
				return
			}
			heap[i], heap[child] = heap[child], heap[i]
			i = child
		}
	}
	for id, logit := range row {
		c := Candidate{int32(id), logit}
		switch {
		case len(heap) < k:
			heap = append(heap, c)
			if len(heap) == k {
				for i := k/2 - 1; i >= 0; i-- {
					down(i)
				}
			}
		case k > 0 && logit > heap[0].Logit:
			heap[0] = c
			down(0)
		}
	}
	sortBest(heap)
	return heap
}

func sortBest(c []Candidate) {
	slices.SortFunc(c, func(a, b Candidate) int {
		if a.Logit != b.Logit {
			return cmp.Compare(b.Logit, a.Logit)
		}
		return cmp.Compare(a.ID, b.ID)
	})
}

// Pick chooses the token for a position. candidates are the best of the row, in the
// order Best gives; whole says that they are all of it. lse is the row's exact
// log-sum-exp.
func (r *Rules) Pick(candidates []Candidate, whole bool, lse float64, h *History, position int) (Choice, error) {
	if len(candidates) == 0 || !whole && (len(candidates) < r.TopLogprobs || r.penalised()) {
		return Choice{}, ErrTooFew
	}
	var choice Choice
	for _, c := range candidates[:min(r.TopLogprobs, len(candidates))] {
		choice.Top = append(choice.Top, Candidate{c.ID, float32(float64(c.Logit) - lse)})
	}
	picked, err := r.choose(candidates, whole, h, position)
	if err != nil {
		return Choice{}, err
	}
	choice.ID = picked.ID
	// The logit before the rules; penalties may have moved it.
	at := slices.IndexFunc(candidates, func(c Candidate) bool { return c.ID == picked.ID })
	choice.Logprob = float64(candidates[at].Logit) - lse
	return choice, nil
}

// weighted is a candidate after the rules: its logit over the temperature.
type weighted struct {
	id    int32
	logit float64
}

func (r *Rules) choose(candidates []Candidate, whole bool, h *History, position int) (Candidate, error) {
	if !r.penalised() && r.Temperature == 0 {
		return candidates[0], nil
	}
	kept := make([]weighted, len(candidates))
	for i, c := range candidates {
		kept[i] = weighted{c.ID, r.penalise(c, h)}
	}
	if r.penalised() {
		slices.SortFunc(kept, func(a, b weighted) int {
			if a.logit != b.logit {
				return cmp.Compare(b.logit, a.logit)
			}
			return cmp.Compare(a.id, b.id)
		})
	}
	if r.Temperature == 0 {
		return Candidate{ID: kept[0].id}, nil
	}
	for i := range kept {
		kept[i].logit /= r.Temperature
	}
	kept, complete := r.cut(kept, whole)
	if !complete {
		return Candidate{}, ErrTooFew
	}
	return Candidate{ID: draw(kept, r.Seed, position)}, nil
}

// penalise applies bias and penalties to one logit.
func (r *Rules) penalise(c Candidate, h *History) float64 {
	logit := float64(c.Logit)
	if !r.penalised() {
		return logit
	}
	logit += r.LogitBias[c.ID]
	count := h.emitted[c.ID]
	if p := r.RepetitionPenalty; p != 0 && p != 1 && (count > 0 || h.prompt[c.ID]) {
		if logit > 0 {
			logit /= p
		} else {
			logit *= p
		}
	}
	if count > 0 {
		logit -= float64(count)*r.FrequencyPenalty + r.PresencePenalty
	}
	return logit
}

// cut keeps the candidates that top-k, min-p and top-p leave, in that order. It
// reports false when the ones at hand do not show where the cut is.
func (r *Rules) cut(kept []weighted, whole bool) ([]weighted, bool) {
	complete := whole
	if r.TopK > 0 && r.TopK <= len(kept) {
		kept, complete = kept[:r.TopK], true
	}
	best := kept[0].logit
	if r.MinP > 0 {
		floor := best + math.Log(r.MinP)
		n := len(kept)
		for n > 1 && kept[n-1].logit < floor {
			n--
		}
		complete = complete || n < len(kept)
		kept = kept[:n]
	}
	if r.TopP > 0 && r.TopP < 1 {
		if !complete {
			// The mass of the candidates not at hand is known by lse only to its last
			// bits, and at temperature 1 only: the whole row decides.
			return nil, false
		}
		var total, sum float64
		for _, c := range kept {
			total += math.Exp(c.logit - best)
		}
		for i, c := range kept {
			if sum += math.Exp(c.logit - best); sum >= r.TopP*total {
				return kept[:i+1], true
			}
		}
	}
	return kept, complete
}

// draw picks by the cumulative distribution at the position's uniform number.
func draw(kept []weighted, seed uint64, position int) int32 {
	var total float64
	for _, c := range kept {
		total += math.Exp(c.logit - kept[0].logit)
	}
	goal := Uniform(seed, uint64(position)) * total
	var sum float64
	for _, c := range kept {
		if sum += math.Exp(c.logit - kept[0].logit); goal < sum {
			return c.id
		}
	}
	return kept[len(kept)-1].id
}

// Uniform is a number in [0,1) that (seed, position) decides: two rounds of
// SplitMix64's finalizer, the top 53 bits.
func Uniform(seed, position uint64) float64 {
	x := mix(mix(seed+0x9e3779b97f4a7c15) ^ (position+1)*0xd1342543de82ef95)
	return float64(x>>11) / (1 << 53)
}

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
