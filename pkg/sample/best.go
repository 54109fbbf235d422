package sample

import (
	"cmp"
	"math"
	"slices"
)

// Candidate is an id with its logit.
type Candidate struct {
	ID    int32
	Logit float32
}

// better orders candidates: the higher logit first, then the lower id.
func better(a, b Candidate) bool { return a.Logit > b.Logit || a.Logit == b.Logit && a.ID < b.ID }

// sortAll is the fraction of a row (one eighth) from which on sorting the whole row is faster.
const sortAll = 8

// Best returns the k candidates with the highest logits of a row, best first; of equal logits
// the lower id comes first.
func Best(row []float32, k int) []Candidate {
	k = min(k, len(row))
	if k <= 0 {
		return nil
	}
	if k >= len(row)/sortAll && len(row) > 4096 {
		return sorted(row)[:k]
	}
	heap := make([]Candidate, k) // the worst on top
	for id, logit := range row[:k] {
		heap[id] = Candidate{int32(id), logit}
	}
	for i := k/2 - 1; i >= 0; i-- {
		down(heap, i)
	}
	for id := k; id < len(row); id++ {
		if logit := row[id]; logit > heap[0].Logit {
			heap[0] = Candidate{int32(id), logit}
			down(heap, 0)
		}
	}
	slices.SortFunc(heap, func(a, b Candidate) int {
		if a.Logit != b.Logit {
			return cmp.Compare(b.Logit, a.Logit)
		}
		return cmp.Compare(a.ID, b.ID)
	})
	return heap
}

// down moves heap[i] down until no child is worse.
func down(heap []Candidate, i int) {
	for {
		child := 2*i + 1
		if child >= len(heap) {
			return
		}
		if child+1 < len(heap) && better(heap[child], heap[child+1]) {
			child++
		}
		if !better(heap[i], heap[child]) {
			return
		}
		heap[i], heap[child] = heap[child], heap[i]
		i = child
	}
}

const radixBits = 11

// sorted orders a whole row by three stable counting passes over the logits' bits,
// so that equals stay in the order of their ids.
func sorted(row []float32) []Candidate {
	from, to := make([]Candidate, len(row)), make([]Candidate, len(row))
	for id, logit := range row {
		from[id] = Candidate{int32(id), logit}
	}
	for shift := 0; shift < 32; shift += radixBits {
		var starts [1 << radixBits]int
		for _, c := range from {
			starts[descending(c.Logit)>>shift&(1<<radixBits-1)]++
		}
		at := 0
		for i, n := range starts {
			starts[i], at = at, at+n
		}
		for _, c := range from {
			digit := descending(c.Logit) >> shift & (1<<radixBits - 1)
			to[starts[digit]] = c
			starts[digit]++
		}
		from, to = to, from
	}
	return from
}

// descending maps logits to integers that grow as they shrink; both zeros are one.
func descending(logit float32) uint32 {
	bits := math.Float32bits(logit + 0)
	if bits == 1<<31 {
		bits = 0
	}
	if bits>>31 == 1 {
		return bits
	}
	return ^(bits | 1<<31)
}
