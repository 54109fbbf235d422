package grammar

import "slices"

// partition cuts the code points into classes that an automaton does not tell
// apart. starts are where intervals begin, the first at 0; class is of each.
type partition struct {
	starts []rune
	class  []int32
	count  int
}

// partitionOf is the coarsest partition of which every set is a union.
func partitionOf(sets []runeSet) *partition {
	cuts := []rune{0}
	for _, s := range sets {
		for _, p := range s {
			cuts = append(cuts, p.lo, p.hi+1)
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	if cuts[len(cuts)-1] > maxRune {
		cuts = cuts[:len(cuts)-1]
	}
	// Refine by one set after another: two intervals stay together while every
	// set holds both or neither.
	class := make([]int32, len(cuts))
	count := int32(1)
	for _, s := range sets {
		split := make(map[int32]int32, count)
		for _, p := range s {
			i, _ := slices.BinarySearch(cuts, p.lo)
			for ; i < len(cuts) && cuts[i] <= p.hi; i++ {
				to, ok := split[class[i]]
				if !ok {
					to = count
					count++
					split[class[i]] = to
				}
				class[i] = to
			}
		}
	}
	return newPartition(cuts, class)
}

// newPartition renumbers classes without gaps and joins neighbours.
func newPartition(starts []rune, class []int32) *partition {
	p := &partition{}
	number := map[int32]int32{}
	for i, c := range class {
		if at := starts[i]; at >= 0xD800 && at <= 0xDFFF { // surrogates go with whoever comes before
			if i+1 < len(starts) && starts[i+1] <= 0xE000 {
				continue
			}
			starts[i] = 0xE000
		}
		id, ok := number[c]
		if !ok {
			id = int32(len(number))
			number[c] = id
		}
		if n := len(p.class); n > 0 && p.class[n-1] == id {
			continue
		}
		p.starts = append(p.starts, starts[i])
		p.class = append(p.class, id)
	}
	p.count = len(number)
	return p
}

// of is the class of r.
func (p *partition) of(r rune) int32 {
	i, found := slices.BinarySearch(p.starts, r)
	if !found {
		i--
	}
	return p.class[i]
}

// sets lists the characters of every class.
func (p *partition) sets() []runeSet {
	spans := make([][]span, p.count)
	for i, c := range p.class {
		hi := rune(maxRune)
		if i+1 < len(p.starts) {
			hi = p.starts[i+1] - 1
		}
		spans[c] = append(spans[c], span{p.starts[i], hi})
	}
	out := make([]runeSet, p.count)
	for c, s := range spans {
		out[c] = newRuneSet(s...)
	}
	return out
}

// classesOf lists the classes that make up s.
func (p *partition) classesOf(s runeSet) []int32 {
	var out []int32
	for _, q := range s {
		i, found := slices.BinarySearch(p.starts, q.lo)
		if !found {
			i--
		}
		for ; i < len(p.starts) && p.starts[i] <= q.hi; i++ {
			out = append(out, p.class[i])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// meet is the coarsest partition finer than both, with the classes of each that
// its classes lie in.
func meet(a, b *partition) (m *partition, inA, inB []int32) {
	type pair struct{ a, b int32 }
	number := map[pair]int32{}
	m = &partition{}
	for i, j := 0, 0; i < len(a.starts) || j < len(b.starts); {
		var at rune
		switch {
		case j == len(b.starts) || i < len(a.starts) && a.starts[i] < b.starts[j]:
			at = a.starts[i]
			i++
		case i == len(a.starts) || b.starts[j] < a.starts[i]:
			at = b.starts[j]
			j++
		default:
			at = a.starts[i]
			i++
			j++
		}
		key := pair{a.class[i-1], b.class[j-1]}
		id, ok := number[key]
		if !ok {
			id = int32(len(number))
			number[key] = id
			inA, inB = append(inA, key.a), append(inB, key.b)
		}
		if n := len(m.class); n > 0 && m.class[n-1] == id {
			continue
		}
		m.starts = append(m.starts, at)
		m.class = append(m.class, id)
	}
	m.count = len(number)
	return m, inA, inB
}
