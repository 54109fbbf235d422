package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/tuning"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// row is a row of a file of training data.
type row struct {
	line int // from 1
	text []byte
}

// readRows reads a file of JSON lines, or of one JSON array. Blank lines are left out.
func readRows(e *verb.Env, path string) ([]row, error) {
	text, err := readInput(e, path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "read data")
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	var out []row
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) {
		return arrayRows(path, text)
	}
	for line := 1; len(text) > 0; line++ {
		this, rest, _ := bytes.Cut(text, []byte("\n"))
		if this = bytes.TrimSpace(this); len(this) > 0 {
			out = append(out, row{line, this})
		}
		text = rest
	}
	if len(out) == 0 {
		return nil, fault.Field("data", "%s has no rows", path)
	}
	return out, nil
}

// arrayRows reads the elements of a JSON array. A row's line is the one that it begins in.
func arrayRows(path string, text []byte) ([]row, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	bad := func(err error) error {
		return fault.Field("data", "parse %s at byte %d: %v", path, d.InputOffset(), err)
	}
	if _, err := d.Token(); err != nil {
		return nil, bad(err)
	}
	var out []row
	at, line := 0, 1
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, bad(err)
		}
		begin := int(d.InputOffset()) - len(raw)
		line += bytes.Count(text[at:begin], []byte("\n"))
		at = begin
		out = append(out, row{line, raw})
	}
	if _, err := d.Token(); err != nil {
		return nil, bad(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, bad(errors.New("more than one JSON value"))
	}
	if len(out) == 0 {
		return nil, fault.Field("data", "%s has no rows", path)
	}
	return out, nil
}

// rendererFlags say how conversations are written as samples.
type rendererFlags struct {
	Template string `help:"File with a chat template to use instead of the model's own." type:"existingfile" optional:""`
	Rows     string `help:"Form of the rows: auto, messages, prompt-completion, sharegpt, alpaca, dolly, text or ids." default:"auto" enum:"auto,messages,prompt-completion,sharegpt,alpaca,dolly,text,ids"`
	Long     string `help:"What happens to samples that are longer than the context length: refuse leaves them out, turns keeps the turns that fit, tokens cuts the last turn anywhere." default:"refuse" enum:"refuse,turns,tokens"`
}

// chatFiles are the vocabulary and the chat template of a model.
type chatFiles struct {
	vocab    *vocab.Vocab
	template string
	special  map[string]string
}

// loadChatFiles reads the vocabulary and the chat template that path and a file of flags name. tools chooses the
// template for conversations with tools, if the model has one.
func (c *rendererFlags) loadChatFiles(path string, tools bool) (*chatFiles, error) {
	v, err := tokenizer.LoadVocab(path)
	if err != nil {
		return nil, err
	}
	out := &chatFiles{vocab: v}
	chat, err := tokenizer.LoadChat(path)
	if err != nil && c.Template == "" {
		return nil, err
	}
	out.special = chat.Special
	if c.Template != "" {
		text, err := os.ReadFile(c.Template)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "read template")
		}
		out.template = string(text)
		return out, nil
	}
	if len(chat.Templates) == 0 {
		return out, nil
	}
	name, err := chat.Pick("", tools)
	if err != nil {
		return nil, err
	}
	out.template = chat.Templates[name]
	return out, nil
}

// samples reads all rows of a file as samples. With the renderer that it returns, it counts them in a report.
func (c *rendererFlags) samples(e *verb.Env, rows []row, r *tuning.Renderer) ([]*tuning.Sample, *tuning.Report, error) {
	report := tuning.NewReport()
	var out []*tuning.Sample
	for _, row := range rows {
		conversation, err := tuning.ParseRow(row.line, row.text, c.Rows)
		if err != nil {
			out = append(out, report.Unreadable(row.line, err))
			continue
		}
		s, err := r.Render(e.Ctx, conversation)
		if err != nil {
			return nil, nil, err
		}
		report.Add(s)
		out = append(out, s)
	}
	return out, report, nil
}

// config returns the settings of a renderer.
func (c *rendererFlags) config(f *chatFiles, context int) tuning.Config {
	out := tuning.Config{Rules: tuning.Rules{Context: context, Long: c.Long}, Options: template.Options{Now: time.Now}}
	if f != nil {
		out.Vocab, out.Template, out.Special = f.vocab, f.template, f.special
	}
	return out
}

// needsText reports whether any row has to be encoded, and whether any has tools.
func needsText(rows []row) (text, tools bool) {
	for _, r := range rows {
		var f map[string]json.RawMessage
		if json.Unmarshal(r.text, &f) != nil {
			continue
		}
		_, ids := f["ids"]
		_, prompt := f["prompt_ids"]
		var chosen struct {
			IDs []int32 `json:"ids"`
		}
		pair := json.Unmarshal(f["chosen"], &chosen) == nil && chosen.IDs != nil
		text = text || !ids && !prompt && !pair
		t, has := f["tools"]
		tools = tools || has && string(t) != "null" && string(t) != "[]"
	}
	return text, tools
}

// isTerminal reports whether a stream is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	stat, err := f.Stat()
	return err == nil && stat.Mode()&os.ModeCharDevice != 0
}

type dataMasksCmd struct {
	rendererFlags
	Model    string `short:"m" help:"GGUF file or Hugging Face folder whose vocabulary and chat template are used." xor:"model" type:"model"`
	Vocab    string `help:"Folder or file with a vocabulary, and perhaps a chat template." xor:"model"`
	Data     string `required:"" help:"File of conversations: JSON lines, or a JSON array; - means standard input."`
	Context  int    `help:"Context length: the most ids of a sample; 0 means no limit." default:"0"`
	Service  bool   `help:"Encode as the tokenizer service and tune do: a control token in the text of a message stays text, and turns whose prompts differ in service are left out."`
	RowsOnly bool   `help:"Print the samples that are not refused as JSON lines, which data.examples of a manifest reads; implies --service."`
	Show     int    `help:"Number of samples to show as text on standard error: trained text is green, its context dim." default:"0"`
}

// maskedSample is a sample as the command prints it.
type maskedSample struct {
	Line    int      `json:"line"`
	IDs     []int32  `json:"ids"`
	Mask    []int    `json:"mask"`
	Trained int      `json:"trained"`
	Notes   []string `json:"notes,omitempty"`
	Refused string   `json:"refused,omitempty"`
}

// Run prints the ids and the mask of every row as one JSON object.
func (c *dataMasksCmd) Run(e *verb.Env) error {
	path := c.Model + c.Vocab
	if path == "" {
		return fault.Field("model", "give -m MODEL or --vocab DIR")
	}
	rows, err := readRows(e, c.Data)
	if err != nil {
		return err
	}
	_, tools := needsText(rows)
	files, err := c.loadChatFiles(path, tools)
	if err != nil {
		return err
	}
	config := c.config(files, c.Context)
	service := c.Service || c.RowsOnly
	config.ControlText, config.Rules.KeepOtherPrompts = !service, !service
	r, err := tuning.New(config)
	if err != nil {
		return err
	}
	samples, report, err := c.samples(e, rows, r)
	if err != nil {
		return err
	}
	var out struct {
		Samples []maskedSample `json:"samples"`
		Report  *tuning.Report `json:"report"`
	}
	out.Report = report
	for i, s := range samples {
		if i < c.Show {
			fmt.Fprintf(e.Stderr, "line %d:\n%s\n", s.Line, tuning.Show(files.vocab, s, 0, isTerminal(e.Stderr)))
		}
		out.Samples = append(out.Samples, printable(s))
	}
	fmt.Fprint(e.Stderr, report)
	if c.RowsOnly {
		return writeExamples(e.Stdout, samples)
	}
	return verb.PrintJSON(e, out)
}

// writeExamples writes the samples that are not refused as JSON lines.
func writeExamples(w io.Writer, samples []*tuning.Sample) error {
	out := json.NewEncoder(w)
	for _, s := range samples {
		if _, refused := s.Refused(); refused {
			continue
		}
		p := printable(s)
		if err := out.Encode(map[string]any{"ids": p.IDs, "mask": p.Mask}); err != nil {
			return err
		}
	}
	return nil
}

// printable converts a sample for printing.
func printable(s *tuning.Sample) maskedSample {
	out := maskedSample{Line: s.Line, IDs: s.IDs, Mask: make([]int, len(s.IDs)), Trained: s.Trained()}
	if out.IDs == nil {
		out.IDs = []int32{}
	}
	for i, m := range s.Mask {
		if m {
			out.Mask[i] = 1
		}
	}
	for _, n := range s.Notes {
		out.Notes = append(out.Notes, n.String())
	}
	if n, refused := s.Refused(); refused {
		out.Refused = string(n.Reason)
	}
	return out
}
