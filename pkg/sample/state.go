package sample

import (
	"cmp"
	"errors"
	"math"
	"slices"
)

// ErrTooFew reports that the candidates do not decide the token; the whole row is needed.
var ErrTooFew = errors.New("sample token: the sampling parameters need the whole row of logits")

// ErrNone reports that the sampling parameters exclude every id.
var ErrNone = errors.New("sample token: the sampling parameters exclude every token")

// entry is an id with its current logit.
type entry struct {
	id    int32
	logit float64
}

func (a entry) better(b entry) bool { return a.logit > b.logit || a.logit == b.logit && a.id < b.id }

func byRank(a, b entry) int {
	if a.logit != b.logit {
		return cmp.Compare(b.logit, a.logit)
	}
	return cmp.Compare(a.id, b.id)
}

// state is what a chain works on. While tail is set, the row has further ids that are not
// in kept; none of them is better than bound.
type state struct {
	kept   []entry
	sorted int // the first entries of kept that are the best, in order
	tail   bool
	bound  entry

	pristine bool    // no logit has been changed and no id dropped,
	lse      float64 // so that this is log Σ exp of the logits

	history  *History
	seed     uint64
	choice   uint32
	position int
}

func (s *state) begin(lse float64) {
	s.kept, s.sorted, s.tail, s.pristine, s.lse = s.kept[:0], 0, false, true, lse
}

// row fills the state with a whole row.
func (s *state) row(row []float32, lse float64) {
	s.begin(lse)
	s.kept = slices.Grow(s.kept, len(row))
	for id, logit := range row {
		if !math.IsInf(float64(logit), -1) {
			s.kept = append(s.kept, entry{int32(id), float64(logit)})
		}
	}
}

// best fills the state with the best candidates of a row.
func (s *state) best(candidates []Candidate, lse float64) {
	s.begin(lse)
	for _, c := range candidates {
		s.kept = append(s.kept, entry{c.ID, float64(c.Logit)})
	}
	s.sorted, s.tail = len(s.kept), true
	s.bound = s.kept[len(s.kept)-1]
}

// sort puts the n best entries first, in order. It sorts some more than asked for, so that
// a caller that asks for one entry after another sorts a few times only.
func (s *state) sort(n int) {
	n = min(n, len(s.kept))
	if n <= s.sorted {
		return
	}
	rest := s.kept[s.sorted:]
	if n = max(n, 4*s.sorted, 32) - s.sorted; n < len(rest) {
		nthElement(rest, n)
	} else {
		n = len(rest)
	}
	slices.SortFunc(rest[:n], byRank)
	s.sorted += n
}

// nthElement moves the n best to the front, by Hoare's selection.
func nthElement(x []entry, n int) {
	for len(x) > 16 && n > 0 && n < len(x) {
		a, b, c := x[0], x[len(x)/2], x[len(x)-1]
		if b.better(a) {
			a, b = b, a
		}
		if c.better(b) {
			b = c
			if b.better(a) {
				b = a
			}
		}
		i, j := 0, len(x)-1
		for i <= j {
			for x[i].better(b) {
				i++
			}
			for b.better(x[j]) {
				j--
			}
			if i <= j {
				x[i], x[j] = x[j], x[i]
				i, j = i+1, j-1
			}
		}
		switch {
		case n <= j+1:
			x = x[:j+1]
		case n > i:
			x, n = x[i:], n-i
		default:
			return
		}
	}
	slices.SortFunc(x, byRank)
}

// keep keeps the n best entries.
func (s *state) keep(n int) error {
	if n > len(s.kept) && s.tail {
		return ErrTooFew
	}
	if n = min(n, len(s.kept)); n == 0 {
		return ErrNone
	}
	if n == len(s.kept) && !s.tail {
		return nil
	}
	s.sort(n)
	s.kept, s.sorted, s.tail, s.pristine = s.kept[:n], n, false, false
	return nil
}

// filter keeps the entries that pass. If any passes, the best must. No entry with a logit
// below floor passes: a tail whose bound is below it cannot matter.
func (s *state) filter(floor float64, pass func(e entry) bool) error {
	if s.tail && s.bound.logit >= floor {
		return ErrTooFew
	}
	n := len(s.kept)
	s.kept = slices.DeleteFunc(s.kept, func(e entry) bool { return e.logit < floor || !pass(e) })
	if s.tail || len(s.kept) < n {
		s.pristine = false
	}
	s.tail, s.sorted = false, 0
	if len(s.kept) == 0 {
		return ErrNone
	}
	s.sort(len(s.kept)) // so that later sums do not depend on the order before
	return nil
}

// allow keeps the ids of a token mask: bit id%64 of word id/64.
func (s *state) allow(mask []uint64) error {
	s.kept = slices.DeleteFunc(s.kept, func(e entry) bool {
		word := int(e.id >> 6)
		return word >= len(mask) || mask[word]>>(e.id&63)&1 == 0
	})
	s.pristine, s.sorted = false, 0
	switch {
	case s.tail:
		s.sorted = len(s.kept)
		if s.sorted == 0 {
			return ErrTooFew
		}
	case len(s.kept) == 0:
		return ErrNone
	}
	return nil
}

// change gives the affected ids the logits that f returns. raises says that f may return
// a greater logit.
func (s *state) change(affected map[int32]bool, raises bool, f func(e entry) float64) error {
	if len(affected) == 0 {
		return nil
	}
	found := 0
	for i, e := range s.kept {
		if affected[e.id] {
			s.kept[i].logit = f(e)
			found++
		}
	}
	s.pristine = false
	if s.tail && raises && found < len(affected) {
		return ErrTooFew // an id of the tail may be the best now
	}
	return s.settle()
}

// settle restores the invariants of the state after logits have been changed.
func (s *state) settle() error {
	s.sorted = 0
	s.kept = slices.DeleteFunc(s.kept, func(e entry) bool {
		return math.IsInf(e.logit, -1) || s.tail && s.bound.better(e)
	})
	if len(s.kept) > 0 {
		return nil
	}
	if s.tail {
		return ErrTooFew
	}
	return ErrNone
}

// ban drops ids.
func (s *state) ban(ids map[int32]bool) error {
	return s.change(ids, false, func(entry) float64 { return math.Inf(-1) })
}

// scale divides all logits by t > 0.
func (s *state) scale(t float64) {
	if t == 1 {
		return
	}
	s.pristine = false
	for i := range s.kept {
		s.kept[i].logit /= t
	}
	s.bound.logit /= t
}

// top returns the greatest logit.
func (s *state) top() float64 {
	s.sort(1)
	return s.kept[0].logit
}

// mass returns Σ exp(logit - top) over all ids that are left, or false where the tail
// makes it unknown.
func (s *state) mass() (float64, bool) {
	top := s.top()
	if s.pristine {
		return math.Exp(s.lse - top), true
	}
	if s.tail {
		return 0, false
	}
	var sum float64
	for _, e := range s.kept {
		sum += math.Exp(e.logit - top)
	}
	return sum, true
}

// nucleus returns the size of the smallest set of best entries whose probability reaches
// p, where total is the mass of all that is left. It returns all entries if they do not
// reach p; false then means that entries beyond them are left.
func (s *state) nucleus(p, total float64) (int, bool) {
	return s.reach(func(sum float64) bool { return reaches(sum/total, p) })
}

// reach returns how many of the best entries it takes until enough holds for their mass.
func (s *state) reach(enough func(sum float64) bool) (int, bool) {
	top := s.top()
	var sum float64
	for i := 0; i < len(s.kept); i++ {
		if i == s.sorted {
			s.sort(i + 1)
		}
		if sum += math.Exp(s.kept[i].logit - top); enough(sum) {
			return i + 1, true
		}
	}
	return len(s.kept), !s.tail
}

// entropy returns the entropy of a state without a tail, in nats.
func (s *state) entropy() float64 {
	top, total := s.top(), 0.0
	var sum float64
	for _, e := range s.kept {
		x := math.Exp(e.logit - top)
		total += x
		if x > 0 {
			sum += x * (e.logit - top)
		}
	}
	return math.Log(total) - sum/total
}

// logTotal returns log Σ exp of the logits of a state without a tail.
func (s *state) logTotal() float64 {
	top := s.top()
	var sum float64
	for _, e := range s.kept {
		sum += math.Exp(e.logit - top)
	}
	return top + math.Log(sum)
}

// draw samples an id by inverting the cumulative distribution, best id first.
func (s *state) draw() (int32, error) {
	total, known := s.mass()
	if !known {
		return 0, ErrTooFew
	}
	goal := uniform(s.seed, s.position, s.choice, useDraw) * total
	n, reached := s.reach(func(sum float64) bool { return sum > goal })
	if !reached {
		return 0, ErrTooFew
	}
	return s.kept[n-1].id, nil
}
