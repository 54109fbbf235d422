package mask

import (
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// Vocabulary is a model's tokens as a trie. Any number of grammars and goroutines may share
// it, and with it the runs of the character classes that they use.
type Vocabulary struct {
	tokens  [][]byte
	end     []int32 // ids, ascending
	all     *trie
	weights [256]int // trie nodes under each first byte
	longest int      // length of the longest token in bytes

	mu   sync.Mutex
	runs map[string]*runs
	used []string // keys of runs, least recently used first
}

// maxRuns is the number of character classes whose runs a vocabulary keeps.
const maxRuns = 16

// NewVocabulary takes the bytes of every id and the ids that end a text. Ids
// without bytes never fit a grammar, and neither do the bytes of ids that end a text.
// Control tokens have no bytes, or those of ControlBytes for grammars that ask for them
// by name. The caller must not change the slices.
func NewVocabulary(tokens [][]byte, ends ...int32) (*Vocabulary, error) {
	tokens = ast.WithoutSigns(tokens)
	v := &Vocabulary{tokens: tokens, end: slices.Clone(ends), runs: map[string]*runs{}}
	slices.Sort(v.end)
	v.end = slices.Compact(v.end)
	for _, id := range v.end {
		if id < 0 || int(id) >= len(tokens) {
			return nil, fault.New(fault.Invalid, "lay out vocabulary: end token %d is not among %d ids", id,
				len(tokens))
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

// Size returns the number of ids.
func (v *Vocabulary) Size() int { return len(v.tokens) }

// Token returns the bytes of an id, read-only. A control token has none, or those of
// ControlBytes.
func (v *Vocabulary) Token(id int32) []byte { return v.tokens[id] }

// Words returns the length of a mask: one bit for every id, 64 in a word.
func (v *Vocabulary) Words() int { return (len(v.tokens) + 63) / 64 }

func (v *Vocabulary) ends(id int32) bool {
	_, found := slices.BinarySearch(v.end, id)
	return found
}

// runsOf returns the runs of a class of characters. If they are not known it computes them if
// learn is set, and returns nil otherwise.
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

// Learn computes the runs of the character classes of g in advance.
func (v *Vocabulary) Learn(g *ast.Grammar) error {
	_, err := compile(g, v, 0)
	return err
}
