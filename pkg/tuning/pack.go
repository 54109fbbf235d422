package tuning

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/corpus"
)

// Pack puts samples into sequences of a fixed number of rows, each sample into the sequence that it fills best,
// the longest first. No sample is divided. A sample is a document of its sequence, so that attention can keep
// the samples apart; the rows that are left over are one more document, whose targets are masked. Their id is
// pad, which may be any id: nothing looks at it.
//
// It returns the sequences, and for each the indices of its samples.
func Pack(samples []*Sample, length int, pad int32) ([]corpus.Sample, [][]int, error) {
	lengths := make([]int, len(samples))
	for i, s := range samples {
		ids, _ := s.Targets()
		if len(ids) == 0 || len(ids) > length {
			return nil, nil, fmt.Errorf("pack line %d: %d rows into sequences of %d", s.Line, len(ids), length)
		}
		lengths[i] = len(ids)
	}
	bins := corpus.BestFit(lengths, length)
	out := make([]corpus.Sample, len(bins))
	for b, bin := range bins {
		q := &out[b]
		for _, i := range bin {
			ids, targets := samples[i].Targets()
			q.IDs, q.Targets = append(q.IDs, ids...), append(q.Targets, targets...)
			q.Documents = append(q.Documents, len(ids))
		}
		q.Pad(length, pad)
	}
	return out, bins, nil
}
