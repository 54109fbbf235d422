package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/evaluate"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/eval"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// evalFlags are the flags of the commands that run a task.
type evalFlags struct {
	meshFlags
	Vocab  string `help:"With --router: folder or file with the vocabulary of the served model."                                          placeholder:"PATH"`
	Served string `help:"With --router: name or digest of the served model. Default: the only one."                                       placeholder:"NAME"`
	Data   string `help:"File with JSON lines; - means standard input."                                                                                      required:""`
	Form   string `help:"Form of the lines: arc, piqa, blimp, hellaswag, gsm8k, choices, answer or text. Default: found by their fields."`
	Limit  int    `help:"Evaluate this many docs only; 0 means all."                                                                                                     default:"0"`
	Shots  int    `help:"Number of examples in front of each prompt."                                                                                                    default:"0"`
	From   string `help:"File that the examples are taken from, the first ones. Default: the data, without the doc itself."               placeholder:"FILE"                         name:"shots-data"`
	// Requests of one batch do not change one another's results, so the number of streams changes the speed only.
	Streams int    `help:"Requests in flight."                                                default:"8"`
	Out     string `help:"Folder for the results. A run that was stopped goes on from there."                placeholder:"DIR"`
	Seed    uint64 `help:"Seed of the bootstrap."                                             default:"1"`
	Format  string `help:"Output: text or json."                                              default:"text"                   enum:"text,json"`
}

// evaluation is a task that is being run.
type evaluation struct {
	*evalFlags
	env      *verb.Env
	task     *eval.Task
	examples *eval.Task
	settings evaluate.Settings
	client   evaluate.Client
	vocab    *vocab.Vocab
	context  int // positions of the served model
}

// run opens the task and the model, and asks for every doc.
func (f *evalFlags) run(e *verb.Env, kind eval.Kind, parse func([]byte) (*eval.Task, error),
	ask func(context.Context, *evaluation, int) (evaluate.Sample, error), set func(*evaluation) error) (err error) {
	x := &evaluation{evalFlags: f, env: e}
	if err := x.read(kind, parse); err != nil {
		return err
	}
	router, done, err := f.dial(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	x.client = evaluate.Client{Router: router, Model: f.Served, Adapter: f.adapter()}
	if err := x.open(); err != nil {
		return err
	}
	if set != nil {
		if err := set(x); err != nil {
			return err
		}
	}
	journal, err := evaluate.OpenJournal(f.Out, x.settings)
	if err != nil {
		return err
	}
	results, err := evaluate.Run(e.Ctx, x.settings, f.Streams, journal,
		func(ctx context.Context, i int) (evaluate.Sample, error) { return ask(ctx, x, i) }, x.progress())
	if err = errors.Join(err, journal.Close()); err != nil {
		return err
	}
	if f.Out != "" {
		if err := results.Write(f.Out); err != nil {
			return err
		}
	}
	if f.Format == "json" {
		return verb.PrintJSON(e, results)
	}
	return results.Print(e.Stdout)
}

// read reads the task and its examples.
func (x *evaluation) read(kind eval.Kind, parse func([]byte) (*eval.Task, error)) error {
	if x.Limit < 0 || x.Shots < 0 || x.Streams < 1 {
		return fault.Field("streams", "want no negative limit and number of shots, and one stream or more")
	}
	text, err := readInput(x.env, x.Data)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "read data")
	}
	if x.task, err = parse(text); err != nil {
		return err
	}
	if x.task.Kind != kind {
		return fault.Field(
			"data",
			"%s has docs of form %s; use lamina eval %s",
			x.Data,
			x.task.Form,
			map[eval.Kind]string{eval.Choice: "choice", eval.Generate: "generate",
				eval.Text: "perplexity"}[x.task.Kind],
		)
	}
	x.settings = evaluate.Settings{
		Task:  x.task.Form,
		Kind:  string(kind),
		Data:  digestOf(text),
		Shots: x.Shots,
		Seed:  x.Seed,
		Docs:  len(x.task.Docs),
	}
	if x.Limit > 0 {
		x.settings.Docs = min(x.Limit, x.settings.Docs)
	}
	if x.examples = x.task; x.From != "" {
		text, err := readInput(x.env, x.From)
		if err != nil {
			return fault.Wrap(fault.NotFound, err, "read examples")
		}
		if x.examples, err = eval.Parse(bytes.NewReader(text), x.Form); err != nil {
			return err
		}
		x.settings.ShotsData = digestOf(text)
	}
	if have := len(x.examples.Docs); x.Shots > have || x.examples == x.task && x.Shots > 0 && x.Shots >= have {
		return fault.Field("shots", "%d examples: there are %d docs", x.Shots, have)
	}
	return nil
}

func digestOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// open finds the model and reads its vocabulary.
func (x *evaluation) open() error {
	m, err := x.client.Find(x.env.Ctx)
	if err != nil {
		return err
	}
	x.settings.Model, x.settings.Digest, x.context = m.GetName(), m.GetDigest(), int(m.GetMaxContext())
	if x.settings.Adapter, err = x.client.AdapterDigest(m); err != nil {
		return err
	}
	path := x.Model
	if x.Router != "" {
		if path = x.Vocab; path == "" && x.settings.Kind != string(eval.Generate) {
			return fault.Field("vocab", "give --vocab: with --router the texts are encoded here")
		}
	}
	if path != "" {
		x.vocab, err = tokenizer.LoadVocab(path)
	}
	return err
}

// progress returns a function that shows how many docs are done, once a second at most.
func (x *evaluation) progress() func(int) {
	var mu sync.Mutex
	shown := time.Now()
	return func(done int) {
		mu.Lock()
		defer mu.Unlock()
		if x.Format == "text" && time.Since(shown) > time.Second {
			shown = time.Now()
			fmt.Fprintf(x.env.Stderr, "%d of %d docs\n", done, x.settings.Docs)
		}
	}
}

// encode encodes plain text.
func (x *evaluation) encode(text string) ([]int32, error) {
	return x.vocab.Encode(text, vocab.Options{})
}

// start returns the id that a text without a context is scored after: the begin-of-text id, or else the end-of-text id.
func (x *evaluation) start() (int32, error) {
	if id, ok := x.vocab.BOS(); ok {
		return id, nil
	}
	if id, ok := x.vocab.EOS(); ok {
		return id, nil
	}
	return 0, fault.New(fault.FailedPrecondition, "score a text: the vocabulary has no id that begins or ends a text")
}

type evalChoiceCmd struct {
	evalFlags
}

// Run evaluates multiple choice: acc and acc_norm.
func (c *evalChoiceCmd) Run(e *verb.Env) error {
	return c.run(
		e,
		eval.Choice,
		func(text []byte) (*eval.Task, error) { return eval.Parse(bytes.NewReader(text), c.Form) },
		func(ctx context.Context, x *evaluation, i int) (evaluate.Sample, error) { return x.choose(ctx, i) },
		nil,
	)
}

// choose scores the choices of a doc.
func (x *evaluation) choose(ctx context.Context, i int) (s evaluate.Sample, err error) {
	d := &x.task.Docs[i]
	prompt := x.task.Prompt(i, x.examples, x.Shots)
	for _, choice := range d.Choices {
		ids, from, err := x.pair(prompt, eval.Delimiter+choice)
		if err != nil {
			return s, fmt.Errorf("line %d: %w", d.Line, err)
		}
		score, greedy, err := x.client.Score(ctx, ids, from)
		if err != nil {
			return s, fmt.Errorf("line %d: %w", d.Line, err)
		}
		s.Scores, s.Greedy, s.Tokens = append(s.Scores, score), append(s.Greedy, greedy), s.Tokens+len(ids)-from
	}
	s.Parts = d.Choose(s.Scores)
	return s, nil
}

// pair encodes a context and its continuation. It drops the beginning of what does not fit the context length.
func (x *evaluation) pair(prompt, continuation string) (ids []int32, from int, err error) {
	var start []int32
	if prompt == "" {
		id, err := x.start()
		if err != nil {
			return nil, 0, err
		}
		start = []int32{id}
	}
	ids, from, err = eval.Pair(x.encode, prompt, continuation, start)
	if err != nil {
		return nil, 0, fault.Wrap(fault.Invalid, err, "encode the text")
	}
	if bos, ok := x.vocab.BOS(); ok && x.vocab.AddBOS() && prompt != "" {
		ids, from = append([]int32{bos}, ids...), from+1
	}
	if cut := len(ids) - x.context; cut > 0 {
		ids, from = ids[cut:], from-cut
	}
	if from < 1 || from >= len(ids) {
		return nil, 0, fault.New(
			fault.OutOfRange,
			"score a continuation of %d ids: the context length is %d",
			len(ids)-from,
			x.context,
		)
	}
	return ids, from, nil
}

type evalPerplexityCmd struct {
	evalFlags
	Ctx int `help:"Number of ids in a window; 0 means as many as the model serves." default:"0"`
}

// Run evaluates texts: perplexity by token, word and byte, and bits per byte.
func (c *evalPerplexityCmd) Run(e *verb.Env) error {
	parse := func(text []byte) (*eval.Task, error) {
		if c.Form == "" && !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) { // a plain text is one doc
			if len(text) == 0 {
				return nil, fault.Field("data", "%s is empty", c.Data)
			}
			return &eval.Task{Form: "text", Kind: eval.Text, Docs: []eval.Doc{{Line: 1, Text: string(text)}}}, nil
		}
		return eval.Parse(bytes.NewReader(text), c.Form)
	}
	return c.run(e, eval.Text, parse,
		func(ctx context.Context, x *evaluation, i int) (evaluate.Sample, error) { return x.roll(ctx, i) },
		func(x *evaluation) error {
			if c.Ctx < 0 || c.Ctx > x.context-1 {
				return fault.Field("ctx", "windows of %d ids: want at most %d", c.Ctx, x.context-1)
			}
			if x.settings.Context = c.Ctx; c.Ctx == 0 {
				x.settings.Context = x.context - 1 // the id after the last one is scored, too
			}
			return nil
		})
}

// roll scores a text in windows.
func (x *evaluation) roll(ctx context.Context, i int) (s evaluate.Sample, err error) {
	d := &x.task.Docs[i]
	start, err := x.start()
	if err != nil {
		return s, err
	}
	ids, err := x.encode(d.Text)
	if err != nil {
		return s, fault.Wrap(fault.Invalid, err, "encode line %d", d.Line)
	}
	sum := 0.0
	for _, w := range eval.Windows(ids, start, x.settings.Context) {
		score, _, err := x.client.Score(ctx, w.IDs, w.From)
		if err != nil {
			return s, fmt.Errorf("line %d: %w", d.Line, err)
		}
		sum += score
	}
	s.Scores, s.Tokens, s.Parts = []float64{sum}, len(ids), eval.Rolling(d.Text, -sum, len(ids))
	return s, nil
}
