package vocab

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
)

// TrainOptions sets how a vocabulary is trained.
type TrainOptions struct {
	// Workers is how many goroutines split and count text; 0 means one. The vocabulary
	// does not depend on it.
	Workers int
	// Special lists control tokens; they get the first ids, in this order.
	Special []string
	// BOS and EOS name the begin and end tokens among Special, or are empty.
	BOS, EOS string
	// Progress, if set, is called with the number of tokens so far and the wanted number,
	// on the goroutine that called TrainBPE.
	Progress func(done, total int)
}

// TrainBPE trains a byte-level BPE vocabulary of size ids from texts, each split on its
// own by GPT-2's pattern. The ids are the special tokens, the 256 bytes ordered by the
// character that spells them, and the merges. The most frequent pair merges first, of
// equals the one with the smaller left and then the smaller right id (R. Sennrich et
// al., 2016). The vocabulary is smaller than size if the texts run out of pairs.
// TrainBPE returns the error of ctx when ctx ends, and an error if size is too small for
// the special tokens and the bytes.
func TrainBPE(ctx context.Context, texts iter.Seq[string], size int, o TrainOptions) (*Vocab, error) {
	l := layout{special: o.Special, byteLevel: true, bos: o.BOS, eos: o.EOS}
	for _, s := range o.Special {
		if s == "" || slices.Contains(l.tokens, s) {
			return nil, fmt.Errorf("train vocabulary: special token %q is empty or a duplicate", s)
		}
		l.tokens = append(l.tokens, s)
	}
	for _, s := range []string{o.BOS, o.EOS} {
		if s != "" && !slices.Contains(o.Special, s) {
			return nil, fmt.Errorf("train vocabulary: token %q is not a special token", s)
		}
	}
	alphabet := newByteLevel()
	spelled := slices.Sorted(slices.Values(alphabet.spell[:]))
	base := int32(len(l.tokens))
	l.tokens = append(l.tokens, spelled...)
	if size < len(l.tokens) || size > maxTokens {
		return nil, fmt.Errorf("train vocabulary: size %d is outside %d to %d", size, len(l.tokens), maxTokens)
	}
	counts, err := countWords(ctx, texts, max(1, o.Workers), gpt2Words)
	if err != nil {
		return nil, err
	}
	var ids [256]int32
	for c, s := range alphabet.spell {
		at, _ := slices.BinarySearch(spelled, s)
		ids[c] = base + int32(at)
	}
	t := newTrainer(counts, &ids)
	known := make(map[string]int32, size)
	for id, s := range l.tokens {
		known[s] = int32(id)
	}
	for len(l.tokens) < size {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("train vocabulary: %w", err)
		}
		left, right, ok := t.best()
		if !ok {
			break
		}
		a, b := l.tokens[left], l.tokens[right]
		made, ok := known[a+b]
		if !ok {
			made = int32(len(l.tokens))
			known[a+b] = made
			l.tokens = append(l.tokens, a+b)
		}
		l.merges = append(l.merges, [2]string{a, b})
		t.merge(left, right, made)
		if o.Progress != nil {
			o.Progress(len(l.tokens), size)
		}
	}
	return l.vocab()
}

// gpt2Words splits a text by GPT-2's pattern.
func gpt2Words(text string, yield func(word string)) {
	st := styleGPT2()
	for i := 0; i < len(text); {
		e := st.next(text, i, len(text))
		yield(text[i:e])
		i = e
	}
}

// countWords counts the words of texts.
func countWords(ctx context.Context, texts iter.Seq[string], workers int,
	cut func(text string, yield func(word string))) (map[string]int64, error) {
	const batch = 256
	feed := make(chan []string)
	parts := make([]map[string]int64, workers)
	var wg sync.WaitGroup
	for w := range workers {
		parts[w] = map[string]int64{}
		wg.Go(func() {
			for texts := range feed {
				for _, text := range texts {
					cut(text, func(word string) { parts[w][word]++ })
				}
			}
		})
	}
	var pending []string
	for text := range texts {
		pending = append(pending, text)
		if len(pending) == batch {
			feed <- pending
			pending = nil
			if ctx.Err() != nil {
				break
			}
		}
	}
	if len(pending) > 0 {
		feed <- pending
	}
	close(feed)
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("train vocabulary: %w", err)
	}
	total := parts[0]
	for _, part := range parts[1:] {
		for piece, n := range part {
			total[piece] += n
		}
	}
	return total, nil
}

// trainer keeps the count of every pair of adjacent ids and the words that contain it.
// A merge then rewrites only those words. Counts in the heap may be out of date: a pair
// that lost occurrences is pushed again with its new count when it comes up, and a pair
// that gained some is pushed when that happens.
type trainer struct {
	words  [][]int32
	counts []int64
	pairs  map[uint64]*pairCount
	heap   []ranked
}

type pairCount struct {
	n     int64
	words []int32 // indices of words that may hold the pair
}

// ranked is a pair in the heap with its count at the time it was pushed.
type ranked struct {
	n    int64
	pair uint64
}

func (a ranked) before(b ranked) bool {
	return a.n > b.n || a.n == b.n && a.pair < b.pair
}

func newTrainer(counts map[string]int64, ids *[256]int32) *trainer {
	t := &trainer{pairs: map[uint64]*pairCount{}}
	for _, piece := range sorted(counts) {
		word := make([]int32, len(piece))
		for i := 0; i < len(piece); i++ {
			word[i] = ids[piece[i]]
		}
		w := int32(len(t.words))
		t.words = append(t.words, word)
		t.counts = append(t.counts, counts[piece])
		for i := 0; i+1 < len(word); i++ {
			t.add(pairKey(word[i], word[i+1]), w, counts[piece])
		}
	}
	for _, pair := range sorted(t.pairs) {
		t.push(ranked{t.pairs[pair].n, pair})
	}
	return t
}

func (t *trainer) add(pair uint64, word int32, n int64) {
	p := t.pairs[pair]
	if p == nil {
		p = &pairCount{}
		t.pairs[pair] = p
	}
	p.n += n
	if k := len(p.words); n > 0 && (k == 0 || p.words[k-1] != word) {
		p.words = append(p.words, word)
	}
}

// best returns the most frequent pair.
func (t *trainer) best() (left, right int32, ok bool) {
	for len(t.heap) > 0 {
		top := t.pop()
		p := t.pairs[top.pair]
		if p == nil || p.n <= 0 {
			continue
		}
		if p.n != top.n {
			t.push(ranked{p.n, top.pair})
			continue
		}
		key := top.pair - 1
		return int32(uint32(key >> 32)), int32(uint32(key)), true
	}
	return 0, 0, false
}

// merge replaces every left followed by right with made.
func (t *trainer) merge(left, right, made int32) {
	pair := pairKey(left, right)
	where := t.pairs[pair].words
	changed := map[uint64]bool{}
	for _, w := range where {
		word, n := t.words[w], t.counts[w]
		at := -1
		for i := 0; i+1 < len(word); i++ {
			if word[i] == left && word[i+1] == right {
				at = i
				break
			}
		}
		if at < 0 {
			continue
		}
		for i := 0; i+1 < len(word); i++ {
			t.add(pairKey(word[i], word[i+1]), w, -n)
		}
		out := word[:at]
		for i := at; i < len(word); i++ {
			if i+1 < len(word) && word[i] == left && word[i+1] == right {
				out = append(out, made)
				i++
			} else {
				out = append(out, word[i])
			}
		}
		t.words[w] = out
		for i := 0; i+1 < len(out); i++ {
			key := pairKey(out[i], out[i+1])
			t.add(key, w, n)
			if out[i] == made || out[i+1] == made {
				changed[key] = true
			}
		}
	}
	delete(t.pairs, pair)
	for _, key := range sorted(changed) {
		if p := t.pairs[key]; p != nil {
			t.push(ranked{p.n, key})
		}
	}
}

func (t *trainer) push(x ranked) {
	h := append(t.heap, x)
	i := len(h) - 1
	for i > 0 && x.before(h[(i-1)/2]) {
		h[i] = h[(i-1)/2]
		i = (i - 1) / 2
	}
	h[i] = x
	t.heap = h
}

func (t *trainer) pop() ranked {
	h := t.heap
	top, x := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	i := 0
	for {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1].before(h[c]) {
			c++
		}
		if !h[c].before(x) {
			break
		}
		h[i] = h[c]
		i = c
	}
	if len(h) > 0 {
		h[i] = x
	}
	t.heap = h
	return top
}
