package mask

import (
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// Vocabulary is the bytes of a model's tokens, laid out for masks. It may be shared
// by any number of grammars and goroutines. What it learns of how tokens go through
// character classes it keeps for all of them.
type Vocabulary struct {
	tokens  [][]byte
	end     []int32 // ids, ascending
	all     *trie
	weights [256]int // nodes under each first byte
	longest int      // bytes of the longest token

	mu   sync.Mutex
	runs map[string]*runs
	used []string // keys of runs, the last used last
}

// maxRuns bounds the character classes that a vocabulary remembers.
const maxRuns = 16

// NewVocabulary takes the bytes of every id and the ids that end a text. Ids
// without bytes never fit a grammar, and neither do the bytes of ids that end a text.
// Control tokens have no bytes, or those of ControlBytes for grammars that ask for them
// by name. The slices stay the caller's to read, not to change.
func NewVocabulary(tokens [][]byte, ends ...int32) (*Vocabulary, error) {
	tokens = ast.WithoutSigns(tokens)
	v := &Vocabulary{tokens: tokens, end: slices.Clone(ends), runs: map[string]*runs{}}
	slices.Sort(v.end)
	v.end = slices.Compact(v.end)
	for _, id := range v.end {
		if id < 0 || int(id) >= len(tokens) {
			return nil, fault.New(fault.Invalid, "lay out vocabulary: end token %d is not among %d ids", id, len(tokens))
		}
	}
	list := make([]spelled, 0, len(tokens))
	for id, text := range tokens {
		if len(text) > 0 && !v.ends(int32(id)) {
			list = append(list, spelled{text, int32(id)})
			v.longest = max(v.longest, len(text))
		}
	}
	v.all = newTrie(list)
	for i := int32(0); i < v.all.size(); i = v.all.skip[i] {
		v.weights[v.all.b[i]] = int(v.all.skip[i] - i)
	}
	return v, nil
}

// Size is the number of ids.
func (v *Vocabulary) Size() int { return len(v.tokens) }

// Token is the bytes of an id, not to be changed; those of a control token are none or
// what ControlBytes gives.
func (v *Vocabulary) Token(id int32) []byte { return v.tokens[id] }

// Words is the length of a mask: a bit for every id, 64 to a word.
func (v *Vocabulary) Words() int { return (len(v.tokens) + 63) / 64 }

func (v *Vocabulary) ends(id int32) bool {
	_, found := slices.BinarySearch(v.end, id)
	return found
}

// runsOf is how tokens go through a class of characters, or nil where that is not
// known yet and learn does not say that it is to be.
func (v *Vocabulary) runsOf(set charset.Set, key string, learn bool) *runs {
	v.mu.Lock()
	defer v.mu.Unlock()
	if i := slices.Index(v.used, key); i >= 0 {
		v.used = append(slices.Delete(v.used, i, i+1), key)
		return v.runs[key]
	}
	if !learn {
		return nil
	}
	if len(v.used) >= maxRuns {
		delete(v.runs, v.used[0])
		v.used = slices.Delete(v.used, 0, 1)
	}
	r := newRuns(v.all, 0, set, v.Words())
	v.runs[key] = r
	v.used = append(v.used, key)
	return r
}

// Learn looks beforehand at how tokens go through what g holds.
func (v *Vocabulary) Learn(g *ast.Grammar) error {
	_, err := compile(g, v, 0)
	return err
}
