package vocab

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// Constants of unigram training, as SentencePiece has them.
const (
	unigramUnk    = "<unk>"
	maxPiece      = 16      // maximum length of a piece in characters
	maxSeeds      = 500_000 // maximum number of pieces that training begins with
	subIterations = 2       // EM steps between two prunings
	shrink        = 0.75    // fraction of the pieces that a pruning keeps
	minExpected   = 0.5     // a piece with a lower expected count is dropped
	unigramParts  = 16      // parts of the words; sums are added part by part, so they do not depend on the workers
	overshoot     = 1.1     // pruning ends at this multiple of the wanted size
	charPenalty   = 1e-4    // score step between characters that pruning dropped
)

// TrainUnigram trains a unigram vocabulary (T. Kudo, 2018) of size ids from texts. Each
// text gets a space in front and is split before its spaces, which become "▁". The ids
// are <unk>, the special tokens, and the pieces by decreasing probability. Every
// character of the texts is a piece. The vocabulary is smaller than size if the texts
// have too few pieces. TrainUnigram returns the error of ctx when ctx ends, and an error
// if size is too small for the characters.
//
// Training starts from many frequent substrings. EM steps estimate the probability of
// each piece: expect computes expected counts over all segmentations of the words, and
// maximize turns them into scores. After every few steps prune drops the pieces whose
// loss costs the least likelihood, until about the wanted number is left.
func TrainUnigram(ctx context.Context, texts iter.Seq[string], size int, o TrainOptions) (*Vocab, error) {
	special := []string{unigramUnk}
	for _, s := range o.Special {
		if s == "" || s != unigramUnk && slices.Contains(special, s) {
			return nil, fmt.Errorf("train vocabulary: special token %q is empty or a duplicate", s)
		}
		if s != unigramUnk {
			special = append(special, s)
		}
	}
	for _, s := range []string{o.BOS, o.EOS} {
		if s != "" && !slices.Contains(special, s) {
			return nil, fmt.Errorf("train vocabulary: token %q is not a special token", s)
		}
	}
	counts, err := countWords(ctx, texts, max(1, o.Workers), markWords)
	if err != nil {
		return nil, err
	}
	t := &unigramTrainer{workers: max(1, o.Workers)}
	for _, word := range sorted(counts) {
		t.words, t.counts = append(t.words, word), append(t.counts, float64(counts[word]))
	}
	t.seed()
	wanted := size - len(special)
	if wanted < len(t.chars) || size > maxTokens {
		return nil, fmt.Errorf("train vocabulary: size %d is outside %d to %d: the texts have %d characters",
			size, len(special)+len(t.chars), maxTokens, len(t.chars))
	}
	last := int(float64(wanted) * overshoot)
	begin := len(t.pieces)
	for {
		for range subIterations {
			if err := ctx.Err(); err != nil {
				return nil, fmt.Errorf("train vocabulary: %w", err)
			}
			t.maximize(t.expect())
		}
		if o.Progress != nil {
			done := 1.0
			if begin > last {
				done = math.Log(float64(begin)/float64(len(t.pieces))) / math.Log(float64(begin)/float64(last))
			}
			o.Progress(int(min(1, done)*float64(size)), size)
		}
		if len(t.pieces) <= last {
			break
		}
		before := len(t.pieces)
		t.prune(max(last, int(shrink*float64(before))))
		if len(t.pieces) == before {
			break
		}
	}
	return t.finish(wanted, special, o)
}

// markWords splits a text before its spaces, as Metaspace does.
func markWords(text string, yield func(word string)) {
	text = strings.ReplaceAll(text, " ", wordMark)
	if !strings.HasPrefix(text, wordMark) {
		text = wordMark + text
	}
	cut := markScan(wordMark)
	for i := 0; i < len(text); {
		e := cut.next(text, i, len(text))
		yield(text[i:e])
		i = e
	}
}

type scored struct {
	text  string
	score float64 // log-probability
}

type unigramTrainer struct {
	workers int
	words   []string
	counts  []float64
	chars   map[string]float64
	pieces  []scored
}

// seed fills pieces with all characters and the substrings that cover the most text.
//
// Substrings are counted length by length. A substring can occur twice only if the two
// substrings without its last and without its first character do, so each length
// considers few candidates and needs no suffix array.
func (t *unigramTrainer) seed() {
	t.chars = map[string]float64{}
	level := map[string]float64{} // counts of the substrings of one length that occur at least twice
	for i, word := range t.words {
		for k, r := range word {
			t.chars[word[k:k+utf8.RuneLen(r)]] += t.counts[i]
		}
	}
	for c, n := range t.chars {
		level[c] = n
	}
	var seeds []scored
	for length := 2; length <= maxPiece && len(level) > 0; length++ {
		next := map[string]float64{}
		for i, word := range t.words {
			starts := append(runeStarts(word), len(word))
			for k := 0; k+length < len(starts); k++ {
				// Both shorter substrings must occur twice.
				if level[word[starts[k]:starts[k+length-1]]] >= 2 && level[word[starts[k+1]:starts[k+length]]] >= 2 {
					next[word[starts[k]:starts[k+length]]] += t.counts[i]
				}
			}
		}
		for text, n := range next {
			if n < 2 {
				delete(next, text)
				continue
			}
			seeds = append(seeds, scored{text, n * float64(length)})
		}
		level = next
	}
	slices.SortFunc(seeds, byScore)
	seeds = seeds[:min(len(seeds), maxSeeds)]
	for _, c := range sorted(t.chars) {
		t.pieces = append(t.pieces, scored{c, t.chars[c]})
	}
	t.pieces = append(t.pieces, seeds...)
	var total float64
	for _, p := range t.pieces {
		total += p.score
	}
	for i := range t.pieces {
		t.pieces[i].score = math.Log(t.pieces[i].score) - math.Log(total)
	}
}

func runeStarts(s string) []int {
	starts := make([]int, 0, len(s)+1)
	for i := range s {
		starts = append(starts, i)
	}
	return starts
}

func byScore(a, b scored) int {
	if a.score != b.score {
		return cmp.Compare(b.score, a.score)
	}
	return cmp.Compare(a.text, b.text)
}

// prune keeps at most a number of pieces: the characters, and the pieces whose removal
// would cost the most likelihood.
//
// Removing a piece replaces each of its occurrences with its second-best segmentation.
// The change of the log-likelihood is estimated from the counts of the best
// segmentations of all words, weighted by the share of words that use the piece.
func (t *unigramTrainer) prune(most int) {
	trie := t.trie()
	counts, holding := make([][]float64, unigramParts), make([][]float64, unigramParts)
	t.inParts(func(part, lo, hi int) {
		counts[part], holding[part] = make([]float64, len(t.pieces)), make([]float64, len(t.pieces))
		var arcs []arc
		var score []float64
		var from []int32
		for w := lo; w < hi; w++ {
			word := t.words[w]
			arcs = t.arcs(trie, word, arcs[:0])
			score, from = slices.Grow(score[:0], len(word)+1)[:len(word)+1],
				slices.Grow(from[:0], len(word)+1)[:len(word)+1]
			ids := t.best(arcs, word, -1, score, from)
			for i, id := range ids {
				counts[part][id] += t.counts[w]
				if !slices.Contains(ids[:i], id) {
					holding[part][id] += t.counts[w]
				}
			}
		}
	})
	for p := range counts[1:] {
		for i := range t.pieces {
			counts[0][i] += counts[p+1][i]
			holding[0][i] += holding[p+1][i]
		}
	}
	count, held := counts[0], holding[0]
	var total, words float64
	for i := range t.pieces {
		total += count[i]
	}
	for _, n := range t.counts {
		words += n
	}
	var kept, others []scored
	var index []int // of others in t.pieces
	var score []float64
	var from []int32
	for i, p := range t.pieces {
		if _, char := t.chars[p.text]; char {
			kept = append(kept, p)
			continue
		}
		arcs := t.arcs(trie, p.text, nil)
		n := len(p.text) + 1
		score, from = slices.Grow(score[:0], n)[:n], slices.Grow(from[:0], n)[:n]
		if whole := t.best(arcs, p.text, -1, score, from); count[i] == 0 || len(whole) != 1 {
			continue // never used
		}
		instead := t.best(arcs, p.text, int32(i), score, from)
		with := math.Log(count[i]) - math.Log(total)
		sum := math.Log(total + count[i]*float64(len(instead)-1))
		without := 0.0
		for _, id := range instead {
			without += math.Log(count[id]+count[i]) - sum
		}
		others, index = append(others, scored{p.text, held[i] / words * (with - without)}), append(index, i)
	}
	order := make([]int, len(others))
	for k := range order {
		order[k] = k
	}
	slices.SortFunc(order, func(a, b int) int { return byScore(others[a], others[b]) })
	for _, k := range order[:max(0, min(len(order), most-len(kept)))] {
		kept = append(kept, t.pieces[index[k]])
	}
	t.pieces = kept
}

// finish builds the vocabulary of all characters and the most likely other pieces. A
// character that scores below all pieces is put just below them, so that it is used
// only where no piece fits.
func (t *unigramTrainer) finish(wanted int, special []string, o TrainOptions) (*Vocab, error) {
	slices.SortFunc(t.pieces, byScore)
	worst, left := 0.0, wanted-len(t.chars)
	var pieces []scored
	var chars []scored
	for _, p := range t.pieces {
		_, char := t.chars[p.text]
		switch {
		case char:
			chars = append(chars, p)
		case left > 0:
			left--
			pieces = append(pieces, p)
			worst = min(worst, p.score)
		}
	}
	for _, c := range chars {
		if c.score = max(c.score, worst-1-charPenalty); c.score < worst {
			worst -= charPenalty
			c.score = worst
		}
		pieces = append(pieces, c)
	}
	slices.SortStableFunc(pieces, byScore)
	l := layout{special: special, bos: o.BOS, eos: o.EOS, scores: make([]float64, len(special))}
	l.tokens = append(l.tokens, special...)
	for _, p := range pieces {
		if slices.Contains(special, p.text) {
			continue
		}
		l.tokens, l.scores = append(l.tokens, p.text), append(l.scores, p.score)
	}
	return l.vocab()
}
