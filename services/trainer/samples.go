package trainer

import (
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// Samples are texts that the model continues while it is trained, in samples.jsonl. The stages of the first
// chain compute them from the current weights, so they are the same on every layout.
type Samples struct {
	Every       int      `json:"every"`       // steps; 0 for none
	Prompts     []string `json:"prompts"`     // at most 64
	Tokens      int      `json:"tokens"`      // to add; 64 when absent
	Temperature float64  `json:"temperature"` // 0 (default) takes the most likely token
}

const (
	maxPrompts      = 64
	maxSampleTokens = 4096
)

// check checks the settings and sets defaults.
func (s *Samples) check() error {
	if s.Tokens == 0 {
		s.Tokens = 64
	}
	switch {
	case s.Every < 0:
		return fault.Field("samples.every", "%d is negative", s.Every)
	case len(s.Prompts) > maxPrompts || s.Every > 0 && len(s.Prompts) == 0:
		return fault.Field("samples.prompts", "%d prompts: want 1 to %d", len(s.Prompts), maxPrompts)
	case s.Tokens < 1 || s.Tokens > maxSampleTokens:
		return fault.Field("samples.tokens", "%d is not within 1..%d", s.Tokens, maxSampleTokens)
	case !(s.Temperature >= 0 && s.Temperature <= 100):
		return fault.Field("samples.temperature", "%v is not within 0..100", s.Temperature)
	}
	return nil
}

// sampleLine is a line of samples.jsonl.
type sampleLine struct {
	Step   uint64 `json:"step"`
	Prompt string `json:"prompt"`
	Text   string `json:"text"`
}

// encodePrompts returns the ids of the prompts, behind the id that begins a document.
func encodePrompts(d *dataset, prompts []string) ([][]int32, error) {
	var out [][]int32
	for i, prompt := range prompts {
		var ids []int32
		if d.begin >= 0 {
			ids = append(ids, d.begin)
		}
		text, err := d.vocab.Encode(prompt, vocab.Options{})
		if err != nil {
			return nil, fault.Field(fmt.Sprintf("samples.prompts[%d]", i), "%v", err)
		}
		if ids = append(ids, text...); len(ids) == 0 {
			return nil, fault.Field(fmt.Sprintf("samples.prompts[%d]", i), "want some text")
		}
		out = append(out, ids)
	}
	return out, nil
}

// sample generates the texts of a step and writes them.
func (t *training) sample(f *fleet, step uint64) error {
	m := t.run.manifest
	set := &m.Samples
	logs := make([][]int32, len(t.prompts)) // prompts and what was added
	ended := make([]bool, len(t.prompts))
	for i, ids := range t.prompts {
		logs[i] = append(logs[i], ids...)
	}
	for position := range set.Tokens {
		next, err := t.pick(f, step, position, logs)
		if err != nil {
			return err
		}
		for i, id := range next {
			if ended[i] = ended[i] || id == t.data.end; !ended[i] {
				logs[i] = append(logs[i], id)
			}
		}
	}
	var texts []*trainerv1.SampleText
	for i, ids := range logs {
		text, err := t.data.vocab.Decode(ids[len(t.prompts[i]):], vocab.DecodeOptions{Prefix: t.prompts[i]})
		if err != nil {
			return fault.Wrap(fault.Internal, err, "decode the sample texts of step %d", step)
		}
		if err := t.samples.write(sampleLine{step, set.Prompts[i], text}); err != nil {
			return err
		}
		texts = append(texts, &trainerv1.SampleText{Step: step, Prompt: set.Prompts[i], Text: text})
	}
	t.run.update(func(s *trainerv1.Run) { s.Samples = texts })
	return nil
}

// pick runs the logs, as far as they fit into a sequence, forward and returns the next token of each.
func (t *training) pick(f *fleet, step uint64, position int, logs [][]int32) ([]int32, error) {
	m := t.run.manifest
	length := 1
	for _, ids := range logs {
		length = max(length, min(len(ids), m.SequenceLen))
	}
	s := &shardv1.Step{Step: step, Attempt: f.attempt, Targets: 1, ForwardOnly: true, Length: uint32(length)}
	var data []*micro
	for from := 0; from < len(logs); from += m.SlotSequences {
		slot := &micro{Microbatch: &shardv1.Microbatch{Step: step, Slot: uint32(len(data)), Length: uint32(length)}}
		for i := from; i < min(from+m.SlotSequences, len(logs)); i++ {
			ids := logs[i][max(0, len(logs[i])-length):]
			key := mix(mix(mix(mix(m.Seed^0x73616d706c65)+step)+uint64(i)) + uint64(position))
			slot.Picks = append(slot.Picks, &shardv1.Pick{
				Row: slot.GetSequences()*uint32(length) + uint32(len(ids)-1), Temperature: m.Samples.Temperature,
				Draw: float64(key>>11) / (1 << 53)})
			for k := range length { // rows behind the last token change nothing before them
				id := uint32(0)
				if k < len(ids) {
					id = uint32(ids[k])
				}
				slot.Ids, slot.Targets = append(slot.Ids, id), append(slot.Targets, -1)
			}
			if m.Data.Isolate {
				slot.Documents = append(slot.Documents, uint32(length))
			}
			slot.Sequences++
		}
		s.Slots = append(s.Slots, uint32(len(data)))
		data = append(data, slot)
	}
	var out []int32
	err := f.first(func(c *chain) (err error) {
		var g errgroup.Group
		g.Go(func() error { return f.feed(c.ctx, c, s, data) })
		out, err = t.picked(f, c, data, m.SlotSequences)
		return firstOf(err, g.Wait())
	})
	return out, err
}

// picked reads the tokens of all slots.
func (t *training) picked(f *fleet, c *chain, data []*micro, sequences int) ([]int32, error) {
	out := make([]int32, 0, len(data)*sequences)
	for slot, m := range data { // the last stage answers in the order of slots
		r, err := f.reply(c.stages[len(c.stages)-1])
		if err != nil {
			return nil, err
		}
		p := r.GetPicked()
		if p == nil || int(p.GetSlot()) != slot || len(p.GetIds()) != len(m.GetPicks()) {
			return nil, fault.New(fault.Internal, "generate samples: the last stage answered with %T", r.GetFrame())
		}
		for _, id := range p.GetIds() {
			if int(id) >= t.data.vocab.Size() { // a padded row of the head
				id = 0
			}
			out = append(out, int32(id))
		}
	}
	return out, nil
}
