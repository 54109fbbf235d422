package vocab

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// mergePlainly is the reference: look through all pairs, merge the leftmost one of those with the
// smallest rank, and repeat.
func mergePlainly(m *merges, ids []int32) []int32 {
	ids = slices.Clone(ids)
	for {
		best, bestRank, bestMade := -1, uint32(0), int32(0)
		for i := 0; i+1 < len(ids); i++ {
			if rank, made, ok := m.find(ids[i], ids[i+1]); ok && (best < 0 || rank < bestRank) {
				best, bestRank, bestMade = i, rank, made
			}
		}
		if best < 0 {
			return ids
		}
		ids[best] = bestMade
		ids = slices.Delete(ids, best+1, best+2)
	}
}

func TestMerges_AgreeWithDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 60 {
		m := newMerges(40, 12)
		for rank := range 40 {
			m.add(int32(r.IntN(12)), int32(r.IntN(12)), uint32(rank), int32(r.IntN(12)))
		}
		n := []int{r.IntN(linearLimit + 1), linearLimit + 1 + r.IntN(400), longPiece + 1 + r.IntN(50)}[round%3]
		ids := make([]int32, n)
		syms := func() (out []symbol) {
			for i, id := range ids {
				out = append(out, symbol{id, int32(i), int32(i + 1)})
			}
			return out
		}
		for i := range ids {
			ids[i] = int32(r.IntN(1 + r.IntN(12)))
		}
		want := mergePlainly(m, ids)
		var k sink
		for range 2 { // the second run finds what the first left behind
			var got []int32
			end := int32(0)
			for _, s := range m.apply(syms(), &k) {
				got = append(got, s.id)
				if s.start != end {
					t.Fatalf("round %d: a symbol begins at %d after %d", round, s.start, end)
				}
				end = s.end
			}
			if !slices.Equal(got, want) || int(end) != n {
				t.Fatalf("round %d, %d symbols: %v, want %v", round, n, got, want)
			}
		}
	}
}

func TestQueue_ByRankAgreesWithHeap(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var byRank, plain queue
	for range 3 {
		byRank.reset(longPiece + 1)
		plain.reset(1)
		for range 20_000 {
			if r.IntN(3) > 0 {
				x := uint64(r.IntN(9))<<32 | uint64(r.IntN(1000))
				byRank.push(x)
				plain.push(x)
				continue
			}
			a, ok1 := byRank.pop()
			b, ok2 := plain.pop()
			if a != b || ok1 != ok2 {
				t.Fatalf("%d %v, want %d %v", a, ok1, b, ok2)
			}
		}
	}
}
