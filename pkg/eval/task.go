package eval

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Kind says what a model is asked for.
type Kind string

// Kinds of tasks.
const (
	Choice   Kind = "choice"   // which of several continuations is the most likely
	Generate Kind = "generate" // a text, which is compared with an answer
	Text     Kind = "text"     // the log-likelihood of a text
)

// Doc is one line of a task.
type Doc struct {
	Line    int // in the file, from 1
	Context string
	Choices []string // of Choice
	Gold    int      // index of the right choice
	Answer  string   // of Generate: the answer as few-shot examples show it
	Text    string   // of Text
}

// Task is a parsed file.
type Task struct {
	Form string // arc, piqa, blimp, hellaswag, gsm8k, choices, answer or text
	Kind Kind
	Docs []Doc
}

// Forms lists the forms that Parse reads.
func Forms() []string {
	return []string{"arc", "piqa", "blimp", "hellaswag", "gsm8k", "choices", "answer", "text"}
}

// row has the fields of all forms.
type row struct {
	Question  json.RawMessage `json:"question"`
	AnswerKey string          `json:"answerKey"`
	Choices   json.RawMessage `json:"choices"`
	Goal      *string         `json:"goal"`
	Sol1      string          `json:"sol1"`
	Sol2      string          `json:"sol2"`
	Good      *string         `json:"sentence_good"`
	Bad       string          `json:"sentence_bad"`
	Activity  string          `json:"activity_label"`
	CtxA      *string         `json:"ctx_a"`
	CtxB      string          `json:"ctx_b"`
	Endings   []string        `json:"endings"`
	Label     json.RawMessage `json:"label"`
	Gold      json.RawMessage `json:"gold"`
	Answer    json.RawMessage `json:"answer"`
	Context   *string         `json:"context"`
	Query     *string         `json:"query"`
	Prompt    *string         `json:"prompt"`
	Text      *string         `json:"text"`
}

const maxLine = 16 << 20 // bytes

// Parse reads a task from JSON lines. form is one of Forms, or empty to detect it by the fields of the first line. The
// error is a fault that names the line.
func Parse(r io.Reader, form string) (*Task, error) {
	in := bufio.NewReaderSize(r, 1<<16)
	t := &Task{Form: form}
	if form != "" && !slices.Contains(Forms(), form) {
		return nil, fault.Field("form", "unknown form %q: want one of %s", form, strings.Join(Forms(), ", "))
	}
	for line := 1; ; line++ {
		text, err := readLine(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fault.Wrap(fault.Invalid, err, "read line %d", line)
		}
		if trimmed := bytes.TrimSpace(text); len(trimmed) > 0 {
			var x row
			if err := json.Unmarshal(trimmed, &x); err != nil {
				return nil, fault.Wrap(fault.Invalid, err, "parse line %d", line)
			}
			if t.Form == "" {
				if t.Form = x.form(); t.Form == "" {
					return nil, fault.New(
						fault.Invalid,
						"parse line %d: its fields are those of none of the forms %s",
						line,
						strings.Join(Forms(), ", "),
					)
				}
			}
			d, err := x.doc(t.Form)
			if err != nil {
				return nil, fault.Wrap(fault.Invalid, err, "parse line %d as %s", line, t.Form)
			}
			d.Line = line
			t.Docs = append(t.Docs, d)
		}
		if errors.Is(err, io.EOF) {
			break
		}
	}
	if len(t.Docs) == 0 {
		return nil, fault.New(fault.Invalid, "parse task: it has no lines")
	}
	switch t.Form {
	case "gsm8k", "answer":
		t.Kind = Generate
	case "text":
		t.Kind = Text
	default:
		t.Kind = Choice
	}
	return t, nil
}

// readLine returns the next line, at most maxLine bytes.
func readLine(in *bufio.Reader) ([]byte, error) {
	var out []byte
	for {
		part, err := in.ReadSlice('\n')
		if out = append(out, part...); len(out) > maxLine {
			return nil, fmt.Errorf("want at most %d bytes", maxLine)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return out, err
		}
	}
}

// form detects the form by the fields that only it has.
func (x *row) form() string {
	switch {
	case x.Good != nil:
		return "blimp"
	case x.Goal != nil:
		return "piqa"
	case x.CtxA != nil && x.Endings != nil:
		return "hellaswag"
	case x.AnswerKey != "":
		return "arc"
	case x.Choices != nil:
		return "choices"
	case x.Question != nil && strings.Contains(string(x.Answer), "####"):
		return "gsm8k"
	case x.Answer != nil:
		return "answer"
	case x.Text != nil:
		return "text"
	}
	return ""
}

// doc returns the doc that lm-evaluation-harness makes of a row.
func (x *row) doc(form string) (Doc, error) {
	switch form {
	case "arc":
		return x.arc()
	case "piqa":
		if x.Goal == nil || x.Sol1 == "" || x.Sol2 == "" {
			return Doc{}, errors.New("want goal, sol1, sol2 and label")
		}
		return chosen(Doc{Context: "Question: " + *x.Goal + "\nAnswer:", Choices: []string{x.Sol1, x.Sol2}}, x.Label)
	case "blimp":
		if x.Good == nil || x.Bad == "" {
			return Doc{}, errors.New("want sentence_good and sentence_bad")
		}
		return Doc{Choices: []string{*x.Good, x.Bad}}, nil
	case "hellaswag":
		if x.CtxA == nil || len(x.Endings) < 2 {
			return Doc{}, errors.New("want activity_label, ctx_a, ctx_b, endings and label")
		}
		d := Doc{Context: wikiHow(x.Activity + ": " + *x.CtxA + " " + capitalize(x.CtxB))}
		for _, e := range x.Endings {
			d.Choices = append(d.Choices, wikiHow(e))
		}
		return chosen(d, x.Label)
	case "gsm8k":
		question, answer, err := x.questionAnswer()
		return Doc{Context: "Question: " + question + "\nAnswer:", Answer: answer}, err
	case "answer":
		context, ok := x.context()
		var answer string
		if err := json.Unmarshal(x.Answer, &answer); err != nil || !ok {
			return Doc{}, errors.New("want prompt and answer as strings")
		}
		return Doc{Context: context, Answer: answer}, nil
	case "text":
		if x.Text == nil || *x.Text == "" {
			return Doc{}, errors.New("want a text")
		}
		return Doc{Text: *x.Text}, nil
	}
	context, ok := x.context()
	var choices []string
	if err := json.Unmarshal(x.Choices, &choices); err != nil || !ok || len(choices) < 2 {
		return Doc{}, errors.New("want context, a list of two choices or more, and gold")
	}
	for _, gold := range []json.RawMessage{x.Gold, x.Label, x.Answer} {
		if gold != nil {
			return chosen(Doc{Context: context, Choices: choices}, gold)
		}
	}
	return Doc{}, errors.New("gold is missing")
}

// context returns the text before the choices or the answer.
func (x *row) context() (string, bool) {
	var question string
	if json.Unmarshal(x.Question, &question) == nil {
		return question, true
	}
	for _, text := range []*string{x.Context, x.Query, x.Prompt} {
		if text != nil {
			return *text, true
		}
	}
	return "", false
}

func (x *row) questionAnswer() (question, answer string, err error) {
	if json.Unmarshal(x.Question, &question) != nil || json.Unmarshal(x.Answer, &answer) != nil || answer == "" {
		return "", "", errors.New("want question and answer as strings")
	}
	return question, answer, nil
}

// arc reads either form: {"question": {"stem", "choices": [{"text", "label"}]}}, as published, and {"question",
// "choices": {"text", "label"}}, as Hugging Face has it.
func (x *row) arc() (Doc, error) {
	var d Doc
	var labels []string
	var published struct {
		Stem    string `json:"stem"`
		Choices []struct {
			Text  string `json:"text"`
			Label string `json:"label"`
		} `json:"choices"`
	}
	var flat struct {
		Text  []string `json:"text"`
		Label []string `json:"label"`
	}
	var question string
	switch {
	case json.Unmarshal(x.Question, &question) == nil && json.Unmarshal(x.Choices, &flat) == nil:
		d.Choices, labels = flat.Text, flat.Label
	case json.Unmarshal(x.Question, &published) == nil:
		question = published.Stem
		for _, c := range published.Choices {
			d.Choices, labels = append(d.Choices, c.Text), append(labels, c.Label)
		}
	}
	if question == "" || len(d.Choices) < 2 || len(labels) != len(d.Choices) {
		return d, errors.New("want question, choices with text and label, and answerKey")
	}
	d.Context = "Question: " + question + "\nAnswer:"
	if d.Gold = slices.Index(labels, x.AnswerKey); d.Gold < 0 {
		return d, fmt.Errorf("answerKey %q is none of the labels", x.AnswerKey)
	}
	return d, nil
}

// chosen sets the right choice: an index as a number or a string, a letter from A on, or the text of a choice.
func chosen(d Doc, gold json.RawMessage) (Doc, error) {
	var text string
	number, err := strconv.Atoi(string(gold))
	if err != nil && json.Unmarshal(gold, &text) == nil {
		if at := slices.Index(d.Choices, text); at >= 0 {
			number, err = at, nil
		} else if number, err = strconv.Atoi(text); err != nil && len(text) == 1 && text[0] >= 'A' && text[0] <= 'Z' {
			number, err = int(text[0]-'A'), nil
		}
	}
	if err != nil || number < 0 || number >= len(d.Choices) {
		return d, fmt.Errorf("the right choice %.40s is none of %d", cmp.Or(string(gold), "(missing)"), len(d.Choices))
	}
	d.Gold = number
	return d, nil
}

var brackets = regexp.MustCompile(`\[.*?\]`)

// wikiHow removes the marks of HellaSwag's WikiHow texts, as lm-evaluation-harness does.
func wikiHow(s string) string {
	s = strings.ReplaceAll(strings.TrimSpace(s), " [title]", ". ")
	return strings.ReplaceAll(brackets.ReplaceAllString(s, ""), "  ", " ")
}

// capitalize makes the first character upper case and the others lower case, as Python's method does.
func capitalize(s string) string {
	for i := range s {
		if i > 0 {
			return strings.ToTitle(s[:i]) + strings.ToLower(s[i:])
		}
	}
	return strings.ToTitle(s)
}

// Delimiter separates a context from its continuation.
const Delimiter = " "

// Prompt returns the context of doc i behind n examples of another task (or the same one, in which case the doc itself
// is no example). Examples are the first ones of the task.
func (t *Task) Prompt(i int, examples *Task, n int) string {
	var b strings.Builder
	for j := 0; n > 0 && examples != nil && j < len(examples.Docs); j++ {
		if examples == t && j == i {
			continue
		}
		e := &examples.Docs[j]
		answer := e.Answer
		if examples.Kind == Choice {
			answer = e.Choices[e.Gold]
		}
		b.WriteString(e.Context)
		if e.Context != "" {
			b.WriteString(Delimiter)
		}
		b.WriteString(answer + "\n\n")
		n--
	}
	b.WriteString(t.Docs[i].Context)
	return b.String()
}
