package vocab

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// mergePlainly is the definition: look through all pairs, merge the one of
// smallest rank, the leftmost among equals, and begin again.
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
		m := newMerges(40)
		for rank := range 40 {
			m.add(int32(r.IntN(12)), int32(r.IntN(12)), uint32(rank), int32(r.IntN(12)))
		}
		n := []int{r.IntN(few + 1), few + 1 + r.IntN(400), longPiece + 1 + r.IntN(50)}[round%3]
		ids := make([]int32, n)
		for i := range ids {
			ids[i] = int32(r.IntN(1 + r.IntN(12)))
		}
		want := mergePlainly(m, ids)
		var s scratch
		for range 2 { // the second run finds what the first left behind
			if got := m.apply(slices.Clone(ids), &s, nil); !slices.Equal(got, want) {
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

func TestStyle_PiecesCoverTheText(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	parts := []string{" ", "  ", "\n", "\r\n", "\t", "a", "Z", "ß", "ʰ", "漢", "\u0301", "1", "½", "'s", "'LL", "'", "!", "/", "🦊", "\u00a0", "\u0000", "ǅ"}
	for _, st := range []style{styleGPT2(), styleLlama3(), styleQwen2(), styleQwen35(), styleO200k(), styleTekken()} {
		for range 2000 {
			var b strings.Builder
			for range r.IntN(20) {
				b.WriteString(parts[r.IntN(len(parts))])
			}
			var got strings.Builder
			err := styled(st)(b.String(), true, func(piece string, _ bool) error {
				if piece == "" {
					t.Fatalf("empty piece of %q", b.String())
				}
				got.WriteString(piece)
				return nil
			})
			if err != nil || got.String() != b.String() {
				t.Fatalf("%q came back as %q, %v", b.String(), got.String(), err)
			}
		}
	}
}
