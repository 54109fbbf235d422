package sampler

import (
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

// Bounds of what a sampler keeps of vocabularies and grammars, by count: the last used
// stay.
const (
	maxVocabularies = 8
	maxCompiled     = 64
)

// library is the vocabularies and the grammars compiled for them.
type library struct {
	mu     sync.Mutex
	vocabs []entry[string, *vocabulary]
	held   []entry[compiledKey, *grammar.Compiled]
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// vocabulary is a model's tokens and what grammars make of them, by the ends of a text.
type vocabulary struct {
	tokens [][]byte
	laid   map[string]*grammar.Vocabulary
}

type compiledKey struct {
	vocabulary, ends string
	kind             samplerv1.GrammarKind
	source           string
}

// get finds an entry and makes it the last used.
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

// take adds a part of a vocabulary to what a pipeline has of it.
func (l *library) take(parts map[string][][]byte, t *samplerv1.Tokens) error {
	have := parts[t.GetDigest()]
	switch n := len(have) + len(t.GetTokens()); {
	case t.GetSize() == 0 || t.GetSize() > maxVocab:
		return fault.Field("tokens.size", "%d is not within 1..%d", t.GetSize(), maxVocab)
	case int(t.GetFirst()) != len(have):
		return fault.Field("tokens.first", "%d, but %d have come", t.GetFirst(), len(have))
	case n > int(t.GetSize()):
		return fault.Field("tokens.tokens", "%d are more than size, %d", n, t.GetSize())
	case len(parts) >= maxVocabularies && have == nil:
		return fault.New(fault.Exhausted, "take vocabulary %s: %d others have not come to their end", t.GetDigest(), len(parts))
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
		l.vocabs = put(l.vocabs, t.GetDigest(), &vocabulary{have, map[string]*grammar.Vocabulary{}}, maxVocabularies)
	}
	return nil
}

// matcher compiles a session's grammar, or finds it compiled, and follows what was
// emitted. The count is of a mask's words.
func (l *library) matcher(a *samplerv1.AddSession) (*grammar.Matcher, int, error) {
	wire := a.GetRules().GetGrammar()
	if wire == nil {
		return nil, 0, nil
	}
	ends := ids(a.GetRules().GetEndIds())
	slices.Sort(ends)
	key := compiledKey{a.GetVocabulary(), spell(ends), wire.GetKind(), wire.GetSource()}
	compiled, words, err := l.compiled(key, wire, ends)
	if err != nil {
		return nil, 0, err
	}
	m := compiled.NewMatcher()
	for i, id := range a.GetEmitted() {
		if err := m.Accept(int32(id)); err != nil {
			return nil, 0, fault.Field("add.emitted", "id %d at %d: %v", id, i, err)
		}
	}
	return m, words, nil
}

func (l *library) compiled(key compiledKey, wire *samplerv1.Grammar, ends []int32) (*grammar.Compiled, int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := get(l.vocabs, key.vocabulary)
	if !ok {
		return nil, 0, fault.New(fault.FailedPrecondition, "add session: the tokens of vocabulary %q have not come", key.vocabulary)
	}
	laid := v.laid[key.ends]
	if laid == nil {
		var err error
		if laid, err = grammar.NewVocabulary(v.tokens, slices.DeleteFunc(slices.Clone(ends), func(id int32) bool { return int(id) >= len(v.tokens) })...); err != nil {
			return nil, 0, err
		}
		if len(v.laid) == maxVocabularies {
			clear(v.laid)
		}
		v.laid[key.ends] = laid
	}
	if c, ok := get(l.held, key); ok {
		return c, laid.Words(), nil
	}
	g, err := samplerules.Grammar("add.rules.grammar", wire)
	if err != nil {
		return nil, 0, err
	}
	c, err := grammar.Compile(g, laid)
	if err != nil {
		return nil, 0, fault.Field("add.rules.grammar.source", "%v", err)
	}
	l.held = put(l.held, key, c, maxCompiled)
	return c, laid.Words(), nil
}

// spell makes a key of ids.
func spell(ids []int32) string {
	b := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		b = append(b, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	return string(b)
}
