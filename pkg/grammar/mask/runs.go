package mask

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
	"github.com/lamina-mesh/lamina/pkg/grammar/spelling"
)

// runs indexes a vocabulary by one class of characters: which tokens consist of a number of
// its characters, and what follows them in the other tokens. In a state that treats all
// characters of the class alike only what follows has to be walked.
type runs struct {
	t       *trie
	words   int              // of a set, or 0 to use lists alone
	longest int              // characters of the longest token within the class
	byCount [][]int32        // tokens of exactly that many characters
	all     []uint64         // the tokens of byCount as a set
	leaves  spelling.ByteSet // bytes with exits
	exits   [256][]exit
	odd     []oddExit
	partial []partialToken

	mu    sync.Mutex
	upTo  [][]uint64 // tokens of at most that many characters
	tails map[tailKey]*tail
}

// tail is the rests of tokens after some characters of a class: a trie whose first node is the
// byte that ends the run. It has runs of its own.
type tail struct {
	trie
	mu   sync.Mutex
	runs map[string]*runs
}

// exit is a node after count characters of the class whose byte starts none of them.
type exit struct{ count, node int32 }

// oddExit is a node whose byte does not continue the character that the bytes before it
// began.
type oddExit struct {
	exit
	begun []byte
}

// partialToken is a token that ends inside a character of the class.
type partialToken struct {
	count int32
	begun []byte
	ids   []int32
}

type tailKey struct {
	b        byte
	from, to int32 // number of characters before it; to < 0 is unbounded
}

// manyUpTo is the number of upTo sets that runs keeps.
const manyUpTo = 33

// newRuns indexes the nodes of t from a node on. words is the length of a set, or 0 to use
// lists alone.
func newRuns(t *trie, from int32, set charset.Set, words int) *runs {
	r := &runs{t: t, words: words, tails: map[tailKey]*tail{}, byCount: make([][]int32, 1)}
	c, err := spelling.New(set, ast.PlainUTF8, 1<<15-1)
	if err != nil {
		return r // unreachable: UTF-8 has fewer states
	}
	type place struct {
		begun [utf8.UTFMax]byte
		bytes uint8
		count int32
	}
	partial := map[place]int{}
	var walk func(from, to int32, state int16, at place)
	walk = func(from, to int32, state int16, at place) {
		for i := from; i < to; i = t.skip[i] {
			next, ok := c.Next(state, t.b[i])
			switch {
			case !ok && state == 0:
				r.exits[t.b[i]] = append(r.exits[t.b[i]], exit{at.count, i})
			case !ok:
				r.odd = append(r.odd, oddExit{exit{at.count, i}, bytes.Clone(at.begun[:at.bytes])})
			case next == spelling.End:
				count := at.count + 1
				if ids := t.at(i); len(ids) > 0 {
					for int(count) >= len(r.byCount) {
						r.byCount = append(r.byCount, nil)
					}
					r.byCount[count] = append(r.byCount[count], ids...)
				}
				walk(i+1, t.skip[i], 0, place{count: count})
			default:
				more := at
				more.begun[more.bytes] = t.b[i]
				more.bytes++
				if ids := t.at(i); len(ids) > 0 {
					at, seen := partial[more]
					if !seen {
						at = len(r.partial)
						partial[more] = at
						r.partial = append(r.partial,
							partialToken{more.count, bytes.Clone(more.begun[:more.bytes]), nil})
					}
					r.partial[at].ids = append(r.partial[at].ids, ids...)
				}
				walk(i+1, t.skip[i], next, more)
			}
		}
	}
	walk(from, t.size(), 0, place{})
	r.longest = len(r.byCount) - 1
	for b := range r.exits {
		if len(r.exits[b]) > 0 {
			r.leaves.Add(byte(b))
		}
		slices.SortStableFunc(r.exits[b], func(a, b exit) int { return cmp.Compare(a.count, b.count) })
	}
	if words > 0 {
		r.all = make([]uint64, words)
		for _, ids := range r.byCount {
			setBits(r.all, ids)
		}
	}
	return r
}

func setBits(mask []uint64, ids []int32) {
	for _, id := range ids {
		mask[id>>6] |= 1 << (id & 63)
	}
}

// within returns the tokens of at most count characters, as a set and further lists.
func (r *runs) within(count int) (set []uint64, lists [][]int32) {
	count = min(count, r.longest)
	switch {
	case r.words == 0:
		return nil, r.byCount[1 : count+1]
	case count == r.longest:
		return r.all, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(count, manyUpTo-1)
	for len(r.upTo) <= n {
		var next []uint64
		if k := len(r.upTo); k == 0 {
			next = make([]uint64, r.words)
		} else {
			next = slices.Clone(r.upTo[k-1])
			setBits(next, r.byCount[k])
		}
		r.upTo = append(r.upTo, next)
	}
	return r.upTo[n], r.byCount[n+1 : count+1]
}

// furthest returns the largest number of characters before byte b.
func (r *runs) furthest(b byte) int {
	e := r.exits[b]
	return int(e[len(e)-1].count)
}

// tail returns what follows between from and to characters of the class and starts with b, or
// nil. A negative to is unbounded.
func (r *runs) tail(b byte, from, to int) *tail {
	key := tailKey{b, int32(from), int32(to)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.tails[key]; ok {
		return t
	}
	var list []spelled
	first, _ := slices.BinarySearchFunc(r.exits[b], key.from,
		func(e exit, count int32) int { return cmp.Compare(e.count, count) })
	for _, e := range r.exits[b][first:] {
		if to >= 0 && e.count > key.to {
			break
		}
		list = r.t.below(e.node, list)
	}
	var t *tail
	if len(list) > 0 {
		t = &tail{trie: *newTrie(list)}
	}
	if len(r.tails) >= maxTails {
		clear(r.tails)
	}
	r.tails[key] = t
	return t
}

const (
	maxTails    = 2000
	maxTailRuns = 4
)

// runsOf returns the runs of a class after the tail's first byte.
func (t *tail) runsOf(set charset.Set, key string) *runs {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.runs[key]
	if r == nil {
		r = newRuns(&t.trie, 1, set, 0)
		if t.runs == nil || len(t.runs) >= maxTailRuns {
			t.runs = map[string]*runs{}
		}
		t.runs[key] = r
	}
	return r
}
