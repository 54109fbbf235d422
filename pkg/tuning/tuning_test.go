package tuning_test

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/tuning"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

func qwen(t testing.TB) *vocab.Vocab {
	t.Helper()
	v, err := vocab.FromHF(shared(t, "vectors/tokenizer/qwen3-hf"))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func renderer(t testing.TB, c tuning.Config) *tuning.Renderer {
	t.Helper()
	r, err := tuning.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sampleOf(t *testing.T, r *tuning.Renderer, row string) *tuning.Sample {
	t.Helper()
	c, err := tuning.ParseRow(1, []byte(row), tuning.FormatAuto)
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Render(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// trained returns the text of the trained ids.
func trained(t *testing.T, v *vocab.Vocab, s *tuning.Sample) string {
	t.Helper()
	text := tuning.Show(v, s, 0, false)
	var out []string
	for _, part := range strings.Split(text, "»")[1:] {
		out = append(out, strings.Split(part, "«")[0])
	}
	return strings.Join(out, "|")
}

const chatML = "{% for m in messages %}" +
	"{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') + '<|im_end|>' + '\n' }}" +
	"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

func TestRenderer_MasksOfTheVectors(t *testing.T) {
	text, err := os.ReadFile(shared(t, "vectors/tuning/masks.json"))
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Plain, Marked string
		Cases         []struct {
			Messages json.RawMessage
			IDs      []int32
			Mask     []int
			Trained  int
		}
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	v := qwen(t)
	for name, template := range map[string]string{"plain": vectors.Plain, "marked": vectors.Marked} {
		r := renderer(t, tuning.Config{Vocab: v, Template: template, ControlText: true,
			Rules: tuning.Rules{KeepOtherPrompts: true}})
		for i, c := range vectors.Cases {
			s := sampleOf(t, r, `{"messages": `+string(c.Messages)+`}`)
			mask := make([]int, len(s.Mask))
			for j, m := range s.Mask {
				if m {
					mask[j] = 1
				}
			}
			if !slices.Equal(s.IDs, c.IDs) || !slices.Equal(mask, c.Mask) || s.Trained() != c.Trained {
				t.Errorf("%s, case %d:\n%v\n%v, want\n%v\n%v", name, i, s.IDs, mask, c.IDs, c.Mask)
			}
		}
	}
}

// The end of a turn is a target, also where the same token pads. A cut sample has no end that it did not reach.
func TestRenderer_EndOfTurnIsTrained(t *testing.T) {
	v := qwen(t)
	end, _ := v.ID("<|im_end|>")
	row := `{"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three four"},
		{"role": "user", "content": "five"}, {"role": "assistant", "content": "six seven eight nine"}]}`
	r := renderer(t, tuning.Config{Vocab: v, Template: chatML})
	s := sampleOf(t, r, row)
	if got := trained(t, v, s); got != "three four<|im_end|>|six seven eight nine<|im_end|>" {
		t.Errorf("trained %q", got)
	}
	ids, targets := s.Targets()
	packed, _, err := tuning.Pack([]*tuning.Sample{s}, len(ids)+5, end)
	if err != nil {
		t.Fatal(err)
	}
	ends := 0
	for i, target := range packed[0].Targets {
		if target == end {
			ends++
		}
		if i >= len(ids) && target != -1 {
			t.Errorf("row %d is padding and has target %d", i, target)
		}
	}
	if ends != 2 || !slices.Equal(packed[0].Targets[:len(targets)], targets) {
		t.Errorf("%d ends of turns are targets, want 2", ends)
	}
	if want := []int{len(ids), 5}; !slices.Equal(packed[0].Documents, want) {
		t.Errorf("documents %v, want %v", packed[0].Documents, want)
	}

	for _, c := range []struct {
		long, want string
		reason     tuning.Reason
	}{
		{tuning.LongRefuse, "", tuning.TooLong},
		{tuning.LongTurns, "three four<|im_end|>", tuning.CutShort},
		{tuning.LongTokens, "three four<|im_end|>|six seven", tuning.CutShort},
	} {
		context := s.Turns[1].From + 2
		r := renderer(t, tuning.Config{Vocab: v, Template: chatML, Rules: tuning.Rules{Context: context, Long: c.long}})
		s := sampleOf(t, r, row)
		_, refused := s.Refused()
		if refused != (c.want == "") || s.Notes[0].Reason != c.reason || !refused && trained(t, v, s) != c.want {
			t.Errorf("%s: %v, trained %q", c.long, s.Notes, trained(t, v, s))
		}
		if last := s.Turns[len(s.Turns)-1]; c.long == tuning.LongTokens && (last.Ended || s.IDs[len(s.IDs)-1] == end) {
			t.Errorf("a cut turn ends: %+v", last)
		}
	}
}

func TestRenderer_FormsOfRows(t *testing.T) {
	v := qwen(t)
	r := renderer(t, tuning.Config{Vocab: v, Template: chatML})
	const user, answer = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>"
	for row, want := range map[string]string{
		`{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}`:               user + "»" + answer,
		`{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}`:                   user + "»" + answer,
		`{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}`:          user + "»" + answer,
		`{"prompt": "q", "completion": "a"}`:                                                                    user + "»" + answer,
		`{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}`: user + "»" + answer,
		`{"instruction": "q", "input": "", "output": "a"}`:                                                      user + "»" + answer,
		`{"instruction": "q", "context": null, "response": "a", "category": "x"}`:                               user + "»" + answer,
		`{"instruction": "q", "input": "i", "output": "a"}`:                                                     strings.Replace(user, "q", "q\n\ni", 1) + "»" + answer,
		`{"system": "s", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}`: "<|im_start|>system\ns<|im_end|>\n" +
			user + "»" + answer,
	} {
		s := sampleOf(t, r, row)
		if got := tuning.Show(v, s, 0, false); got != want+"«\n" {
			t.Errorf("%s: %q, want %q", row, got, want)
		}
	}
	raw := renderer(t, tuning.Config{Vocab: v})
	for row, want := range map[string]string{
		`{"prompt": "2+2=", "completion": "4"}`: "2+2=»4<|im_end|>«",
		`{"text": "all of it"}`:                 "»all of it<|im_end|>«",
	} {
		if got := tuning.Show(v, sampleOf(t, raw, row), 0, false); got != want {
			t.Errorf("%s: %q, want %q", row, got, want)
		}
	}
	s := sampleOf(t, raw, `{"ids": [5, 6, 7, 8], "trained_from": 2}`)
	if s.Trained() != 2 || s.Mask[1] || !s.Mask[2] {
		t.Errorf("ids: %v", s.Mask)
	}
	if s := sampleOf(t, raw, `{"ids": [5, 6, 7], "mask": [1, 0, 1]}`); s.Trained() != 1 || !s.Mask[2] {
		t.Errorf("ids with a mask: %v", s.Mask)
	}
}

func TestRenderer_WeightZeroIsContext(t *testing.T) {
	v := qwen(t)
	marked := strings.Replace(chatML, "(m['content'] or '') + '<|im_end|>'", "''", 1)
	marked = strings.Replace(marked, "+ '\n' }}{% endfor %}", "}}{% if m['role'] == 'assistant' %}{% generation %}"+
		"{{ m['content'] }}<|im_end|>{% endgeneration %}"+
		"{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}", 1)
	// Some templates end their generation blocks before the end of the turn; it is trained all the same.
	early := strings.Replace(marked, "<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>", 1)
	for name, template := range map[string]string{"plain": chatML, "marked": marked, "early": early} {
		r := renderer(t, tuning.Config{Vocab: v, Template: template})
		s := sampleOf(
			t,
			r,
			`{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0},
			{"role": "user", "content": "r"}, {"role": "assistant", "content": "b", "weight": 1},
			{"role": "user", "content": "t"}, {"role": "assistant", "content": "c", "train": false}]}`,
		)
		if got := trained(t, v, s); got != "b<|im_end|>" || len(s.Notes) > 0 {
			t.Errorf("%s: trained %q, %v", name, got, s.Notes)
		}
		s = sampleOf(
			t,
			r,
			`{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}`,
		)
		if n, refused := s.Refused(); !refused || n.Reason != tuning.TrainsNothing {
			t.Errorf("%s: %v", name, s.Notes)
		}
	}
}

// With the model's own template: reasoning of earlier turns is left out in service, and tool calls are trained.
func TestRenderer_ToolsAndReasoning(t *testing.T) {
	v := qwen(t)
	text, err := os.ReadFile(filepath.Join(shared(t, "vectors/tokenizer/qwen3-hf"), "tokenizer_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Template string `json:"chat_template"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	r := renderer(t, tuning.Config{Vocab: v, Template: config.Template})
	s := sampleOf(t, r, `{"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "messages": [
		{"role": "user", "content": "q"},
		{"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
			{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
		{"role": "tool", "content": "7"},
		{"role": "assistant", "reasoning_content": "so", "content": "seven"}]}`)
	want := "<think>\nhm\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call><|im_end|>|" +
		"<think>\nso\n</think>\n\nseven<|im_end|>"
	if got := trained(t, v, s); got != want {
		t.Errorf("trained %q, want %q; %v", got, want, s.Notes)
	}
	// The template leaves out the reasoning of earlier turns, so their prompts are not those of service.
	row := `{"messages": [{"role": "user", "content": "q"},
		{"role": "assistant", "reasoning_content": "hm", "content": "a"}, {"role": "user", "content": "r"},
		{"role": "assistant", "reasoning_content": "so", "content": "b"}]}`
	last := "<think>\nso\n</think>\n\nb<|im_end|>"
	if s = sampleOf(t, r, row); trained(t, v, s) != last || s.Notes[0].Reason != tuning.OtherPrompt {
		t.Errorf("trained %q; %v", trained(t, v, s), s.Notes)
	}
	keep := renderer(t, tuning.Config{Vocab: v, Template: config.Template, Rules: tuning.Rules{KeepOtherPrompts: true}})
	if got := trained(t, v, sampleOf(t, keep, row)); got != "a<|im_end|>|"+last {
		t.Errorf("kept %q", got)
	}
}

// A template that writes something else than the prompt in service: the turn is left out, and said so.
func TestRenderer_PromptsAsInService(t *testing.T) {
	v := qwen(t)
	other := strings.Replace(chatML, "assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}", 1)
	row := `{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}`
	s := sampleOf(t, renderer(t, tuning.Config{Vocab: v, Template: other}), row)
	n, refused := s.Refused()
	if !refused || n.Reason != tuning.TrainsNothing || s.Notes[0].Reason != tuning.OtherPrompt {
		t.Errorf("%v", s.Notes)
	}
	keep := tuning.Config{Vocab: v, Template: other, Rules: tuning.Rules{KeepOtherPrompts: true}}
	if got := trained(t, v, sampleOf(t, renderer(t, keep), row)); got != "a<|im_end|>" {
		t.Errorf("kept %q", got)
	}
	// A token over the border of prompt and answer is another one in service.
	border := `{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\n\na"}]}`
	s = sampleOf(t, renderer(t, tuning.Config{Vocab: v, Template: chatML}), border)
	if _, refused := s.Refused(); !refused {
		t.Errorf("%q is trained", trained(t, v, s))
	}
	// Text of messages is never a control token.
	s = sampleOf(t, renderer(t, tuning.Config{Vocab: v, Template: chatML}),
		`{"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "<|im_end|>x"}]}`)
	end, _ := v.ID("<|im_end|>")
	count := 0
	for _, id := range s.IDs {
		if id == end {
			count++
		}
	}
	if count != 2 || !strings.HasSuffix(trained(t, v, s), "x<|im_end|>") {
		t.Errorf("%d control tokens, trained %q", count, trained(t, v, s))
	}
}

func TestParseRow_ErrorsNameTheField(t *testing.T) {
	for row, want := range map[string]string{
		`[]`:                               "line 7",
		`{"x": 1}`:                         "unknown form",
		`{"messages": 5}`:                  "messages: want a list",
		`{"messages": []}`:                 "at least one",
		`{"messages": [5]}`:                "messages[0]",
		`{"messages": [{"content": "x"}]}`: "messages[0].role",
		`{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}`: "messages[0].weight",
		`{"conversations": [{"from": "x", "value": "y"}]}`:                     "conversations[0].from",
		`{"conversations": [{"from": "gpt", "value": 1}]}`:                     "conversations[0].value",
		`{"prompt": 1, "completion": "x"}`:                                     "prompt",
		`{"instruction": "x", "output": 3}`:                                    "output",
		`{"ids": [1, -2]}`:                                                     "element 1",
		`{"ids": [1, 2], "trained_from": 3}`:                                   "trained_from",
		`{"ids": [1, 2], "mask": [1]}`:                                         "mask",
		`{"tools": 5, "messages": [{"role": "user", "content": "x"}]}`:         "tools",
	} {
		_, err := tuning.ParseRow(7, []byte(row), "")
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "line 7") {
			t.Errorf("%s: %v, want %q", row, err, want)
		}
	}
}

func TestParsePreference_Forms(t *testing.T) {
	v := qwen(t)
	r := renderer(t, tuning.Config{Vocab: v, Template: chatML})
	for _, row := range []string{
		`{"prompt": "q", "chosen": "yes", "rejected": "no"}`,
		`{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "yes"}],
			"rejected": [{"role": "assistant", "content": "no"}]}`,
		`{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}],
			"rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}]}`,
	} {
		p, err := tuning.ParsePreference(1, []byte(row))
		if err != nil {
			t.Fatal(err)
		}
		pair, err := r.RenderPair(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		a, b := trained(t, v, pair.Chosen), trained(t, v, pair.Rejected)
		if a != "yes<|im_end|>" || b != "no<|im_end|>" {
			t.Errorf("%s: %q and %q", row, a, b)
		}
	}
	if _, err := tuning.ParsePreference(3, []byte(`{"prompt": "q", "chosen": "x"}`)); err == nil ||
		!strings.Contains(err.Error(), "rejected") {
		t.Errorf("%v", err)
	}
}

func TestDPO_LossAndSlope(t *testing.T) {
	for _, smoothing := range []float64{0, 0.1, 0.4} {
		for _, margin := range []float64{-800, -3, -0.1, 0, 0.5, 7, 900} {
			loss, slope := tuning.DPO(margin, smoothing)
			const h = 1e-5
			up, _ := tuning.DPO(margin+h, smoothing)
			down, _ := tuning.DPO(margin-h, smoothing)
			if d := (up - down) / (2 * h); math.Abs(d-slope) > 1e-6 || math.IsNaN(loss) || math.IsInf(loss, 0) {
				t.Errorf("margin %v, smoothing %v: loss %v, slope %v, want %v", margin, smoothing, loss, slope, d)
			}
		}
	}
}

func TestReport_CountsAndListsLines(t *testing.T) {
	v := qwen(t)
	r := renderer(t, tuning.Config{Vocab: v, Template: chatML, Rules: tuning.Rules{Context: 20}})
	report := tuning.NewReport()
	for _, row := range []string{`{"prompt": "q", "completion": "a"}`,
		`{"prompt": "q", "completion": "a b c d e f g h i j k l m n o p q r s t u v w x y z"}`,
		`{"messages": [{"role": "user", "content": "q"}]}`} {
		report.Add(sampleOf(t, r, row))
	}
	_, err := tuning.ParseRow(9, []byte(`{`), "")
	report.Unreadable(9, err)
	if report.Samples != 1 || report.Refused != 3 || report.Reasons[tuning.TooLong] != 1 ||
		report.Reasons[tuning.TrainsNothing] != 1 || report.Reasons[tuning.Unreadable] != 1 {
		t.Errorf("%+v", report)
	}
	if text := report.String(); !strings.Contains(text, "unreadable: 1 (line 9)\n  read line 9: parse JSON: ") {
		t.Error(text)
	}
	report.Unreadable(10, errors.New(strings.Repeat("é", 1000)))
	if text := report.String(); !strings.Contains(text, "unreadable: 2 (line 9, 10)\n  read line 9: ") {
		t.Errorf("not the first line's reason: %s", text)
	}
	long := tuning.NewReport()
	long.Unreadable(1, errors.New("x"+strings.Repeat("é", 1000)))
	if text := long.String(); len(text) > 500 || !utf8.ValidString(text) {
		t.Errorf("a reason of 2,001 bytes is shown in %d: %q", len(text), text)
	}
}

func TestDPOPair_SlopesAreDerivatives(t *testing.T) {
	policy, reference := tuning.Sums{Chosen: -7, Rejected: -5}, tuning.Sums{Chosen: -6.5, Rejected: -6}
	const h, beta, smoothing = 1e-6, 0.3, 0.1
	got := tuning.DPOPair(policy, reference, beta, smoothing)
	if want := beta * (-0.5 - 1); math.Abs(got.Margin-want) > 1e-12 {
		t.Errorf("margin %v, want %v", got.Margin, want)
	}
	for name, c := range map[string]struct {
		by    tuning.Sums
		slope float64
	}{"chosen": {tuning.Sums{Chosen: h}, got.Slopes.Chosen}, "rejected": {tuning.Sums{Rejected: h}, got.Slopes.Rejected}} {
		at := func(f float64) float64 {
			return tuning.DPOPair(tuning.Sums{Chosen: policy.Chosen + f*c.by.Chosen,
				Rejected: policy.Rejected + f*c.by.Rejected}, reference, beta, smoothing).Loss
		}
		if want := (at(1) - at(-1)) / (2 * h); math.Abs(c.slope-want) > 1e-7 {
			t.Errorf("slope of %s %v, want %v", name, c.slope, want)
		}
	}
}

func TestParsePreference_EncodedAnswers(t *testing.T) {
	p, err := tuning.ParsePreference(4, []byte(
		`{"chosen": {"ids": [1, 2, 3], "mask": [0, 0, 1]}, "rejected": {"ids": [1, 4], "trained_from": 1}}`))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Chosen.Mask, []bool{false, false, true}) || !slices.Equal(p.Rejected.IDs, []int32{1, 4}) ||
		p.Chosen.Line != 4 {
		t.Errorf("%+v, %+v", p.Chosen, p.Rejected)
	}
	if _, err := tuning.ParsePreference(4, []byte(`{"chosen": {"ids": [1, 2]}, "rejected": {"role": "user"}}`)); err == nil {
		t.Error("half a pair")
	}
}

func TestReport_CountsPairsAsRows(t *testing.T) {
	r := renderer(t, tuning.Config{})
	report := tuning.NewReport()
	for line, row := range []string{
		`{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}`,
		`{"prompt_ids": [1, 2], "chosen_ids": [3, 3, 3, 3], "rejected_ids": [4, 5]}`,
		`{"prompt_ids": [1, 2], "chosen_ids": [], "rejected_ids": [4, 5]}`,
	} {
		p, err := tuning.ParsePreference(line+1, []byte(row))
		if err != nil {
			t.Fatal(err)
		}
		pair, err := r.Pair(t.Context(), p, 6)
		if err != nil {
			t.Fatal(err)
		}
		if got := report.AddPair(pair); got != (line == 0) {
			t.Errorf("line %d is trained: %v", line+1, got)
		}
	}
	if report.Samples != 1 || report.Refused != 2 || report.Trained != 3 || report.Tokens != 7 || report.Longest != 7 ||
		report.Reasons[tuning.TooLong] != 1 || report.Reasons[tuning.TrainsNothing] != 1 {
		t.Errorf("%+v", report)
	}
}

// FuzzRow reads arbitrary rows. A row gives a sample whose mask fits its ids, or a typed error.
func FuzzRow(f *testing.F) {
	for _, row := range []string{
		`{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}`,
		`{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{\"name\":\"f\",\"arguments\":{}}"}]}`,
		`{"prompt": "q", "completion": "a"}`, `{"ids": [1, 2], "mask": [0, 1]}`, `{"text": "x"}`,
	} {
		f.Add([]byte(row))
	}
	v, err := vocab.NewChar("<|im_startend>uraq{}:\", \n")
	if err != nil {
		f.Fatal(err)
	}
	r := renderer(f, tuning.Config{Vocab: v, Template: chatML,
		Rules: tuning.Rules{Context: 64, Long: tuning.LongTurns}})
	f.Fuzz(func(t *testing.T, row []byte) {
		if p, err := tuning.ParsePreference(1, row); err == nil && (p.Chosen == nil || p.Rejected == nil) {
			t.Error("half a pair")
		}
		c, err := tuning.ParseRow(1, row, "")
		if err != nil {
			return
		}
		s, err := r.Render(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		_, refused := s.Refused()
		if len(s.IDs) != len(s.Mask) || !refused && (s.Trained() == 0 || len(s.IDs) > 64) {
			t.Errorf("%d ids, mask of %d, %d trained, %v", len(s.IDs), len(s.Mask), s.Trained(), s.Notes)
		}
	})
}
