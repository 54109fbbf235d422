package sim

import "math/bits"

// The model of a model: its keys and values at a position are a hash of all tokens up to it, and the
// next token follows from that hash. So the text is right only if every position was computed from the
// right tokens, on every stage.

// state is the hash of a prefix. 0 is no state: a position that was not computed.
type state uint64

func mix(h, v uint64) uint64 {
	h = (h ^ v) * 0xff51afd7ed558ccd
	return bits.RotateLeft64(h, 31) * 0xc4ceb9fe1a85ec53
}

// root is the state before the first token. Keys and values depend on the model, and, so that pages
// that are shared by mistake are noticed, here also on the tenant and the namespace.
func root(digest, tenant, namespace string) state {
	h := uint64(14695981039346656037)
	for _, s := range []string{digest, tenant, namespace} {
		for i := range len(s) {
			h = mix(h, uint64(s[i]))
		}
		h = mix(h, 0x100)
	}
	return state(h | 1)
}

func (s state) extend(token int32) state { return state(mix(uint64(s), uint64(uint32(token))+1) | 1) }

func (s state) extendAll(tokens []int32) state {
	for _, t := range tokens {
		s = s.extend(t)
	}
	return s
}

const regularSeed = 1

// vocab is the number of token ids. endToken ends a generation.
const (
	vocab    = 23
	endToken = 0
)

// pick returns the token after a prefix whose last token is given. Most tokens follow from the last one
// alone, so that n-grams repeat; with the seed regularSeed nearly all do. endEvery is the mean length of a
// text.
func (s state) pick(last int32, seed uint64, endEvery int) int32 {
	h := mix(uint64(s), seed)
	if seed == regularSeed && h>>44%8 != 0 {
		return 1 + (last*5+3)%(vocab-1)
	}
	switch {
	case endEvery > 0 && h>>8%uint64(endEvery) == 0:
		return endToken
	case h>>40%4 != 0:
		return 1 + (last*5+3)%(vocab-1)
	}
	return 1 + int32(h>>20%(vocab-1))
}

// pickDraft returns the token that a draft model picks: often the same.
func (s state) pickDraft(last int32) int32 {
	if mix(uint64(s), 99)>>13%5 == 0 {
		return 1 + int32(uint64(s)>>9%(vocab-1))
	}
	return 1 + (last*5+3)%(vocab-1)
}

// logprobOf is what a stage would score a token of a prompt with.
func logprobOf(before state, token int32) float64 {
	return -float64(mix(uint64(before), uint64(uint32(token)))>>40) / (1 << 22)
}
