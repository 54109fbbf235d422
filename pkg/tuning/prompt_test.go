package tuning_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/tuning"
)

// The prompt that is sampled from is the beginning of the sample that is trained on.
func TestRenderer_PromptIsTheBeginningOfTheSample(t *testing.T) {
	r := renderer(t, tuning.Config{Vocab: qwen(t), Template: chatML})
	for _, row := range []string{`"system": "be brief", "prompt": "what is 3+4?"`,
		`"prompt": [{"role": "user", "content": "hi"}]`} {
		whole := sampleOf(t, r, strings.ReplaceAll(
			`{`+row+`, "completion": COMPLETION}`, "COMPLETION", map[bool]string{true: `[{"role": "assistant", "content": "7"}]`,
				false: `"7"`}[strings.Contains(row, "role")]))
		c, answer, err := tuning.ParsePrompt(3, []byte(`{`+row+`, "answer": "7"}`))
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Prompt(t.Context(), c, answer, 100)
		if err != nil {
			t.Fatal(err)
		}
		if want := whole.IDs[:whole.Turns[0].From]; !slices.Equal(got.IDs, want) || got.Answer != "7" || got.Line != 3 {
			t.Errorf("%s: prompt %v with answer %q, want %v", row, got.IDs, got.Answer, want)
		}
	}
	if got := answerOf(t, `{"prompt": "q", "answer": 42}`); got != "42" {
		t.Errorf("answer %q", got)
	}
}

func answerOf(t *testing.T, row string) string {
	t.Helper()
	_, answer, err := tuning.ParsePrompt(1, []byte(row))
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestParsePrompt_ErrorsNameTheLine(t *testing.T) {
	for _, row := range []string{`{}`, `{"prompt": 3}`, `{"prompt_ids": []}`, `{"prompt_ids": [-1]}`, `{"prompt": []}`, `[`} {
		if _, _, err := tuning.ParsePrompt(7, []byte(row)); err == nil || !strings.Contains(err.Error(), "7") {
			t.Errorf("%s: error %v", row, err)
		}
	}
	c, answer, err := tuning.ParsePrompt(2, []byte(`{"prompt_ids": [1, 2], "prompt": "q"}`))
	if err != nil {
		t.Fatal(err)
	}
	r := renderer(t, tuning.Config{})
	p, err := r.Prompt(t.Context(), c, answer, 2)
	if err != nil || p.Text != "q" || !slices.Equal(p.IDs, []int32{1, 2}) {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := r.Prompt(t.Context(), c, answer, 1); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("error %v", err)
	}
}
