package grammar_test

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// TestCompiled_IsShared compiles one grammar in many goroutines and follows texts through one
// Compiled. Each goroutine must see the same as it would alone.
func TestCompiled_IsShared(t *testing.T) {
	_, v := randomVocabulary(t, rand.New(rand.NewPCG(5, 6)), 2000)
	g, err := grammar.Schema(
		[]byte(
			`{"type":"object","additionalProperties":{"type":"array","items":{"type":"string","maxLength":9},"uniqueItems":true}}`,
		),
	)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := grammar.Compile(g, v)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for seed := range uint64(4) {
		wg.Go(func() {
			own, err := grammar.Compile(g, v)
			if err != nil {
				t.Error(err)
				return
			}
			r := rand.New(rand.NewPCG(seed, 9))
			a, b := own.NewMatcher(), shared.NewMatcher()
			one, other := make([]uint64, v.Words()), make([]uint64, v.Words())
			for range 40 {
				if a.Mask(one) != nil || b.Mask(other) != nil {
					t.Error("no mask")
					return
				}
				for i := range one {
					if one[i] != other[i] {
						t.Errorf("word %d of a mask differs", i)
						return
					}
				}
				id := draw(r, one, v.Size())
				if a.Accept(id) != nil || b.Accept(id) != nil {
					t.Errorf("token %d is not masked", id)
					return
				}
				if id == 1 {
					return
				}
			}
		})
	}
	wg.Wait()
}
