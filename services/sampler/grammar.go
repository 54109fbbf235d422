package sampler

import (
	"context"
	"runtime"
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

// These are the numbers of vocabularies and grammars that a sampler keeps. The least recently used
// one is evicted.
const (
	maxVocabularies = 8
	maxCompiled     = 64
)

// library holds the vocabularies and the grammars compiled for them. Compiling takes up to a
// quarter of a second of CPU, so it is done without the lock. Only the sessions that need a grammar
// wait for it. slots limits how many grammars are compiled at once.
type library struct {
	slots chan struct{}

	mu     sync.Mutex
	vocabs []entry[string, *vocabulary]
	held   []entry[compiledKey, *compiling]
}

func newLibrary() *library {
	return &library{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

// compiling is a grammar that is being compiled or has been compiled. done is closed when it has.
type compiling struct {
	done     chan struct{}
	compiled *grammar.Compiled
	words    int // number of words in a token mask
	err      error
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// vocabulary holds a model's tokens, and their form for grammars for each set of end-of-text ids.
type vocabulary struct {
	tokens [][]byte

	mu   sync.Mutex // held while a layout is computed
	laid map[string]*grammar.Vocabulary
}

// layout prepares the vocabulary for grammars whose texts end with any of the given ids.
func (v *vocabulary) layout(key string, ends []int32) (*grammar.Vocabulary, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if known := v.laid[key]; known != nil {
		return known, nil
	}
	inside := slices.DeleteFunc(slices.Clone(ends), func(id int32) bool { return int(id) >= len(v.tokens) })
	laid, err := grammar.NewVocabulary(v.tokens, inside...)
	if err != nil {
		return nil, err
	}
	if len(v.laid) == maxVocabularies {
		clear(v.laid)
	}
	v.laid[key] = laid
	return laid, nil
}

type compiledKey struct {
	vocabulary, ends string
	kind             samplerv1.GrammarKind
	source           string
}

// get finds an entry and makes it the most recently used.
func get[K comparable, V any](list []entry[K, V], key K) (v V, ok bool) {
	at := slices.IndexFunc(list, func(e entry[K, V]) bool { return e.key == key })
	if at < 0 {
		return v, false
	}
	found := list[at]
	copy(list[at:], list[at+1:])
	list[len(list)-1] = found
	return found.value, true
}

func put[K comparable, V any](list []entry[K, V], key K, v V, most int) []entry[K, V] {
	if _, ok := get(list, key); ok {
		list[len(list)-1].value = v
		return list
	}
	if len(list) == most {
		list = slices.Delete(list, 0, 1)
	}
	return append(list, entry[K, V]{key, v})
}

// incoming holds the vocabularies of which a pipeline has sent some parts but not all.
type incoming map[string][][]byte

// take adds a part of a vocabulary to the parts that a pipeline has sent before. If a part does not
// fit, it drops the vocabulary and returns an error.
func (l *library) take(parts incoming, t *samplerv1.Tokens) error {
	have := parts[t.GetDigest()]
	var err error
	switch n := len(have) + len(t.GetTokens()); {
	case t.GetSize() == 0 || t.GetSize() > samplerules.MaxVocab:
		err = fault.Field("tokens.size", "%d is not within 1..%d", t.GetSize(), samplerules.MaxVocab)
	case int(t.GetFirst()) != len(have):
		err = fault.Field("tokens.first", "got %d, want %d", t.GetFirst(), len(have))
	case n > int(t.GetSize()):
		err = fault.Field("tokens.tokens", "%d tokens exceed the size of %d", n, t.GetSize())
	case len(parts) >= maxVocabularies && have == nil:
		err = fault.New(fault.Exhausted, "store vocabulary %s: %d others are incomplete", t.GetDigest(), len(parts))
	}
	if err != nil {
		delete(parts, t.GetDigest())
		return err
	}
	have = append(have, t.GetTokens()...)
	if len(have) < int(t.GetSize()) {
		parts[t.GetDigest()] = have
		return nil
	}
	delete(parts, t.GetDigest())
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := get(l.vocabs, t.GetDigest()); !ok {
		l.vocabs = put(
			l.vocabs, t.GetDigest(), &vocabulary{tokens: have, laid: map[string]*grammar.Vocabulary{}}, maxVocabularies,
		)
	}
	return nil
}

// matcher compiles a session's grammar, or finds it compiled, and advances a matcher over the
// emitted tokens. It also computes the mask of the next token, so that a grammar that allows no
// token is refused here and not at the first row. The grammar caches that mask.
func (l *library) matcher(ctx context.Context, a *samplerv1.AddSession) (m *grammar.Matcher, mask []uint64, err error) {
	wire := a.GetRules().GetGrammar()
	if wire == nil {
		return nil, nil, nil
	}
	ends := ids(a.GetRules().GetEndIds())
	slices.Sort(ends)
	c, err := l.compile(ctx, compiledKey{a.GetVocabulary(), idsKey(ends), wire.GetKind(), wire.GetSource()}, wire, ends)
	if err != nil {
		return nil, nil, err
	}
	m, mask = c.compiled.NewMatcher(), make([]uint64, c.words)
	for i, id := range a.GetEmitted() {
		if err := m.Accept(int32(id)); err != nil {
			return nil, nil, fault.New(fault.Internal, "replay emitted id %d at %d: %v", id, i, err)
		}
	}
	if err := m.Mask(mask); err != nil {
		return nil, nil, fault.Field("grammar.source", "%v", err)
	}
	if grammar.Allowed(mask) == 0 {
		return nil, nil, fault.Field(
			"grammar.source", "no token of the vocabulary fits the grammar after %d tokens", len(a.GetEmitted()),
		)
	}
	return m, mask, nil
}

// compile returns a grammar compiled for a vocabulary. If several sessions ask for the same grammar
// at once, the first compiles it and the others wait.
func (l *library) compile(
	ctx context.Context, key compiledKey, wire *samplerv1.Grammar, ends []int32,
) (c *compiling, err error) {
	l.mu.Lock()
	v, ok := get(l.vocabs, key.vocabulary)
	if !ok {
		l.mu.Unlock()
		return nil, fault.New(fault.FailedPrecondition, "find vocabulary %q: its tokens have not been sent",
			key.vocabulary)
	}
	known := false
	c, known = get(l.held, key)
	if !known {
		c = &compiling{done: make(chan struct{})}
		l.held = put(l.held, key, c, maxCompiled)
	}
	l.mu.Unlock()
	if known {
		select {
		case <-c.done:
			return c, c.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer func() {
		if r := recover(); r != nil {
			c.err = fault.New(fault.Internal, "compile grammar: %v", r)
		}
		err = c.err
		if c.err != nil { // a grammar with an error must not evict a good one
			l.mu.Lock()
			l.held = slices.DeleteFunc(l.held, func(e entry[compiledKey, *compiling]) bool { return e.value == c })
			l.mu.Unlock()
		}
		close(c.done)
	}()
	l.slots <- struct{}{} // a slot is returned within bounded CPU time
	defer func() { <-l.slots }()
	var laid *grammar.Vocabulary
	if laid, c.err = v.layout(key.ends, ends); c.err == nil {
		c.words = laid.Words()
		c.compiled, c.err = samplerules.Compile("grammar", wire, laid)
	}
	return c, nil
}

// idsKey makes a map key from ids.
func idsKey(ids []int32) string {
	b := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		b = append(b, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	return string(b)
}
