package vocab

import (
	"math"
	"slices"
	"sync"
)

// arc is a piece that covers bytes from..to of a word.
type arc struct {
	from, to, id int32
}

// arcs lists the pieces within a word, ordered by where they begin.
func (t *unigramTrainer) arcs(trie *trie, word string, out []arc) []arc {
	for i := range word {
		node := int32(0)
		for e := i; e < len(word); e++ {
			if node = trie.step(node, word[e]); node < 0 {
				break
			}
			if id := trie.ids[node]; id >= 0 {
				out = append(out, arc{int32(i), int32(e + 1), id})
			}
		}
	}
	return out
}

func (t *unigramTrainer) trie() *trie {
	texts, ids := make([]string, len(t.pieces)), make([]int32, len(t.pieces))
	for i, p := range t.pieces {
		texts[i], ids[i] = p.text, int32(i)
	}
	return newTrie(texts, ids)
}

// inParts calls body for each part of the words on the workers.
func (t *unigramTrainer) inParts(body func(part, lo, hi int)) {
	var wg sync.WaitGroup
	for w := range min(t.workers, unigramParts) {
		wg.Go(func() {
			for part := w; part < unigramParts; part += min(t.workers, unigramParts) {
				body(part, part*len(t.words)/unigramParts, (part+1)*len(t.words)/unigramParts)
			}
		})
	}
	wg.Wait()
}

// addLog is log(exp(a)+exp(b)).
func addLog(a, b float64) float64 {
	if a < b {
		a, b = b, a
	}
	if math.IsInf(b, -1) {
		return a
	}
	return a + math.Log1p(math.Exp(b-a))
}

// expect computes the expected count of each piece over all segmentations of the words
// (the E step), with the forward-backward algorithm: forward[i] is the log of the summed
// probability of all ways to segment the first i bytes of a word, backward[i] that of
// the rest. A piece from i to j has the posterior probability
// exp(forward[i] + score + backward[j] - forward[len]).
func (t *unigramTrainer) expect() []float64 {
	trie, parts := t.trie(), make([][]float64, unigramParts)
	t.inParts(func(part, lo, hi int) {
		expected := make([]float64, len(t.pieces))
		var arcs []arc
		var forward, backward []float64
		for w := lo; w < hi; w++ {
			word := t.words[w]
			arcs = t.arcs(trie, word, arcs[:0])
			forward, backward = allLogZero(forward, len(word)+1), allLogZero(backward, len(word)+1)
			forward[0], backward[len(word)] = 0, 0
			for _, a := range arcs {
				forward[a.to] = addLog(forward[a.to], forward[a.from]+t.pieces[a.id].score)
			}
			for i := len(arcs) - 1; i >= 0; i-- {
				a := arcs[i]
				backward[a.from] = addLog(backward[a.from], backward[a.to]+t.pieces[a.id].score)
			}
			total := forward[len(word)]
			for _, a := range arcs {
				expected[a.id] += t.counts[w] * math.Exp(forward[a.from]+t.pieces[a.id].score+backward[a.to]-total)
			}
		}
		parts[part] = expected
	})
	for _, p := range parts[1:] {
		for i, v := range p {
			parts[0][i] += v
		}
	}
	return parts[0]
}

// allLogZero returns n logarithms of zero, in the memory of x if it has room.
func allLogZero(x []float64, n int) []float64 {
	x = slices.Grow(x[:0], n)[:n]
	for i := range x {
		x[i] = math.Inf(-1)
	}
	return x
}

// maximize computes scores from expected counts (the M step) and drops pieces with low
// counts, except characters. The digamma function instead of the logarithm is the
// variational Bayes estimate under a Dirichlet prior; it favours few pieces.
func (t *unigramTrainer) maximize(expected []float64) {
	var kept []scored
	var total float64
	for i, p := range t.pieces {
		if _, char := t.chars[p.text]; expected[i] >= minExpected || char {
			p.score = max(expected[i], minExpected)
			total += p.score
			kept = append(kept, p)
		}
	}
	for i := range kept {
		kept[i].score = digamma(kept[i].score) - digamma(total)
	}
	t.pieces = kept
}

// digamma is the logarithmic derivative of the gamma function, for x > 0.
func digamma(x float64) float64 {
	var r float64
	for ; x < 7; x++ {
		r -= 1 / x
	}
	x -= 0.5
	xx := 1 / (x * x)
	return r + math.Log(x) + xx*(1.0/24-xx*(7.0/960-xx*(31.0/8064-xx*127.0/30720)))
}

// best returns the ids of the most likely segmentation of a word that does not use the
// piece not, or nil if there is none (Viterbi). score[i] is the best log-probability of
// the first i bytes and from[i] the last arc of that segmentation.
func (t *unigramTrainer) best(arcs []arc, word string, not int32, score []float64, from []int32) []int32 {
	for i := range len(word) + 1 {
		score[i], from[i] = math.Inf(-1), -1
	}
	score[0] = 0
	for k, a := range arcs {
		if a.id == not {
			continue
		}
		if s := score[a.from] + t.pieces[a.id].score; s > score[a.to] {
			score[a.to], from[a.to] = s, int32(k)
		}
	}
	var ids []int32
	for at := int32(len(word)); at > 0; {
		if from[at] < 0 {
			return nil
		}
		ids = append(ids, arcs[from[at]].id)
		at = arcs[from[at]].from
	}
	slices.Reverse(ids)
	return ids
}
