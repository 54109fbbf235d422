package trainer

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// texts is the text of a run as token ids. Sequences are windows of it.
type texts struct {
	train      []int32
	validation []int32
	seed       uint64
	length     int // tokens in a sequence
}

// readTexts reads the texts of the manifest, builds the vocabulary unless v is one, and encodes the texts.
func readTexts(ctx context.Context, m *Manifest, v *vocab.Vocab) (*dataset, error) {
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
	var err error
	d := &dataset{length: m.SequenceLen, vocab: v}
	for _, path := range m.Data.Validation {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "read data.validation")
		}
		if !utf8.Valid(raw) {
			return nil, fault.Field("data.validation", "%s is not UTF-8", path)
		}
		held = append(held, string(raw))
	}
	switch {
	case v != nil:
	case m.Vocabulary.Type == "char":
		d.vocab, err = vocab.NewChar(strings.Join(train, "") + strings.Join(held, ""))
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
		d.vocab, err = vocab.TrainBPE(ctx, lines, m.Vocabulary.Size,
			vocab.TrainOptions{Special: []string{endOfText}, BOS: endOfText, EOS: endOfText})
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "build the vocabulary")
	}
	c := &texts{seed: m.Seed, length: m.SequenceLen}
	if c.train, err = encodeTexts(d.vocab, train); err != nil {
		return nil, err
	}
	if c.validation, err = encodeTexts(d.vocab, held); err != nil {
		return nil, err
	}
	if len(c.train) < m.SequenceLen+2 {
		return nil, fault.Field("data.text", "want at least the %[2]d tokens of a sequence, got %[1]d", len(c.train),
			m.SequenceLen)
	}
	d.source, d.tokens, d.heldTokens = c, len(c.train), len(c.validation)
	d.about = fmt.Sprintf("%d tokens of text, %d for validation", len(c.train), len(c.validation))
	if bos, ok := d.vocab.BOS(); ok {
		d.begin, d.end = bos, bos
	} else {
		d.begin, d.end = -1, -1
	}
	return d, nil
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

func encodeTexts(v *vocab.Vocab, texts []string) ([]int32, error) {
	var out []int32
	bos, separate := v.BOS()
	for _, text := range texts {
		if text == "" {
			continue
		}
		ids, err := v.Encode(text, vocab.Options{})
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

// sequence returns a window at an offset that depends on (seed, step, slot, sequence).
func (c *texts) sequence(step uint64, slot, sequence int) (*sequence, error) {
	key := mix(mix(mix(mix(c.seed^0x6c616d696e61)+step)+uint64(slot)) + uint64(sequence))
	at := int(key % uint64(len(c.train)-c.length))
	out := c.window(c.train, at)
	out.name = strconv.Itoa(at)
	return out, nil
}

// window returns the sequence at an offset. Its targets are the next tokens.
func (c *texts) window(text []int32, at int) *sequence {
	return &sequence{Sample: corpus.Sample{IDs: text[at : at+c.length], Targets: text[at+1 : at+c.length+1],
		Documents: []int{c.length}}}
}

// held counts the windows of the validation text that do not overlap.
func (c *texts) held() int64 { return int64(max(0, len(c.validation)-1) / c.length) }

// heldSequence returns a window of the validation text.
func (c *texts) heldSequence(i int64) (*sequence, error) {
	return c.window(c.validation, int(i)*c.length), nil
}

func (c *texts) close() error { return nil }

// mix applies SplitMix64's finalizer.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
