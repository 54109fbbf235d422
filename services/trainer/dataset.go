package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// dataset is what a run reads: its vocabulary, and sequences for training and validation.
type dataset struct {
	source
	vocab      *vocab.Vocab
	sizes      []int // bytes of text of each id
	begin, end int32 // ids around documents; -1 for none
	length     int   // rows of a sequence
	isolate    bool  // documents are isolated in attention
	tokens     int   // to train on
	heldTokens int   // for validation
	about      string
}

// source has the sequences of a dataset.
type source interface {
	// sequence returns a sequence of a slot of a step.
	sequence(step uint64, slot, sequence int) (*sequence, error)
	// held returns the number of sequences for validation, and heldSequence one of them.
	held() int64
	heldSequence(i int64) (*sequence, error)
	close() error
}

// sequence is a sample with the name that the ledger gives it.
type sequence struct {
	corpus.Sample
	name  string
	pairs []*shardv1.Pair // their documents are those of the sequence

	rollouts []*shardv1.Rollout // as pairs
}

// micro is the data of a slot.
type micro struct {
	*shardv1.Microbatch
	samples []string // one for each sequence
	counted uint64   // targets that are not masked, or pairs
	tokens  uint64   // targets that are not masked
	bytes   uint64   // text of those targets
}

// readData opens the data of the manifest. Its vocabulary is v unless that is nil. The caller closes the data.
func readData(ctx context.Context, m *Manifest, v *vocab.Vocab) (*dataset, error) {
	read := readTexts
	switch {
	case m.Data.Examples != "":
		read = readExamples
	case m.Data.Pairs != "":
		read = readPairs
	case m.Data.Prompts != "":
		read = readPrompts
	case len(m.Data.Tokens) > 0:
		read = openTokens
	}
	d, err := read(ctx, m, v)
	if err != nil {
		return nil, err
	}
	for id := range d.vocab.Size() {
		text, kind, err := d.vocab.Token(int32(id))
		if err != nil {
			return nil, errors.Join(err, d.close())
		}
		size := len(text)
		if kind == vocab.KindControl || kind == vocab.KindUnknown || kind == vocab.KindUnused {
			size = 0
		}
		d.sizes = append(d.sizes, size)
	}
	return d, nil
}

// within checks what the run generates against the context length of the model. Sequences are checked with the
// manifest.
func (d *dataset) within(m *Manifest, context int) error {
	p, ok := d.source.(*prompts)
	if !ok {
		return nil
	}
	return p.within(context, m.GRPO.MaxTokens)
}

// slot returns the data of one slot of a step.
func (d *dataset) slot(step uint64, slot, sequences int) (*micro, error) {
	m := d.micro(step, slot)
	for s := range sequences {
		q, err := d.sequence(step, slot, s)
		if err != nil {
			return nil, err
		}
		d.add(m, q)
	}
	return m, nil
}

// evaluations returns the number of slots of a validation.
func (d *dataset) evaluations(sequences int) int {
	return int((d.held() + int64(sequences) - 1) / int64(sequences))
}

// evaluation returns a slot of a validation. The last one may have fewer sequences.
func (d *dataset) evaluation(step uint64, slot, sequences int) (*micro, error) {
	m := d.micro(step, slot)
	from := int64(slot) * int64(sequences)
	for i := from; i < min(from+int64(sequences), d.held()); i++ {
		q, err := d.heldSequence(i)
		if err != nil {
			return nil, err
		}
		d.add(m, q)
	}
	return m, nil
}

func (d *dataset) micro(step uint64, slot int) *micro {
	return &micro{Microbatch: &shardv1.Microbatch{Step: step, Slot: uint32(slot), Length: uint32(d.length)}}
}

// add appends a sequence.
func (d *dataset) add(m *micro, q *sequence) {
	m.Sequences++
	for _, id := range q.IDs {
		m.Ids = append(m.Ids, uint32(id))
	}
	m.Targets = append(m.Targets, q.Targets...)
	before := uint32(len(m.Documents))
	for _, p := range q.pairs {
		m.Pairs = append(m.Pairs, &shardv1.Pair{Chosen: before + p.GetChosen(), Rejected: before + p.GetRejected(),
			ReferenceChosen: p.GetReferenceChosen(), ReferenceRejected: p.GetReferenceRejected()})
	}
	if d.isolate {
		for _, n := range q.Documents {
			m.Documents = append(m.Documents, uint32(n))
		}
	}
	m.samples = append(m.samples, q.name)
	for _, r := range q.rollouts {
		m.Rollouts = append(m.Rollouts, &shardv1.Rollout{Document: before + r.GetDocument(),
			Advantage: r.GetAdvantage(), Logprobs: r.GetLogprobs(), Reference: r.GetReference()})
	}
	m.counted += uint64(len(q.pairs))
	for _, id := range q.Targets {
		switch {
		case id < 0:
		case len(q.pairs) > 0: // the loss is that of pairs, which has no bits per byte
			m.tokens++
		case len(q.rollouts) > 0:
			m.counted, m.tokens = m.counted+1, m.tokens+1
		default:
			m.counted, m.tokens = m.counted+1, m.tokens+1
			m.bytes += uint64(d.sizes[id])
		}
	}
}

// bitsPerByte converts a sum of losses in nats.
func bitsPerByte(nats float64, bytes uint64) float64 {
	if bytes == 0 {
		return 0
	}
	return nats / math.Ln2 / float64(bytes)
}

// packed is token data.
type packed struct {
	order
	open       []*corpus.Data
	parts      []*corpus.Packing
	validation []*corpus.Packing
}

// openTokens opens the folders of token data and packs their documents.
func openTokens(_ context.Context, m *Manifest, v *vocab.Vocab) (d *dataset, err error) {
	p := &packed{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	d = &dataset{source: p, vocab: v, length: m.SequenceLen, isolate: m.Data.Isolate}
	var parts []corpus.Part
	var about []string
	for i, t := range m.Data.Tokens {
		data, err := p.folder(d, fmt.Sprintf("data.tokens[%d].path", i), t.Path)
		if err != nil {
			return nil, err
		}
		n := data.Documents()
		cut := data.Cut(m.Data.ValidationFraction)
		if cut == n && m.Data.ValidationFraction > 0 {
			return nil, fault.Field("data.validation_fraction", "%s has only one document", t.Path)
		}
		train, err := corpus.NewPacking(data, 0, cut, m.SequenceLen, m.Data.Packing)
		if err != nil {
			return nil, err
		}
		if cut < n {
			if err := p.hold(data, cut, m); err != nil {
				return nil, err
			}
		}
		p.parts = append(p.parts, train)
		d.tokens += int(train.Tokens())
		parts = append(parts, corpus.Part{Samples: train.Samples(), Weight: t.Weight, Epochs: t.Epochs})
		about = append(
			about,
			fmt.Sprintf("%s: %s, %s, %s of %d, %.2f %% padding", t.Path, plural.Of(cut, "document"),
				plural.Of(train.Tokens(), "token"), plural.Of(train.Samples(), "sequence"), m.SequenceLen,
				100*train.Waste()),
		)
	}
	for i, path := range m.Data.Validation {
		data, err := p.folder(d, fmt.Sprintf("data.validation[%d]", i), path)
		if err != nil {
			return nil, err
		}
		if err := p.hold(data, 0, m); err != nil {
			return nil, err
		}
	}
	if p.order, err = newOrder(m, parts...); err != nil {
		return nil, err
	}
	if err := p.mixture.Check(int64(m.Steps) * int64(m.Slots) * int64(m.SlotSequences)); err != nil {
		return nil, err
	}
	for _, v := range p.validation {
		d.heldTokens += int(v.Tokens())
	}
	if held := p.held(); held > 0 {
		about = append(about, plural.Of(held, "sequence")+" for validation")
	}
	d.about = strings.Join(about, "; ")
	return d, nil
}

// folder opens a folder of token data, whose vocabulary must be the run's. If the run has none, the first folder
// brings it.
func (p *packed) folder(d *dataset, field, path string) (*corpus.Data, error) {
	data, err := corpus.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "%s", field)
	}
	p.open = append(p.open, data)
	v := &data.Index.Vocabulary
	if d.vocab == nil {
		if d.vocab, err = vocab.FromHF(path); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "%s: read the vocabulary beside the tokens", field)
		}
	}
	if len(p.open) == 1 {
		d.begin, d.end = int32(v.Begin), int32(v.End)
	}
	if got := corpus.DigestVocabulary(d.vocab.Size(), d.vocab.Piece); got != v.SHA256 {
		return nil, fault.Field(field, "%s was built with vocabulary sha256:%.12s, the run has sha256:%.12s", path,
			v.SHA256, got)
	}
	if int32(v.End) != d.end || int32(v.Begin) != d.begin {
		return nil, fault.Field(
			field,
			"documents of %s begin and end with ids %d and %d, those of the run with %d and %d",
			path,
			v.Begin,
			v.End,
			d.begin,
			d.end,
		)
	}
	return data, nil
}

// hold adds documents from one on to the validation set.
func (p *packed) hold(data *corpus.Data, from int64, m *Manifest) error {
	held, err := corpus.NewPacking(data, from, data.Documents(), m.SequenceLen, m.Data.Packing)
	if err == nil {
		p.validation = append(p.validation, held)
	}
	return err
}

// sequence returns a sample of the mixture. Its number is that of the sequence in the run.
func (p *packed) sequence(step uint64, slot, s int) (*sequence, error) {
	at := p.place(step, slot, s)
	sample, err := p.parts[at.Part].Sample(at.Sample)
	if err != nil {
		return nil, err
	}
	return &sequence{Sample: *sample, name: fmt.Sprintf("%d/%d/%d", at.Part, at.Epoch, at.Sample)}, nil
}

func (p *packed) held() int64 {
	var n int64
	for _, v := range p.validation {
		n += v.Samples()
	}
	return n
}

func (p *packed) heldSequence(i int64) (*sequence, error) {
	for _, v := range p.validation {
		if i < v.Samples() {
			sample, err := v.Sample(i)
			if err != nil {
				return nil, err
			}
			return &sequence{Sample: *sample}, nil
		}
		i -= v.Samples()
	}
	return nil, fault.New(fault.Internal, "read validation sequence %d beyond the end", i)
}

func (p *packed) close() error {
	var errs []error
	for _, d := range p.open {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
