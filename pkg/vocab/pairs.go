package vocab

import "math/bits"

// merges is an open-addressed hash table from a pair of adjacent ids to the rank of
// its merge; rank 0 merges first. If ids and ranks are small enough, as in every known
// vocabulary, an entry is one 64-bit word: 20 bits per id and 24 for the rank.
type merges struct {
	small []uint64 // left<<44 | right<<24 | rank, plus one; 0 is free
	wide  map[[2]int32]uint32
	mask  uint64
	made  []int32  // by rank: the id that the pair becomes
	order []uint32 // by rank: the priority of the merge, if several merges share one; nil if it is the rank
	n     int
}

const (
	smallID   = 1 << 20
	smallRank = 1<<24 - 1
)

// newMerges makes a table for n merges of ids below size.
func newMerges(n, size int) *merges {
	m := &merges{made: make([]int32, n)}
	if size > smallID || n >= smallRank {
		m.wide = make(map[[2]int32]uint32, n)
		return m
	}
	slots := uint64(1) << bits.Len(uint(n)*2|15)
	m.small, m.mask = make([]uint64, slots), slots-1
	return m
}

// grow makes room for n pairs in total; several pairs may share a rank.
func (m *merges) grow(n int) {
	if m.wide != nil || uint64(n)*2 <= uint64(len(m.small)) {
		return
	}
	old := m.small
	slots := uint64(1) << bits.Len(uint(n)*2|15)
	m.small, m.mask = make([]uint64, slots), slots-1
	for _, x := range old {
		if x != 0 {
			m.place(x)
		}
	}
}

// place inserts an entry whose pair is not in the table yet.
func (m *merges) place(x uint64) {
	i := m.at((x - 1) >> 24)
	for m.small[i] != 0 {
		i = (i + 1) & m.mask
	}
	m.small[i] = x
}

func pairKey(left, right int32) uint64 {
	return (uint64(uint32(left))<<32 | uint64(uint32(right))) + 1
}

func smallKey(left, right int32) uint64 { return uint64(uint32(left))<<20 | uint64(uint32(right)) }

func (m *merges) at(key uint64) uint64 { return key * 0x9e3779b97f4a7c15 >> 24 & m.mask }

// add records a merge. A second merge of the same pair is ignored.
func (m *merges) add(left, right int32, rank uint32, made int32) {
	m.made[rank] = made
	if m.wide != nil {
		if _, ok := m.wide[[2]int32{left, right}]; !ok {
			m.wide[[2]int32{left, right}] = rank
			m.n++
		}
		return
	}
	key := smallKey(left, right)
	i := m.at(key)
	for m.small[i] != 0 {
		if (m.small[i]-1)>>24 == key {
			return
		}
		i = (i + 1) & m.mask
	}
	m.small[i] = (key<<24 | uint64(rank)) + 1
	if m.n++; uint64(m.n)*4 > uint64(len(m.small))*3 {
		m.grow(m.n * 2)
	}
}

// rank returns the rank of a pair's merge, or noMerge.
func (m *merges) rank(left, right int32) uint32 {
	if m.wide != nil {
		if r, ok := m.wide[[2]int32{left, right}]; ok {
			return r
		}
		return noMerge
	}
	key := smallKey(left, right)
	i := m.at(key)
	for {
		x := m.small[i] - 1
		if x>>24 == key {
			return uint32(x & smallRank)
		}
		if x == ^uint64(0) {
			return noMerge
		}
		i = (i + 1) & m.mask
	}
}

// priority returns the position of a rank's merge in the order of all merges.
func (m *merges) priority(rank uint32) uint32 {
	if m.order == nil {
		return rank
	}
	return m.order[rank]
}

// find returns the rank of a pair's merge and the id it makes.
func (m *merges) find(left, right int32) (rank uint32, made int32, ok bool) {
	rank = m.rank(left, right)
	if rank == noMerge {
		return 0, 0, false
	}
	return rank, m.made[rank], true
}
