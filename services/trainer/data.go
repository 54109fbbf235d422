package trainer

import (
	"context"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// corpus is the text of a run as token ids.
type corpus struct {
	vocab      *vocab.Vocab
	train      []int32
	validation []int32
	seed       uint64
	length     int // tokens in a sequence
}

// readCorpus reads the texts of the manifest, builds the vocabulary unless v is one, and encodes the texts.
func readCorpus(ctx context.Context, m *Manifest, v *vocab.Vocab) (*corpus, error) {
	var train, held []string
	for _, path := range append([]string{m.Data.Text}, m.Data.More...) {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "read data.text")
		}
		if !utf8.Valid(raw) {
			return nil, fault.Field("data.text", "%s is not UTF-8", path)
		}
		cut := cutAt(string(raw), m.Data.ValidationFraction)
		train, held = append(train, string(raw[:cut])), append(held, string(raw[cut:]))
	}
	c := &corpus{seed: m.Seed, length: m.SequenceLen, vocab: v}
	var err error
	switch {
	case v != nil:
	case m.Vocabulary.Type == "char":
		c.vocab, err = vocab.NewChar(strings.Join(train, "") + strings.Join(held, ""))
	default:
		lines := func(yield func(string) bool) {
			for _, text := range train {
				for line := range strings.Lines(text) {
					if !yield(line) {
						return
					}
				}
			}
		}
		c.vocab, err = vocab.TrainBPE(ctx, lines, m.Vocabulary.Size,
			vocab.TrainOptions{Special: []string{endOfText}, BOS: endOfText, EOS: endOfText})
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "build the vocabulary")
	}
	if c.train, err = c.encode(train); err != nil {
		return nil, err
	}
	if c.validation, err = c.encode(held); err != nil {
		return nil, err
	}
	if len(c.train) < m.SequenceLen+2 {
		return nil, fault.Field("data.text", "want at least the %[2]d tokens of a sequence, got %[1]d", len(c.train),
			m.SequenceLen)
	}
	return c, nil
}

// endOfText separates texts in a bpe vocabulary. Generation starts with it.
const endOfText = "<|endoftext|>"

// cutAt returns the byte at which the last fraction of a text's characters begins.
func cutAt(text string, fraction float64) int {
	keep := int(float64(utf8.RuneCountInString(text)) * (1 - fraction))
	for at := range text {
		if keep == 0 {
			return at
		}
		keep--
	}
	return len(text)
}

func (c *corpus) encode(texts []string) ([]int32, error) {
	var out []int32
	bos, separate := c.vocab.BOS()
	for _, text := range texts {
		if text == "" {
			continue
		}
		ids, err := c.vocab.Encode(text, vocab.Options{})
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "encode data.text")
		}
		if separate {
			out = append(out, bos)
		}
		out = append(out, ids...)
	}
	return out, nil
}

// slot returns the data of one slot of a step: windows at offsets that depend on (seed, step,
// slot, sequence).
func (c *corpus) slot(step uint64, slot, sequences int) *shardv1.Microbatch {
	m := &shardv1.Microbatch{Step: step, Slot: uint32(slot), Sequences: uint32(sequences), Length: uint32(c.length)}
	for s := range sequences {
		key := mix(mix(mix(mix(c.seed^0x6c616d696e61)+step)+uint64(slot)) + uint64(s))
		c.window(m, c.train, int(key%uint64(len(c.train)-c.length)))
	}
	return m
}

// window appends the sequence at an offset and its targets, which are the next tokens.
func (c *corpus) window(m *shardv1.Microbatch, text []int32, at int) {
	for i := range c.length {
		m.Ids = append(m.Ids, uint32(text[at+i]))
		m.Targets = append(m.Targets, text[at+i+1])
	}
}

// evaluation cuts the validation text into windows that do not overlap, grouped into slots.
func (c *corpus) evaluation(step uint64, sequences int) []*shardv1.Microbatch {
	var out []*shardv1.Microbatch
	for at := 0; at+c.length < len(c.validation); at += c.length {
		if n := len(out); n == 0 || int(out[n-1].GetSequences()) == sequences {
			out = append(out, &shardv1.Microbatch{Step: step, Slot: uint32(n), Length: uint32(c.length)})
		}
		last := out[len(out)-1]
		last.Sequences++
		c.window(last, c.validation, at)
	}
	return out
}

// mix applies SplitMix64's finalizer.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
