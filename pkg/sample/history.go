package sample

import "math"

// History is the token log of a generation: the ids of the prompt and the emitted ones.
// Together with the sampling parameters it is all the state of a sampler.
type History struct {
	ids      []int32 // prompt, then emitted
	prompt   int     // number of ids of the prompt
	seen     map[int32]int
	emitted  map[int32]int
	surprise []float64 // of emitted ids, in bits
}

// NewHistory takes a prompt and the ids emitted after it. logprobs are those of the emitted
// tokens (Choice.Logprob). Only Mirostat uses them; it ignores tokens without one.
func NewHistory(prompt, emitted []int32, logprobs ...float64) *History {
	h := &History{seen: map[int32]int{}, emitted: map[int32]int{}, prompt: len(prompt)}
	for _, id := range prompt {
		h.ids = append(h.ids, id)
		h.seen[id]++
	}
	for i, id := range emitted {
		if i < len(logprobs) {
			h.Emit(id, logprobs[i])
		} else {
			h.add(id)
		}
	}
	return h
}

func (h *History) add(id int32) {
	h.ids = append(h.ids, id)
	h.seen[id]++
	h.emitted[id]++
}

// Emit adds an emitted id and its log-probability under the model.
func (h *History) Emit(id int32, logprob float64) {
	h.add(id)
	h.surprise = append(h.surprise, -logprob/math.Ln2)
}

// Last returns the last id, or -1.
func (h *History) Last() int32 {
	if len(h.ids) == 0 {
		return -1
	}
	return h.ids[len(h.ids)-1]
}

// Len returns the number of ids.
func (h *History) Len() int { return len(h.ids) }

// Emitted returns the number of emitted ids.
func (h *History) Emitted() int { return len(h.ids) - h.prompt }

// window returns the last n ids, all for a negative n.
func (h *History) window(n int) []int32 {
	if n < 0 || n >= len(h.ids) {
		return h.ids
	}
	return h.ids[len(h.ids)-n:]
}

// counts returns how often each id occurs in the last n ids, or in all for a negative n.
// The caller must not change the map.
func (h *History) counts(n int) map[int32]int {
	if n < 0 || n >= len(h.ids) {
		return h.seen
	}
	out := make(map[int32]int, n)
	for _, id := range h.window(n) {
		out[id]++
	}
	return out
}
