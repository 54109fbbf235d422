package eval_test

import (
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/eval"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// one parses a task of one line.
func one(t *testing.T, line string) (*eval.Task, eval.Doc) {
	t.Helper()
	task, err := eval.Parse(strings.NewReader(line+"\n"), "")
	if err != nil {
		t.Fatal(err)
	}
	return task, task.Docs[0]
}

func TestParse_FormsOfPublicSets(t *testing.T) {
	arc := eval.Doc{Line: 1, Context: "Question: Why?\nAnswer:", Choices: []string{"a b", "c"}, Gold: 1}
	for line, want := range map[string]struct {
		form string
		doc  eval.Doc
	}{
		`{"id":"1","question":{"stem":"Why?","choices":[{"text":"a b","label":"A"},{"text":"c","label":"B"}]},"answerKey":"B"}`:                   {"arc", arc},
		`{"question":"Why?","choices":{"text":["a b","c"],"label":["1","2"]},"answerKey":"2"}`:                                                    {"arc", arc},
		`{"goal":"Why?","sol1":"a b","sol2":"c","label":1}`:                                                                                       {"piqa", arc},
		`{"sentence_good":"Good.","sentence_bad":"Bad."}`:                                                                                         {"blimp", eval.Doc{Line: 1, Choices: []string{"Good.", "Bad."}}},
		`{"activity_label":"Baking","ctx_a":"Stir. [header] x","ctx_b":"THE dough","endings":[" rises [title] well","[step] falls"],"label":"1"}`: {"hellaswag", eval.Doc{Line: 1, Context: "Baking: Stir. x The dough", Choices: []string{"rises. well", " falls"}, Gold: 1}},
		`{"question":"2+2?","answer":"Two and two.\n#### 4"}`:                                                                                     {"gsm8k", eval.Doc{Line: 1, Context: "Question: 2+2?\nAnswer:", Answer: "Two and two.\n#### 4"}},
		`{"query":"Q","choices":["a","b","c"],"gold":2}`:                                                                                          {"choices", eval.Doc{Line: 1, Context: "Q", Choices: []string{"a", "b", "c"}, Gold: 2}},
		`{"context":"","choices":["a","b"],"answer":"B"}`:                                                                                         {"choices", eval.Doc{Line: 1, Choices: []string{"a", "b"}, Gold: 1}},
		`{"question":"Q","choices":["a","b"],"answer":"b"}`:                                                                                       {"choices", eval.Doc{Line: 1, Context: "Q", Choices: []string{"a", "b"}, Gold: 1}},
		`{"prompt":"P","answer":"x"}`:                                                                                                             {"answer", eval.Doc{Line: 1, Context: "P", Answer: "x"}},
		`{"text":"Some text."}`:                                                                                                                   {"text", eval.Doc{Line: 1, Text: "Some text."}},
	} {
		task, d := one(t, line)
		if task.Form != want.form || !reflect.DeepEqual(d, want.doc) {
			t.Errorf("%s is %s %+v, want %s %+v", line, task.Form, d, want.form, want.doc)
		}
	}
}

func TestParse_ErrorsNameTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "no lines",
		"\n\n":                         "no lines",
		`{"text":"a"}` + "\n{":         "line 2",
		`{"text":"a"}` + "\n\n" + `{}`: "line 3 as text",
		`{"other":1}`:                  "line 1",
		`{"goal":"g","sol1":"a","sol2":"b","label":2}`:                                    "right choice 2 is none of 2",
		`{"goal":"g","sol1":"a","sol2":"b"}`:                                              "missing",
		`{"context":"c","choices":["a"],"gold":0}`:                                        "two choices",
		`{"context":"c","choices":["a","b"]}`:                                             "gold is missing",
		`{"question":"q","choices":{"text":["a","b"],"label":["A","B"]},"answerKey":"C"}`: `answerKey "C"`,
		`{"prompt":1,"answer":"x"}`:                                                       "line 1",
	} {
		_, err := eval.Parse(strings.NewReader(text), "")
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := eval.Parse(strings.NewReader(`{"text":"a"}`), "mmlu"); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("an unknown form: %v", err)
	}
}

func TestTask_PromptHasExamplesBeforeTheDoc(t *testing.T) {
	task, err := eval.Parse(strings.NewReader(`{"query":"Q1","choices":["a","b"],"gold":1}
{"query":"Q2","choices":["c","d"],"gold":0}
{"query":"Q3","choices":["e","f"],"gold":0}`), "")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := task.Prompt(1, task, 2), "Q1 b\n\nQ3 e\n\nQ2"; got != want {
		t.Errorf("prompt %q, want %q", got, want)
	}
	if got := task.Prompt(0, task, 0); got != "Q1" {
		t.Errorf("prompt %q without examples", got)
	}
	math, err := eval.Parse(strings.NewReader(`{"question":"A?","answer":"b #### 1"}`), "")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := task.Prompt(0, math, 1), "Question: A?\nAnswer: b #### 1\n\nQ1"; got != want {
		t.Errorf("prompt %q, want %q", got, want)
	}
}

func TestPair_WhiteSpaceBelongsToTheContinuation(t *testing.T) {
	words := func(s string) ([]int32, error) { // one id for each word with the spaces before it
		var ids []int32
		for len(s) > 0 {
			n := len(s) - len(strings.TrimLeft(s, " "))
			end := strings.IndexByte(s[n:], ' ')
			if end < 0 {
				end = len(s) - n
			}
			ids, s = append(ids, int32(100*n+end)), s[n+end:]
		}
		return ids, nil
	}
	ids, from, err := eval.Pair(words, "one three  ", " four", []int32{7})
	if err != nil || !reflect.DeepEqual(ids, []int32{3, 105, 304}) || from != 2 {
		t.Errorf("%v from %d, %v", ids, from, err)
	}
	ids, from, err = eval.Pair(words, "", " four", []int32{7})
	if err != nil || !reflect.DeepEqual(ids, []int32{7, 104}) || from != 1 {
		t.Errorf("without a context: %v from %d, %v", ids, from, err)
	}
}

func TestDoc_ChooseByLikelihoodAndByLength(t *testing.T) {
	d := eval.Doc{Choices: []string{"ab", "abcdefgh", "ß"}, Gold: 1}
	if got := d.Choose([]float64{-4, -8, -3}); got["acc"].Num != 0 || got["acc_norm"].Num != 1 {
		t.Errorf("%v", got) // -2, -1 and -3 for a character
	}
	d.Gold = 2
	if got := d.Choose([]float64{-4, -8, -0.5}); got["acc"].Num != 1 || got["acc_norm"].Num != 1 {
		t.Errorf("%v: ß is one character", got)
	}
	d.Gold = 0
	if got := d.Choose([]float64{-2, -2, -2}); got["acc"].Num != 1 {
		t.Errorf("%v: of equal choices the first one counts", got)
	}
}

func TestDoc_JudgeOfMathProblems(t *testing.T) {
	d := eval.Doc{Answer: "It is 1,200 + 34.\n#### 1,234"}
	for text, want := range map[string][2]float64{
		"So #### 1234":            {1, 1},
		"So #### $1,234.":         {0, 1}, // the strict pattern wants a number right after the mark
		"The answer is 1,234.":    {0, 1},
		"1234 apples and 5 pears": {0, 0},
		"#### 1,234. Then #### 5": {1, 0},
		"I do not know":           {0, 0},
		"#### -1234":              {0, 0},
	} {
		got := d.Judge("gsm8k", text, nil)
		if got["exact_match,strict"].Num != want[0] || got["exact_match,flexible"].Num != want[1] {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	ok := true
	plain := eval.Doc{Answer: "yes "}
	if got := plain.Judge("answer", "\n yes", &ok); got["exact_match"].Num != 1 || got["valid"].Num != 1 {
		t.Errorf("%v", got)
	}
}

// TestWindows_ScoreEveryIDOnce checks that each id is scored once, after the ids before it, in windows that fit.
func TestWindows_ScoreEveryIDOnce(t *testing.T) {
	for n := range 40 {
		for context := 1; context < 12; context++ {
			ids := make([]int32, n)
			for i := range ids {
				ids[i] = int32(i)
			}
			next := int32(0)
			for w, win := range eval.Windows(ids, -1, context) {
				if len(win.IDs)-1 > context || win.From < 1 {
					t.Fatalf("window %+v for a context of %d", win, context)
				}
				for i, id := range win.IDs {
					if i > 0 && id != win.IDs[i-1]+1 {
						t.Fatalf("window %+v skips an id", win)
					}
					if i >= win.From {
						if id != next {
							t.Fatalf("%d ids, context %d, window %d scores %d, want %d", n, context, w, id, next)
						}
						next++
					}
				}
			}
			if int(next) != n {
				t.Fatalf("%d of %d ids are scored", next, n)
			}
		}
	}
}

func TestRolling_Metrics(t *testing.T) {
	docs := []eval.Parts{eval.Rolling("two words", 9*math.Ln2, 3), eval.Rolling("ß", 3*math.Ln2, 1)}
	got := eval.Summarise(docs, 1)
	for name, want := range map[string]float64{"bits_per_byte": 12.0 / 11, "byte_perplexity": math.Exp2(12.0 / 11),
		"word_perplexity": math.Exp2(4), "token_perplexity": math.Exp2(3)} {
		if math.Abs(got[name].Value-want) > 1e-12 {
			t.Errorf("%s is %g, want %g", name, got[name].Value, want)
		}
	}
}

// hits returns docs of which the first n have the metric.
func hits(total int, right func(i int) bool) []eval.Parts {
	out := make([]eval.Parts, total)
	for i := range out {
		out[i] = eval.Parts{"acc": {Den: 1}}
		if right(i) {
			out[i]["acc"] = eval.Part{Num: 1, Den: 1}
		}
	}
	return out
}

// TestSummarise_BootstrapAgreesWithTheFormula compares the error of an accuracy with sqrt(p(1-p)/n).
func TestSummarise_BootstrapAgreesWithTheFormula(t *testing.T) {
	docs := hits(400, func(i int) bool { return i%4 == 0 })
	got := eval.Summarise(docs, 5)["acc"]
	want := math.Sqrt(0.25 * 0.75 / 400)
	if got.Value != 0.25 || math.Abs(got.StdErr/want-1) > 0.08 || math.Abs(got.Low-(0.25-1.96*want)) > 0.006 ||
		math.Abs(got.High-(0.25+1.96*want)) > 0.006 || got.Docs != 400 {
		t.Errorf("%+v, want an error of %g", got, want)
	}
	if again := eval.Summarise(docs, 5)["acc"]; again != got {
		t.Errorf("%+v, then %+v", got, again)
	}
	if other := eval.Summarise(docs, 6)["acc"]; other.StdErr == got.StdErr {
		t.Error("the seed changes nothing")
	}
}

func TestCompare_PairedTests(t *testing.T) {
	base := hits(200, func(i int) bool { return i%2 == 0 })
	better := hits(200, func(i int) bool { return i%2 == 0 || i < 30 })
	got, err := eval.Compare(base, better, 1)
	if err != nil {
		t.Fatal(err)
	}
	d := got["acc"]
	if math.Abs(d.Delta-0.075) > 1e-12 || d.OnlyA != 0 || d.OnlyB != 15 || math.Abs(d.McNemar-math.Exp2(-14)) > 1e-9 ||
		d.P > 0.001 ||
		d.Low <= 0 ||
		d.High < d.Delta {
		t.Errorf("%+v", d)
	}
	same, err := eval.Compare(base, base, 1)
	if err != nil {
		t.Fatal(err)
	}
	if d := same["acc"]; d.Delta != 0 || d.P != 1 || d.McNemar != 1 || d.StdErr != 0 {
		t.Errorf("a model against itself: %+v", d)
	}
	noise := hits(200, func(i int) bool { return i*7919%200 < 104 })
	if got, err = eval.Compare(base, noise, 1); err != nil || got["acc"].P < 0.2 {
		t.Errorf("chance: %+v, %v", got, err)
	}
	if _, err := eval.Compare(base, base[1:], 1); err == nil {
		t.Error("other numbers of docs are compared")
	}
	text := func(bits float64) (out []eval.Parts) {
		for i := range 50 {
			out = append(out, eval.Parts{"bits_per_byte": {Num: bits * float64(10+i%7), Den: float64(10 + i%7)}})
		}
		return out
	}
	if got, err = eval.Compare(text(1), text(1.01), 1); err != nil || got["bits_per_byte"].P > 0.001 ||
		math.Abs(got["bits_per_byte"].Delta-0.01) > 1e-9 || got["bits_per_byte"].McNemar != 0 {
		t.Errorf("texts: %+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"goal":"g","sol1":"a","sol2":"b","label":1}`)
	f.Add(`{"question":{"stem":"s","choices":[{"text":"a","label":"A"}]},"answerKey":"A"}`)
	f.Add(`{"activity_label":"x","ctx_a":"y","ctx_b":"","endings":["[","]"],"label":"0"}`)
	f.Fuzz(func(t *testing.T, text string) {
		task, err := eval.Parse(strings.NewReader(text), "")
		if err != nil {
			return
		}
		for i := range task.Docs {
			d := &task.Docs[i]
			if task.Kind == eval.Choice && (len(d.Choices) < 2 || d.Gold < 0 || d.Gold >= len(d.Choices)) {
				t.Fatalf("%+v", d)
			}
			task.Prompt(i, task, 2)
			d.Judge(task.Form, text, nil)
		}
	})
}
