package tuning

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// turns finds the turns of a sample.
type turns struct {
	*Renderer
	ctx   context.Context
	c     *Conversation
	s     *Sample
	whole template.Result
}

// noteControls notes control tokens that stand in the text of messages: in service they are text.
func (t *turns) noteControls() {
	for i, id := range t.s.IDs {
		if t.isData(t.s.Spans[i]) && t.kind(id) == vocab.KindControl {
			spelling, _ := t.vocab.Spelling(id)
			t.s.note(-1, ControlText, false, "%q is text in service", spelling)
			return
		}
	}
}

// isData reports whether bytes of the text came from a message.
func (t *turns) isData(span [2]int) bool {
	if span[0] == span[1] {
		return false
	}
	for _, d := range t.whole.Data {
		if d[0] < span[1] && d[1] > span[0] {
			return true
		}
	}
	return false
}

// assistants lists the messages of the assistant.
func (t *turns) assistants() []int {
	var out []int
	for i, m := range t.c.Messages {
		if m.Role == roleAssistant {
			out = append(out, i)
		}
	}
	return out
}

// generated takes the turns from the generation blocks of the template. If the end-of-turn token comes right
// behind a block, it is trained, too.
func (t *turns) generated() error {
	blocks := t.whole.Generated
	messages := t.assistants()
	if len(messages) != len(blocks) {
		if slices.ContainsFunc(messages, func(i int) bool { return !t.c.Messages[i].Train }) {
			return fmt.Errorf(
				"the template has %d generation blocks for %d messages of the assistant, so it is not clear "+
					"which of them have weight 0",
				len(blocks),
				len(messages),
			)
		}
		messages = slices.Repeat([]int{-1}, len(blocks))
	}
	for i, b := range blocks {
		m := messages[i]
		if m >= 0 && !t.c.Messages[m].Train {
			continue
		}
		from, to := b[0], b[1]
		last, ended := t.lastWithin(from, to)
		if next := last + 1; !ended && next < len(t.s.IDs) && t.s.Spans[next][0] == to && t.ends[t.s.IDs[next]] &&
			!t.isData(t.s.Spans[next]) {
			to, ended = t.s.Spans[next][1], true
		}
		if m >= 0 {
			at, ok, err := t.begin(m)
			if err != nil {
				return err
			}
			if !ok || at != from {
				t.s.note(m, OtherPrompt, false, "the generation block does not begin where the prompt ends in service")
				if !t.rules.KeepOtherPrompts {
					continue
				}
			}
		}
		if err := t.add(m, from, to, ended); err != nil {
			return err
		}
	}
	return nil
}

// lastWithin returns the last id whose bytes overlap [from, to), and whether it ends a turn.
func (t *turns) lastWithin(from, to int) (last int, ended bool) {
	last = -1
	for i, span := range t.s.Spans {
		if span[0] < to && span[1] > from {
			last = i
		}
	}
	return last, last >= 0 && t.ends[t.s.IDs[last]] && !t.isData(t.s.Spans[last])
}

// prefixes finds the turns by rendering the conversation up to each message of the assistant.
func (t *turns) prefixes() error {
	for _, i := range t.assistants() {
		if !t.c.Messages[i].Train {
			continue
		}
		from, ok, err := t.begin(i)
		if err != nil {
			return err
		}
		if !ok {
			t.s.note(i, OtherPrompt, false, "the template writes the messages before it differently in service")
			continue
		}
		after := t.whole
		if i+1 < len(t.c.Messages) {
			if after, err = t.write(t.ctx, t.c, i+1, false); err != nil {
				return err
			}
		}
		to, ended, ok := t.end(after, from)
		if !ok {
			t.s.note(i, OtherPrompt, false, "the template writes the message differently once others follow")
			if to, ended = t.firstEnd(from); !t.rules.KeepOtherPrompts || !ended {
				continue
			}
		}
		if err := t.add(i, from, to, ended); err != nil {
			return err
		}
	}
	return nil
}

// begin returns the byte at which message i begins to be generated: the end of the prompt of the messages
// before it. ok is false if the text of the sample does not begin with them.
func (t *turns) begin(i int) (at int, ok bool, err error) {
	prompt, err := t.write(t.ctx, t.c, i, true)
	if err != nil && i == 0 { // many templates refuse an empty conversation
		return t.beginFirst()
	}
	if err != nil {
		return 0, false, err
	}
	if strings.HasPrefix(t.whole.Text, prompt.Text) {
		return len(prompt.Text), true, nil
	}
	if !t.rules.KeepOtherPrompts {
		return 0, false, nil
	}
	// The generation prompt may open something that a finished turn does not have, such as reasoning.
	before, err := t.write(t.ctx, t.c, i, false)
	if err != nil {
		return 0, false, err
	}
	at = common(t.whole.Text, prompt.Text)
	return at, at > len(before.Text), nil
}

// beginFirst finds where the first message begins to be generated if nothing is before it: behind the
// generation prompt, which a conversation of one message of the user shows.
func (t *turns) beginFirst() (at int, ok bool, err error) {
	probe := &Conversation{Messages: []Message{made(roleUser, "x", false)}, Tools: t.c.Tools, Variables: t.c.Variables}
	without, err := t.write(t.ctx, probe, 1, false)
	if err != nil {
		return 0, false, err
	}
	with, err := t.write(t.ctx, probe, 1, true)
	if err != nil {
		return 0, false, err
	}
	opening, found := strings.CutPrefix(with.Text, without.Text)
	if !found || opening == "" {
		return 0, false, nil
	}
	at = strings.Index(t.whole.Text, opening)
	return at + len(opening), at >= 0, nil
}

// end returns the end of a turn that begins at a byte: behind the first id that ends a turn after the last
// text of its messages. after is the rendering up to the message. ok is false if the sample has the message in
// another form.
func (t *turns) end(after template.Result, from int) (to int, ended, ok bool) {
	same := common(t.whole.Text, after.Text)
	last := from // the end of the message's own text
	for _, d := range after.Data {
		last = max(last, d[1])
	}
	if same < last {
		return 0, false, false
	}
	// The template may end the last turn of a conversation differently, so the id may begin where the
	// renderings part.
	to = same
	control := 0
	for i, id := range t.s.IDs {
		span := t.s.Spans[i]
		if span[0] < last || span[0] > same || span[0] == span[1] || t.isData(span) {
			continue
		}
		if t.ends[id] {
			return span[1], true, true
		}
		if span[0] < same && t.kind(id) == vocab.KindControl {
			control = span[1]
		}
	}
	if control > 0 {
		return control, true, true
	}
	return from + len(strings.TrimRight(t.whole.Text[from:to], " \t\r\n")), false, true
}

// firstEnd returns the end of the first id after a byte that ends a turn.
func (t *turns) firstEnd(from int) (to int, ok bool) {
	for i, id := range t.s.IDs {
		if span := t.s.Spans[i]; span[0] >= from && t.ends[id] && !t.isData(span) {
			return span[1], true
		}
	}
	return 0, false
}

// add marks a turn as trained, unless its prompt has other ids in service.
func (t *turns) add(message, from, to int, ended bool) error {
	if from >= to {
		return nil
	}
	lo := slices.IndexFunc(t.s.Spans, func(span [2]int) bool { return span[0] < to && span[1] > from })
	if lo < 0 {
		return nil
	}
	same, err := t.sameInService(lo, from)
	if err != nil {
		return err
	}
	if !same {
		t.s.note(message, OtherPrompt, false, "the prompt has other ids before the answer")
		if !t.rules.KeepOtherPrompts {
			return nil
		}
	}
	if !ended {
		t.s.note(message, NoEndOfTurn, false, "the model does not learn to stop here")
	}
	lo, hi := t.cover(t.s, from, to)
	t.s.Turns = append(t.s.Turns, Turn{From: lo, To: hi, Message: message, Ended: ended})
	return nil
}

// sameInService reports whether the text up to a byte, encoded alone as a prompt in service, gives the ids
// before index lo.
func (t *turns) sameInService(lo, from int) (bool, error) {
	part := template.Result{Text: t.whole.Text[:from]}
	for _, d := range t.whole.Data {
		if d[0] < from {
			part.Data = append(part.Data, [2]int{d[0], min(d[1], from)})
		}
	}
	enc, err := t.encode(part)
	if err != nil {
		return false, err
	}
	return slices.Equal(enc.IDs, t.s.IDs[:lo]), nil
}

// common returns the length of the longest common beginning of two texts, which does not divide a character.
func common(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	for n > 0 && n < len(a) && a[n]&0xc0 == 0x80 {
		n--
	}
	return n
}
