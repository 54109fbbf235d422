package sample

import (
	"math"
)

// Left is an id that a chain keeps, with its probability among those kept.
type Left struct {
	ID          int32
	Probability float64
}

// Leave runs a chain over a row of logits and returns the ids that it keeps, best first.
// The seed and the length of the history decide the randomness of XTC.
func (c Chain) Leave(logits []float64, history []int32, seed uint64) ([]Left, error) {
	s := &state{seed: seed, history: NewHistory(history, nil), position: len(history)}
	for id, logit := range logits {
		if !math.IsInf(logit, -1) {
			s.kept = append(s.kept, entry{int32(id), logit})
		}
	}
	if err := c.run(s); err != nil {
		return nil, err
	}
	s.sort(len(s.kept))
	total := s.logTotal()
	out := make([]Left, len(s.kept))
	for i, e := range s.kept {
		out[i] = Left{e.id, math.Exp(e.logit - total)}
	}
	return out, nil
}
