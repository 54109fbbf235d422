package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tuning"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/services/trainer"
)

type tuneCmd struct {
	verb.KernelFlags
	connectFlags
	rendererFlags
	Objective      string   `help:"What is trained: sft, the assistant's turns of conversations; dpo, the preferred one of two answers (direct preference optimization); or grpo, answers of the model itself that get a reward (group relative policy optimization)." default:"sft" enum:"sft,dpo,grpo"`
	Model          string   `short:"m" required:"" help:"GGUF file or Hugging Face folder to fine-tune. The weights of a GGUF file are used in the types that they are stored in." type:"model"`
	Data           string   `required:"" help:"File of conversations: JSON lines or a JSON array, in any form that lamina data masks reads. With dpo: rows of prompt, chosen and rejected, as lamina eval preference reads them. With grpo: rows of prompt (a text or messages) and answer."`
	Out            string   `required:"" help:"Folder for the adapter, the checkpoints, the encoded samples and the manifest."`
	Name           string   `help:"Name of the run. Default: the name of the folder."`
	Stages         int      `help:"Number of stages over which the layers are distributed." default:"1"`
	Replicas       int      `help:"Number of replicas, over which the slots of a batch are distributed." default:"1"`
	Resume         bool     `help:"Continue from the last complete checkpoint."`
	Rank           int      `help:"Rank of the adapter." default:"16"`
	Alpha          float64  `help:"Scale of the adapter, divided by its rank; 0 means twice the rank." default:"0"`
	Dropout        float64  `help:"Share of the adapter's inputs that is dropped." default:"0"`
	Targets        string   `help:"Modules to adapt: names separated by commas, a regular expression in slashes, or all-linear." default:"all-linear"`
	RSLoRA         bool     `name:"rslora" help:"Scale by alpha/sqrt(rank)."`
	DoRA           bool     `name:"dora" help:"Train the lengths of the weights' rows as well."`
	ModulesToSave  []string `help:"Modules that are trained whole beside the adapter and saved with it, such as lm_head or embed_tokens: names separated by commas."`
	LearningRate   float64  `help:"Largest learning rate; it warms up and falls as a cosine." default:"0.0002"`
	Epochs         float64  `help:"How often the data are read." default:"1"`
	Steps          int      `help:"Number of optimizer steps, instead of --epochs; 0 means by epochs." default:"0"`
	Batch          int      `help:"Number of sequences in a step." default:"8"`
	SequenceLen    int      `help:"Tokens in a sequence, into which several samples are packed; 0 chooses by the longest sample." default:"0"`
	Validation     float64  `help:"Share of the samples that is held out for validation." default:"0.05"`
	Beta           float64  `help:"How strongly dpo holds the model to its base." default:"0.1"`
	Reward         []string `help:"What grpo rewards, once or more often: exact or number (the answer equals the row's), regex:RE, schema:FILE (JSON that follows the schema), or command:PROGRAM ARGS (docs/tuning.md)."`
	Group          int      `help:"Number of answers that grpo samples to each prompt." default:"8"`
	MaxTokens      int      `help:"Most tokens of an answer that grpo samples." default:"64"`
	KL             float64  `name:"kl" help:"How strongly grpo holds the model to its base." default:"0"`
	LabelSmoothing float64  `help:"Probability that the answers of a pair are the wrong way round, for dpo." default:"0"`
	Seed           uint64   `help:"Seed of the adapter's initial values and the order of the data." default:"1"`
	Show           int      `help:"Number of samples to show before the first step: trained text is green, its context dim." default:"2"`
	Publish        string   `help:"Address of a router that offers the adapter as soon as the run is done. Its requests that run then go on as before."`
	PublishAs      string   `help:"Name of the adapter there: NAME or MODEL:NAME. Default: the name of the run, for the model that it was trained on."`
	DryRun         bool     `help:"Encode the data, print the manifest, and train nothing."`
	Format         string   `help:"Output: text, or json (the last state of the run, with where it was published; everything else goes to standard error)." default:"text" enum:"text,json"`
}

// fewSteps is a number of steps below which a run without --steps says so.
const fewSteps = 10

// longestDefault is the longest sequence that is chosen without --sequence-len.
const longestDefault = 1024

// Run encodes the data, prints the manifest and trains.
func (c *tuneCmd) Run(e *verb.Env) error {
	if c.Batch < 1 || c.Steps < 0 || !(c.Epochs > 0) || c.Rank < 1 {
		return fault.Field("batch", "%d sequences, %v epochs, %d steps, rank %d: want positive numbers", c.Batch,
			c.Epochs, c.Steps, c.Rank)
	}
	f, err := model.Open(c.Model)
	if err != nil {
		return err
	}
	context, width := f.Spec.Context, f.Spec.Width
	if err := f.Close(); err != nil {
		return err
	}
	rows, err := readRows(e, c.Data)
	if err != nil {
		return err
	}
	most := min(context, longestDefault)
	switch c.Objective {
	case objectiveDPO: // both answers are in one sequence
		most = min(context, 2*longestDefault)
	case objectiveGRPO: // all answers to a prompt are
		most = c.Group * min(context, longestDefault)
	}
	if c.SequenceLen > 0 {
		most = c.SequenceLen
		if c.Objective != objectiveGRPO {
			most = min(context, most)
		}
	}
	renderer, err := c.renderer(rows, c.Model, min(context, most)+1) // the last id of a sample is only a target
	if err != nil {
		return err
	}
	encode := c.conversations
	switch c.Objective {
	case objectiveDPO:
		encode = c.pairs
	case objectiveGRPO:
		encode = func(e *verb.Env, rows []row, r *tuning.Renderer, most int) (*tuneData, error) {
			return c.prompts(e, rows, r, most, context)
		}
	}
	data, err := encode(e, rows, renderer, most)
	if err != nil {
		return err
	}
	fmt.Fprint(e.Stderr, data.report)
	shown := *e
	if c.Format == "json" {
		shown.Stdout = e.Stderr
	}
	if least := 2; len(data.lengths) < least && (c.Objective != objectiveGRPO || len(data.lengths) < 1) {
		return fault.Field("data", "%d samples are left, want %d or more", len(data.lengths), least)
	}
	manifest, steps, err := c.manifest(data, most, width)
	if err != nil {
		return err
	}
	if c.Steps == 0 && steps < fewSteps {
		fmt.Fprintf(e.Stderr, "steps: %d, which is little; --epochs reads the data more often, and a smaller --batch "+
			"than %d makes more steps of them\n", steps, c.Batch)
	}
	if err := c.write(manifest, data); err != nil {
		return err
	}
	if err := c.show(&shown, data.samples); err != nil {
		return err
	}
	fmt.Fprintf(shown.Stdout, "the same run: lamina train --manifest %s --out %s --stages %d --replicas %d\n%s\n",
		filepath.Join(c.Out, "manifest.json"), c.Out, c.Stages, c.Replicas, manifest)
	switch {
	case c.DryRun && c.Format == "json":
		_, err := fmt.Fprintf(e.Stdout, "%s\n", manifest)
		return err
	case c.DryRun:
		return nil
	}
	return c.train(e, manifest)
}

// The objectives.
const (
	objectiveDPO  = "dpo"  // compares answers
	objectiveGRPO = "grpo" // samples answers and rewards them
)

// Names of the encoded data in the folder of a run.
const (
	examplesFile = "examples.jsonl"
	pairsFile    = "pairs.jsonl"
	promptsFile  = "prompts.jsonl"
)

// tuneData is the data of a run, encoded.
type tuneData struct {
	report  *tuning.Report
	samples []*tuning.Sample // to be shown
	lengths []int            // rows of each sample, or of each pair
	longest int              // of them
	field   string           // of the manifest's data
	file    string
	write   func(w io.Writer) error
}

// conversations encodes conversations.
func (c *tuneCmd) conversations(e *verb.Env, rows []row, r *tuning.Renderer, _ int) (*tuneData, error) {
	samples, report, err := c.samples(e, rows, r)
	if err != nil {
		return nil, err
	}
	d := &tuneData{report: report, field: "examples", file: examplesFile}
	for _, s := range samples {
		if _, refused := s.Refused(); !refused {
			d.samples = append(d.samples, s)
			d.add(len(s.IDs) - 1)
		}
	}
	d.write = func(w io.Writer) error { return writeExamples(w, d.samples) }
	return d, nil
}

// pairs encodes preferences. A pair takes at most so many rows.
func (c *tuneCmd) pairs(e *verb.Env, rows []row, r *tuning.Renderer, most int) (*tuneData, error) {
	d := &tuneData{report: tuning.NewReport(), field: "pairs", file: pairsFile}
	var kept []*tuning.Pair
	for _, row := range rows {
		p, err := tuning.ParsePreference(row.line, row.text)
		if err != nil {
			d.report.Unreadable(row.line, err)
			continue
		}
		pair, err := r.Pair(e.Ctx, p, most)
		if err != nil {
			return nil, err
		}
		if d.report.AddPair(pair) {
			kept = append(kept, pair)
			d.samples = append(d.samples, pair.Chosen, pair.Rejected)
			d.add(pair.Rows())
		}
	}
	d.write = func(w io.Writer) error {
		out := json.NewEncoder(w)
		for _, p := range kept {
			chosen, rejected := printable(p.Chosen), printable(p.Rejected)
			if err := out.Encode(map[string]any{
				"chosen":   map[string]any{"ids": chosen.IDs, "mask": chosen.Mask},
				"rejected": map[string]any{"ids": rejected.IDs, "mask": rejected.Mask},
			}); err != nil {
				return err
			}
		}
		return nil
	}
	return d, nil
}

// add counts a sample or a pair.
func (d *tuneData) add(rows int) {
	d.lengths = append(d.lengths, rows)
	d.longest = max(d.longest, rows)
}

// manifest returns the manifest of the run, and the number of its steps.
func (c *tuneCmd) manifest(data *tuneData, most, width int) (text []byte, steps int, err error) {
	out, err := filepath.Abs(c.Out)
	if err != nil {
		return nil, 0, err
	}
	from, err := filepath.Abs(c.Model)
	if err != nil {
		return nil, 0, err
	}
	length := c.SequenceLen
	switch {
	case length > 0:
	case c.Objective == objectiveGRPO: // a sequence has the answers to one prompt, and the rest of it is padding
		length = min((data.longest+7)/8*8, most)
	default: // room for several samples, in multiples of 64
		length = min(max(256, (data.longest+63)/64*64), most)
	}
	sequences := corpus.BestFit(data.lengths, length)
	train := max(1, int(float64(len(sequences))*(1-c.Validation)))
	if steps = c.Steps; steps == 0 {
		steps = max(1, int(c.Epochs*float64(train)/float64(c.Batch)+0.5))
	}
	name := c.Name
	if name == "" {
		name = regexp.MustCompile(`[^A-Za-z0-9._-]+`).ReplaceAllString(filepath.Base(out), "-")
		name = "tune-" + name[:min(len(name), 50)]
	}
	low := map[string]any{"rank": c.Rank, "target_modules": c.targets()}
	if c.Alpha > 0 {
		low["alpha"] = c.Alpha
	}
	if c.Dropout > 0 {
		low["dropout"] = c.Dropout
	}
	if c.RSLoRA {
		low["rslora"] = true
	}
	if c.DoRA {
		low["dora"] = true
	}
	if len(c.ModulesToSave) > 0 {
		low["modules_to_save"] = c.ModulesToSave
	}
	every := max(1, steps/5)
	m := map[string]any{
		"name":    name,
		"model":   map[string]any{"from": from},
		"adapter": low,
		"data": map[string]any{
			data.field:            filepath.Join(out, data.file),
			"validation_fraction": c.Validation,
		},
		"slots":          c.Batch,
		"slot_sequences": 1,
		"sequence_len":   length,
		"steps":          steps,
		"learning_rate":  map[string]any{"max": c.LearningRate, "min": c.LearningRate / 10, "warmup": steps/20 + 1},
		"betas":          []float64{0.9, 0.999},
		"clip":           1,
		"seed":           c.Seed,
		"evaluate_every": every,
	}
	switch c.Objective {
	case objectiveDPO:
		m["objective"] = objectiveDPO
		m["dpo"] = map[string]any{"beta": c.Beta, "label_smoothing": c.LabelSmoothing}
	case objectiveGRPO:
		rules, err := rewardRules(c.Reward)
		if err != nil {
			return nil, 0, err
		}
		m["objective"] = objectiveGRPO
		m["grpo"] = map[string]any{"group": c.Group, "max_tokens": c.MaxTokens, "kl": c.KL, "reward": rules}
		m["data"] = map[string]any{data.field: filepath.Join(out, data.file)}
		delete(m, "evaluate_every")
	}
	if width >= 512 {
		m["recompute"] = "layers"
	}
	if c.Publish != "" {
		p := trainer.Publish{Router: c.Publish}
		p.Model, p.Name = splitAdapter(c.PublishAs)
		m["publish"] = p
	}
	text, err = json.MarshalIndent(m, "", "  ")
	return text, steps, err
}

// targets returns the modules as a manifest has them.
func (c *tuneCmd) targets() any {
	switch t := c.Targets; {
	case t == "all-linear":
		return t
	case len(t) > 1 && t[0] == '/' && t[len(t)-1] == '/':
		return t[1 : len(t)-1]
	}
	return strings.Split(c.Targets, ",")
}

// write writes the encoded samples, the report of what was refused, and the manifest.
func (c *tuneCmd) write(manifest []byte, data *tuneData) error {
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return err
	}
	files := map[string]func(w io.Writer) error{
		data.file: data.write,
		"data-report.txt": func(w io.Writer) error {
			if _, err := io.WriteString(w, data.report.String()); err != nil {
				return err
			}
			for _, n := range data.report.Notes {
				if _, err := fmt.Fprintln(w, n); err != nil {
					return err
				}
			}
			return nil
		},
		"manifest.json": func(w io.Writer) error {
			_, err := w.Write(append(manifest, '\n'))
			return err
		},
	}
	for name, write := range files {
		if err := weights.WriteFile(filepath.Join(c.Out, name), write); err != nil {
			return err
		}
	}
	return nil
}

// show shows the first samples and keeps them in the folder of the run.
func (c *tuneCmd) show(e *verb.Env, kept []*tuning.Sample) error {
	if !slices.ContainsFunc(kept, func(s *tuning.Sample) bool { return s.Text != "" }) {
		return nil // rows of ids may come without a vocabulary
	}
	files, err := c.loadChatFiles(c.Model, false)
	if err != nil {
		return err
	}
	var plain strings.Builder
	for _, s := range kept[:min(len(kept), max(c.Show, 0))] {
		fmt.Fprintf(e.Stderr, "line %d:\n%s\n", s.Line, tuning.Show(files.vocab, s, 0, isTerminal(e.Stderr)))
		fmt.Fprintf(&plain, "line %d:\n%s\n", s.Line, tuning.Show(files.vocab, s, 0, false))
	}
	return weights.WriteFile(filepath.Join(c.Out, "first-samples.txt"), func(w io.Writer) error {
		_, err := io.WriteString(w, plain.String())
		return err
	})
}

// train runs the manifest on a mesh in this process.
func (c *tuneCmd) train(e *verb.Env, manifest []byte) error {
	run := trainCmd{KernelFlags: c.KernelFlags, connectFlags: c.connectFlags, Stages: c.Stages, Replicas: c.Replicas,
		Resume: c.Resume, Out: c.Out, Format: c.Format}
	return run.run(e, manifest)
}
