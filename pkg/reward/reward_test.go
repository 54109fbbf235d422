package reward_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/reward"
)

// score compiles rules from JSON and scores a text.
func score(t *testing.T, rules, text, answer string) float64 {
	t.Helper()
	var list []reward.Rule
	if err := json.Unmarshal([]byte(rules), &list); err != nil {
		t.Fatal(err)
	}
	r, err := reward.Compile(list, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Score(t.Context(), reward.Sample{Text: text, Answer: answer})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestReward_Scores(t *testing.T) {
	for _, c := range []struct {
		rules, text, answer string
		want                float64
	}{
		{`[{"exact":true}]`, " 12\n", "12", 1},
		{`[{"exact":true}]`, "12.0", "12", 0},
		{`[{"exact":true}]`, "Yes", "yes", 0},
		{`[{"exact":true,"ignore_case":true}]`, "Yes", "yes", 1},
		{`[{"exact":true,"extract":"answer: (\\w+)"}]`, "answer: a, no, answer: b.", "b", 1},
		{`[{"exact":true,"extract":"\\d+"}]`, "3 and 4", "4", 1},
		{`[{"exact":true,"extract":"\\d+"}]`, "none", "", 0},
		{`[{"number":true}]`, "$1,234.00", "1234", 1},
		{`[{"number":true}]`, "0.1", ".10", 1},
		{`[{"number":true}]`, "-5", "5", 0},
		{`[{"number":true}]`, "1e9", "1000000000", 0},
		{`[{"number":true}]`, "", "", 0},
		{`[{"number":true,"extract":"#### (.*)"}]`, "so\n#### 7.", "7", 1},
		{`[{"regex":"^<a>.*</a>$"}]`, "<a>x</a>", "", 1},
		{`[{"regex":"^<a>.*</a>$"}]`, "<a>x", "", 0},
		{`[{"schema":{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}},"additionalProperties":false}}]`,
			` {"n": 3} `, "", 1},
		{`[{"schema":{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}},"additionalProperties":false}}]`,
			`{"n": 3.5}`, "", 0},
		{`[{"schema":{"type":"integer"}}]`, "", "", 0},
		{`[{"schema":{"type":"integer"}}]`, "12 and more", "", 0},
		{`[{"regex":"a","weight":3},{"regex":"b"}]`, "a", "", 0.75},
		{`[{"regex":"a","weight":3},{"regex":"b"}]`, "ab", "", 1},
	} {
		if got := score(t, c.rules, c.text, c.answer); got != c.want {
			t.Errorf("%s of %q for %q is %g, want %g", c.rules, c.text, c.answer, got, c.want)
		}
	}
}

func TestCompile_ErrorsNameTheField(t *testing.T) {
	for rules, field := range map[string]string{
		`[]`: "reward", `[{}]`: "reward", `[{"exact":true,"number":true}]`: "reward",
		`[{"regex":"("}]`: "reward.regex", `[{"exact":true,"extract":"("}]`: "reward.extract",
		`[{"regex":"a","extract":"b"}]`: "reward.extract", `[{"exact":true,"weight":-1}]`: "reward.weight",
		`[{"command":["true"]}]`: "reward.command",
	} {
		var list []reward.Rule
		if err := json.Unmarshal([]byte(rules), &list); err != nil {
			t.Fatal(err)
		}
		_, err := reward.Compile(list, nil)
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != fault.Invalid || f.Field != field {
			t.Errorf("%s: %v, want field %s", rules, err, field)
		}
	}
	if _, err := reward.Compile([]reward.Rule{{Schema: json.RawMessage(`{"type":"none"}`)}}, nil); fault.CodeOf(err) !=
		fault.Invalid {
		t.Errorf("a schema of an unknown type: %v", err)
	}
}

// runner counts runs.
type runner struct{ runs int }

func (r *runner) Run(_ context.Context, command []string, s reward.Sample) (float64, error) {
	r.runs++
	if command[0] == "broken" {
		return 0, errors.New("no such program")
	}
	return float64(len(s.Text)) / 10, nil
}

func TestReward_CommandsAreRunByTheRunner(t *testing.T) {
	run := &runner{}
	r, err := reward.Compile([]reward.Rule{{Command: []string{"length"}}}, run)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := r.Score(t.Context(), reward.Sample{Text: "12345"}); err != nil || v != 0.5 || run.runs != 1 {
		t.Errorf("%g, %v after %d runs", v, err, run.runs)
	}
	if r, err = reward.Compile([]reward.Rule{{Exact: true}, {Command: []string{"broken"}}}, run); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Score(t.Context(), reward.Sample{}); err == nil {
		t.Error("a program that does not run scores")
	}
}

func FuzzReward(f *testing.F) {
	f.Add("1,2", "12", "#### (.*)")
	f.Fuzz(func(t *testing.T, text, answer, extract string) {
		r, err := reward.Compile([]reward.Rule{{Number: true, Extract: extract}, {Exact: true, Extract: extract},
			{Schema: json.RawMessage(`{"type":["object","array"]}`)}}, nil)
		if err != nil {
			return
		}
		if v, err := r.Score(t.Context(), reward.Sample{Text: text, Answer: answer}); err != nil || v < 0 || v > 1 {
			t.Fatalf("%g, %v", v, err)
		}
	})
}
