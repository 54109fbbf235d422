package corpus

import "math/bits"

// Permutation is a random order of the numbers 0 to n-1 that depends on a key. It takes no memory.
//
// A Feistel network permutes the numbers of 2h bits: it splits a number into halves and changes each by a
// function of the other, so that every round can be undone, whatever the function. Results of n and more are
// permuted again until one is below n (cycle walking). The domain is less than four times n, so that takes
// fewer than four rounds on average.
type Permutation struct {
	n    uint64
	half uint // bits of a half
	keys [feistelRounds]uint64
}

const feistelRounds = 6

// NewPermutation returns the permutation of n numbers, at least one, that a key selects.
func NewPermutation(n int64, key uint64) Permutation {
	p := Permutation{n: uint64(n), half: max(1, uint(bits.Len64(uint64(n-1))+1)/2)}
	for i := range p.keys {
		key = mix(key + uint64(i))
		p.keys[i] = key
	}
	return p
}

// At returns number i of the order.
func (p *Permutation) At(i int64) int64 {
	x, mask := uint64(i), uint64(1)<<p.half-1
	for {
		left, right := x>>p.half, x&mask
		for _, key := range p.keys {
			left, right = right, left^mix(right^key)&mask
		}
		x = left<<p.half | right
		if x < p.n {
			return int64(x)
		}
	}
}

// mix applies SplitMix64's finalizer.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// keyOf mixes numbers into one key.
func keyOf(numbers ...uint64) uint64 {
	key := uint64(0x6c616d696e61)
	for _, n := range numbers {
		key = mix(key ^ n)
	}
	return key
}
