package jsonschema

import (
	"math/big"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
	"github.com/lamina-mesh/lamina/pkg/grammar/language"
)

// Numbers with any constraint are written without an exponent.
const (
	boundedDigits = 16     // on either side of the point, if Options.Bounded is set
	maxNumberText = 60     // digits of a bound on either side of the point
	maxModulus    = 20_000 // of multipleOf, in units of its last place
)

// target holds the digits of a bound, with which a number is compared digit by digit.
type target struct {
	below       bool // negative: every magnitude is above it
	whole, rest string
}

func newTarget(r *big.Rat) (target, bool) {
	if r.Sign() < 0 {
		return target{below: true}, true
	}
	text, ok := decimal(r)
	whole, rest, _ := strings.Cut(text, ".")
	return target{whole: whole, rest: rest}, ok && len(whole) <= maxNumberText && len(rest) <= maxNumberText
}

// decimal writes r, a finite decimal, with as few places as it needs.
func decimal(r *big.Rat) (string, bool) {
	places := 0
	for ten := new(big.Rat).Set(r); !ten.IsInt(); places++ {
		if places > 2*maxExponent {
			return "", false
		}
		ten.Mul(ten, big.NewRat(10, 1))
	}
	return r.FloatString(places), true
}

// units returns r as an integer in units of its last decimal place, and the number of decimal
// places.
func units(r *big.Rat) (n *big.Int, places int, ok bool) {
	text, ok := decimal(r)
	whole, rest, _ := strings.Cut(text, ".")
	n, set := new(big.Int).SetString(whole+rest, 10)
	return n, len(rest), ok && set
}

// commonMultiple returns the least number that is a multiple of both.
func commonMultiple(a, b *big.Rat) *big.Rat {
	num := new(big.Int).Mul(a.Num(), b.Num())
	num.Quo(num, new(big.Int).GCD(nil, nil, a.Num(), b.Num()))
	den := new(big.Int).GCD(nil, nil, a.Denom(), b.Denom())
	return new(big.Rat).SetFrac(num, den)
}

// numberReader is the transition function of the automaton of a set of numbers. It reads a
// number digit by digit, comparing with the bounds and dividing by the modulus as it goes.
type numberReader struct {
	set         *numberSet
	low, high   [2]target // for the magnitudes of non-negative and of negative numbers
	modulus     int32     // 0 without multipleOf
	places      int       // of modulus
	wholeCap    int       // maximum number of digits before the point; 0 means no limit
	fractionCap int       // the same after the point
	// wholeSeen and fractionSeen are where the counts of digits saturate: one more than any
	// bound or multipleOf has.
	wholeSeen    uint8
	fractionSeen uint8
}

type numberPhase uint8

const (
	numberStart numberPhase = iota
	numberSign
	numberZero // a leading zero, after which no digit comes
	numberWhole
	numberPoint
	numberFraction
)

// numberState is a state after some characters of a number.
type numberState struct {
	phase      numberPhase
	negative   bool
	digits     uint8 // number of digits before the point, saturated
	fraction   uint8 // number of digits after the point, saturated
	low, high  int8  // how the digits so far compare with the bounds
	fractional bool  // a digit after the point is not zero
	rest       int32 // the digits so far, modulo the modulus
}

// numberDFA returns the automaton of the texts of n, with at most wholeCap digits before the
// point and fractionCap after it; 0 means no limit. A bound with more digits raises the limits.
func numberDFA(n *numberSet, wholeCap, fractionCap int) (*language.DFA, error) {
	r := &numberReader{set: n, wholeCap: wholeCap, fractionCap: fractionCap}
	tooLong := &ast.LimitError{What: "digits of a number's bound", Limit: maxNumberText}
	var wholeSeen, fractionSeen int
	for _, end := range []struct {
		b  *bound
		to *[2]target
	}{{n.low, &r.low}, {n.high, &r.high}} {
		if end.b == nil {
			continue
		}
		var ok, okNegative bool
		end.to[0], ok = newTarget(end.b.at)
		end.to[1], okNegative = newTarget(new(big.Rat).Neg(end.b.at))
		if !ok || !okNegative {
			return nil, tooLong
		}
		for _, t := range end.to {
			wholeSeen, fractionSeen = max(wholeSeen, len(t.whole)), max(fractionSeen, len(t.rest))
		}
	}
	if len(n.multiple) > 0 {
		m := n.multiple[0]
		for _, other := range n.multiple[1:] {
			m = commonMultiple(m, other)
		}
		of, places, ok := units(m)
		if !ok || places > maxNumberText || !of.IsInt64() || of.Int64() > maxModulus {
			return nil, &ast.LimitError{What: "units of multipleOf", Limit: maxModulus}
		}
		r.modulus, r.places = int32(of.Int64()), places
		fractionSeen = max(fractionSeen, places)
		if r.modulus > 50 && n.low == nil && n.high == nil {
			r.wholeCap = 0 // counting digits as well would take too many states
		}
	}
	if r.wholeCap > 0 {
		r.wholeCap = max(r.wholeCap, wholeSeen+1)
	}
	if r.fractionCap > 0 {
		r.fractionCap = max(r.fractionCap, fractionSeen)
	}
	r.wholeSeen = uint8(max(wholeSeen, r.wholeCap) + 1)
	r.fractionSeen = uint8(max(fractionSeen, r.fractionCap) + 1)
	sets := []charset.Set{charset.Single('-'), charset.Single('.')}
	for d := '0'; d <= '9'; d++ {
		sets = append(sets, charset.Single(d))
	}
	part := charset.NewPartition(sets)
	symbols := make([]rune, part.Count)
	for _, c := range "-.0123456789" {
		symbols[part.Of(c)] = c
	}
	d, err := language.Build(part, numberState{}, func(s numberState, class int32) (numberState, bool) {
		return r.step(s, symbols[class])
	}, r.final)
	if err != nil {
		return nil, err
	}
	for _, m := range n.notMultiple {
		same, err := numberDFA(&numberSet{multiple: []*big.Rat{m}}, 0, 0)
		if err != nil {
			return nil, err
		}
		if d, err = language.Subtract(d, same); err != nil {
			return nil, err
		}
	}
	for _, not := range n.not {
		same, err := numberDFA(&numberSet{low: &bound{at: not}, high: &bound{at: not}}, 0, 0)
		if err != nil {
			return nil, err
		}
		if d, err = language.Subtract(d, same); err != nil {
			return nil, err
		}
	}
	return d.Minimal(), nil
}

func (r *numberReader) step(s numberState, c rune) (numberState, bool) {
	switch {
	case c == '-':
		ok := s.phase == numberStart
		s.phase, s.negative = numberSign, true
		return s, ok
	case c == '.':
		ok := s.phase == numberZero || s.phase == numberWhole
		s.low, s.high = s.pointed(r.target(&r.low, s), s.low), s.pointed(r.target(&r.high, s), s.high)
		s.phase, s.digits = numberPoint, 0
		return s, ok
	case c < '0' || c > '9':
		return s, false
	}
	d := c - '0'
	switch s.phase {
	case numberZero:
		return s, false
	case numberStart, numberSign, numberWhole:
		s.low = s.wholeDigit(r.target(&r.low, s), s.low, byte(c))
		s.high = s.wholeDigit(r.target(&r.high, s), s.high, byte(c))
		if s.phase != numberWhole {
			s.phase = numberWhole
			if d == 0 {
				s.phase = numberZero
			}
		}
		if r.wholeCap > 0 || r.set.low != nil || r.set.high != nil {
			s.digits = min(s.digits+1, r.wholeSeen)
		}
		if r.wholeCap > 0 && int(s.digits) > r.wholeCap {
			return s, false
		}
		if r.modulus > 0 {
			s.rest = int32((int64(s.rest)*10 + int64(d)) % int64(r.modulus))
		}
		return s, true
	}
	if r.set.whole && (s.fraction > 0 || d != 0) || r.fractionCap > 0 && int(s.fraction) >= r.fractionCap {
		return s, false
	}
	s.low = s.fractionDigit(r.target(&r.low, s), s.low, byte(c))
	s.high = s.fractionDigit(r.target(&r.high, s), s.high, byte(c))
	if r.modulus > 0 {
		switch {
		case int(s.fraction) < r.places:
			s.rest = int32((int64(s.rest)*10 + int64(d)) % int64(r.modulus))
		case d != 0:
			return s, false // the unit is coarser
		}
	}
	s.phase, s.fractional = numberFraction, s.fractional || d != 0
	s.fraction = min(s.fraction+1, r.fractionSeen)
	return s, r.modulus == 0 || int(s.fraction) < r.places || s.rest == 0
}

func (r *numberReader) target(t *[2]target, s numberState) *target {
	if s.negative {
		return &t[1]
	}
	return &t[0]
}

// wholeDigit compares with one more digit before the point.
func (s numberState) wholeDigit(t *target, so int8, c byte) int8 {
	if so != 0 || t.below || int(s.digits) >= len(t.whole) {
		return so
	}
	return sign(int(c) - int(t.whole[s.digits]))
}

func sign(n int) int8 {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

// pointed compares once no digit comes before the point.
func (s numberState) pointed(t *target, so int8) int8 {
	switch {
	case t.below || int(s.digits) > len(t.whole):
		return 1
	case int(s.digits) < len(t.whole):
		return -1
	}
	return so
}

func (s numberState) fractionDigit(t *target, so int8, c byte) int8 {
	if so != 0 || t.below {
		return so
	}
	want := byte('0')
	if int(s.fraction) < len(t.rest) {
		want = t.rest[s.fraction]
	}
	return sign(int(c) - int(want))
}

// against compares the whole number with a bound.
func (r *numberReader) against(s numberState, t *[2]target, so int8) int {
	at := r.target(t, s)
	if s.phase == numberZero || s.phase == numberWhole {
		so = s.pointed(at, so)
	}
	if so == 0 && !at.below && int(s.fraction) < len(at.rest) && strings.Trim(at.rest[s.fraction:], "0") != "" {
		so = -1
	}
	if s.negative {
		return -int(so)
	}
	return int(so)
}

func (r *numberReader) final(s numberState) bool {
	switch s.phase {
	case numberZero, numberWhole, numberFraction:
	default:
		return false
	}
	if r.set.fractional && !s.fractional {
		return false
	}
	if b := r.set.low; b != nil {
		if c := r.against(s, &r.low, s.low); c < 0 || c == 0 && b.open {
			return false
		}
	}
	if b := r.set.high; b != nil {
		if c := r.against(s, &r.high, s.high); c > 0 || c == 0 && b.open {
			return false
		}
	}
	if r.modulus == 0 {
		return true
	}
	rest := int64(s.rest)
	for i := int(s.fraction); i < r.places && rest > 0; i++ {
		rest = rest * 10 % int64(r.modulus)
	}
	return rest == 0
}

// emptyNumber reports whether the set certainly contains no number.
func (x *expander) emptyNumber(n *numberSet) (bool, error) {
	if n.low == nil && n.high == nil && n.multiple == nil {
		return false, nil
	}
	d, err := numberDFA(n, 0, 0)
	if err != nil {
		return false, nil // unknown
	}
	return d.IsEmpty(), nil
}
