package trainer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/tuning"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// pairs are preferences that are encoded already. Both answers of a pair are documents of one sequence, and so of
// one slot: the last stage computes the loss of a pair alone.
type pairs struct {
	order
	rows              []*tuning.Pair // of training, then of validation
	train, validation []*pairSequence

	reference []tuning.Sums // of each row, once they are known
}

// pairSequence is a sequence of pairs. Pair i is documents 2i, the chosen answer, and 2i+1.
type pairSequence struct {
	corpus.Sample
	name string
	rows []int // of the pairs
}

// readPairs reads the files of pairs and packs them into sequences.
func readPairs(_ context.Context, m *Manifest, v *vocab.Vocab) (*dataset, error) {
	train, held, err := readRows(m, "data.pairs", m.Data.Pairs, func(field, path string) ([]*tuning.Pair, error) {
		return readPairFile(field, path, m, v)
	})
	if err != nil {
		return nil, err
	}
	p := &pairs{rows: slices.Concat(train, held)}
	d := encoded(p, m, v)
	p.train = p.pack(0, len(train), m, d.pad())
	p.validation = p.pack(len(train), len(p.rows), m, d.pad())
	if p.order, err = newOrder(m, corpus.Part{Samples: int64(len(p.train))}); err != nil {
		return nil, err
	}
	for i, row := range p.rows {
		n := row.Chosen.Trained() + row.Rejected.Trained()
		if i < len(train) {
			d.tokens += n
		} else {
			d.heldTokens += n
		}
	}
	d.about = fmt.Sprintf("%s: %s in %s of %d, %s compared; %s for validation", m.Data.Pairs,
		plural.Of(len(train), "pair"), plural.Of(len(p.train), "sequence"), m.SequenceLen, plural.Of(d.tokens, "token"),
		plural.Of(len(held), "pair"))
	return d, nil
}

// pack packs rows lo..hi-1 as the manifest says.
func (p *pairs) pack(lo, hi int, m *Manifest, pad int32) []*pairSequence {
	var lengths []int
	var bins [][]int
	for i := lo; i < hi; i++ {
		lengths, bins = append(lengths, p.rows[i].Rows()), append(bins, []int{i - lo})
	}
	if m.Data.Packing == corpus.PackBestFit && len(lengths) > 0 {
		bins = corpus.BestFit(lengths, m.SequenceLen)
	}
	var out []*pairSequence
	for _, bin := range bins {
		q := &pairSequence{}
		for i, at := range bin {
			row := p.rows[lo+at]
			if i > 0 {
				q.name += "+"
			}
			q.name += fmt.Sprint(row.Line)
			q.rows = append(q.rows, lo+at)
			for _, s := range []*tuning.Sample{row.Chosen, row.Rejected} {
				ids, targets := s.Targets()
				q.IDs, q.Targets = append(q.IDs, ids...), append(q.Targets, targets...)
				q.Documents = append(q.Documents, len(ids))
			}
		}
		q.Pad(m.SequenceLen, pad)
		out = append(out, q)
	}
	return out
}

// readPairFile reads rows of encoded pairs, such as "lamina tune" writes.
func readPairFile(field, path string, m *Manifest, v *vocab.Vocab) ([]*tuning.Pair, error) {
	r, err := tuning.New(tuning.Config{Vocab: v})
	if err != nil {
		return nil, err
	}
	var out []*tuning.Pair
	err = eachRow(field, path, func(line int, row []byte) error {
		p, err := tuning.ParsePreference(line, row)
		if err != nil {
			return fault.Field(field, "%v", err)
		}
		if p.Chosen.Format != tuning.FormatIDs || p.Rejected.Format != tuning.FormatIDs {
			return fault.Field(field, "line %d: want token ids; lamina tune encodes texts", line)
		}
		pair, err := r.RenderPair(context.Background(), p)
		if err != nil {
			return fault.Field(field, "%v", err)
		}
		if rows := pair.Rows(); rows > m.SequenceLen {
			return fault.Field(field, "both answers of line %d with their prompts take %d rows, sequence_len is %d",
				line, rows, m.SequenceLen)
		}
		out = append(out, pair)
		return nil
	})
	return out, err
}

// of returns a sequence with its pairs and what is known of their reference.
func (p *pairs) of(s *pairSequence) *sequence {
	q := &sequence{Sample: s.Sample, name: s.name}
	for i, row := range s.rows {
		pair := &shardv1.Pair{Chosen: uint32(2 * i), Rejected: uint32(2*i + 1)}
		if p.reference != nil {
			pair.ReferenceChosen, pair.ReferenceRejected = p.reference[row].Chosen, p.reference[row].Rejected
		}
		q.pairs = append(q.pairs, pair)
	}
	return q
}

// sequence returns a sequence of a slot of a step.
func (p *pairs) sequence(step uint64, slot, s int) (*sequence, error) {
	at := p.place(step, slot, s)
	q := p.of(p.train[at.Sample])
	q.name = fmt.Sprintf("%d/%s", at.Epoch, q.name)
	return q, nil
}

func (p *pairs) held() int64 { return int64(len(p.validation)) }

func (p *pairs) heldSequence(i int64) (*sequence, error) { return p.of(p.validation[i]), nil }

func (p *pairs) close() error { return nil }

// digest names the pairs, so that what was computed from them can be kept.
func (p *pairs) digest() string {
	h := sha256.New()
	e := json.NewEncoder(h)
	for _, row := range p.rows {
		for _, s := range []*tuning.Sample{row.Chosen, row.Rejected} {
			ids, targets := s.Targets()
			if err := e.Encode([][]int32{ids, targets}); err != nil { // numbers can always be written
				panic(err)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
