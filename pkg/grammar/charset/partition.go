package charset

import "slices"

// Partition divides the code points into classes. starts holds the first code points of
// intervals, beginning with 0, and class the class of each interval.
type Partition struct {
	starts []rune
	class  []int32
	Count  int
}

// NewPartition returns the coarsest partition in which every given set is a union of classes.
func NewPartition(sets []Set) *Partition {
	cuts := []rune{0}
	for _, s := range sets {
		for _, p := range s {
			cuts = append(cuts, p.Lo, p.Hi+1)
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	if cuts[len(cuts)-1] > MaxRune {
		cuts = cuts[:len(cuts)-1]
	}
	// Refine by one set after another: two intervals stay in one class while every set
	// contains both or neither.
	class := make([]int32, len(cuts))
	count := int32(1)
	for _, s := range sets {
		split := make(map[int32]int32, count)
		for _, p := range s {
			i, _ := slices.BinarySearch(cuts, p.Lo)
			for ; i < len(cuts) && cuts[i] <= p.Hi; i++ {
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
	return joined(cuts, class)
}

// joined renumbers classes without gaps and joins adjacent intervals of one class.
func joined(starts []rune, class []int32) *Partition {
	p := &Partition{}
	number := map[int32]int32{}
	for i, c := range class {
		if at := starts[i]; at >= 0xD800 && at <= 0xDFFF { // surrogates belong to the interval before them
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
	p.Count = len(number)
	return p
}

// Of returns the class of r.
func (p *Partition) Of(r rune) int32 {
	i, found := slices.BinarySearch(p.starts, r)
	if !found {
		i--
	}
	return p.class[i]
}

// Sets lists the characters of every class.
func (p *Partition) Sets() []Set {
	spans := make([][]Span, p.Count)
	for i, c := range p.class {
		hi := rune(MaxRune)
		if i+1 < len(p.starts) {
			hi = p.starts[i+1] - 1
		}
		spans[c] = append(spans[c], Span{p.starts[i], hi})
	}
	out := make([]Set, p.Count)
	for c, s := range spans {
		out[c] = New(s...)
	}
	return out
}

// ClassesOf lists the classes whose union is s.
func (p *Partition) ClassesOf(s Set) []int32 {
	var out []int32
	for _, q := range s {
		i, found := slices.BinarySearch(p.starts, q.Lo)
		if !found {
			i--
		}
		for ; i < len(p.starts) && p.starts[i] <= q.Hi; i++ {
			out = append(out, p.class[i])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Meet returns the coarsest partition that refines both a and b and, for each of its classes,
// the classes of a and b that contain it.
func Meet(a, b *Partition) (m *Partition, inA, inB []int32) {
	type pair struct{ a, b int32 }
	number := map[pair]int32{}
	m = &Partition{}
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
	m.Count = len(number)
	return m, inA, inB
}
