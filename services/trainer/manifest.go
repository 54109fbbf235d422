package trainer

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Manifest fixes a run. Two runs with equal manifests and equal texts end with equal weights.
type Manifest struct {
	Name       string     `json:"name"` // letters, digits, '.', '_' and '-'
	Data       Data       `json:"data"`
	Vocabulary Vocabulary `json:"vocabulary"`
	Model      Model      `json:"model"`

	Slots         int `json:"slots"`          // gradient slots of a global batch
	SlotSequences int `json:"slot_sequences"` // sequences in a slot
	SequenceLen   int `json:"sequence_len"`   // tokens in a sequence
	Steps         int `json:"steps"`          // optimizer steps

	LearningRate      LearningRate `json:"learning_rate"`       // linear warm-up, then as its type says
	Optimizer         Optimizer    `json:"optimizer"`           // AdamW when absent
	Betas             [2]float64   `json:"betas"`               // AdamW; 0.9 and 0.95 when absent
	Epsilon           float64      `json:"epsilon"`             // AdamW; 1e-8 when absent
	Decay             float64      `json:"decay"`               // decoupled weight decay of every optimizer
	DecayMatricesOnly bool         `json:"decay_matrices_only"` // do not decay norms and biases
	Clip              float64      `json:"clip"`                // largest global gradient norm; 0 for none

	// ZLoss is the coefficient of the z-loss, which keeps the sum of exponentials of the logits near 1. The
	// losses that are reported do not contain it.
	ZLoss float64 `json:"z_loss"`

	// Parameters are exceptions for some parameters. Of several that set a field, the last one counts.
	Parameters []ParameterRule `json:"parameters,omitempty"`

	// Gradients says how replicas exchange gradients; exactly, in float32, when absent.
	Gradients Gradients `json:"gradients"`

	// Objective is what is minimized: absent for the mean negative log-likelihood of the trained tokens, or "dpo"
	// for direct preference optimization over data.pairs, or "grpo" for answers to data.prompts that rewards judge.
	Objective string `json:"objective,omitempty"`
	DPO       *DPO   `json:"dpo,omitempty"`
	GRPO      *GRPO  `json:"grpo,omitempty"`

	// Adapter makes the run train a low-rank adapter; absent for all parameters.
	Adapter *Adapter `json:"adapter,omitempty"`
	// Publish makes the routers offer the adapter when the run is done; absent for not.
	Publish *Publish `json:"publish,omitempty"`

	// Dropout has the rates of dropout, as GPT-2 and nanoGPT have it; none when absent. What is dropped depends on
	// the seed, the step, the slot, the layer and the position only. Evaluation drops nothing.
	Dropout Dropout `json:"dropout"`

	// Recompute is "none" (default) or "layers", which keeps only the inputs of layers for the backward pass and
	// runs each layer again there. It takes less memory and more time, and changes no bit.
	Recompute string `json:"recompute,omitempty"`

	// DiLoCo lets groups of slots step on their own and averages their weights; absent for one global step.
	DiLoCo *DiLoCo `json:"diloco,omitempty"`

	// Spikes says what is done about spikes of the loss or the gradient norm; absent for nothing.
	Spikes *Spikes `json:"spikes,omitempty"`

	// Precision is "F32" (default) or "BF16". With BF16 the operands of products and the saved
	// activations are rounded to bfloat16; weights and accumulations stay float32.
	Precision string `json:"precision"`

	Seed uint64 `json:"seed"` // of weights and data order

	Schedule        string `json:"schedule"`         // one of schedule.Names(); "1f1b" when absent
	Spans           int    `json:"spans"`            // layer ranges of a stage, for interleaved-1f1b; 2 when absent
	EvaluateEvery   int    `json:"evaluate_every"`   // steps; with 0 the validation loss is measured at the end only
	CheckpointEvery int    `json:"checkpoint_every"` // steps; 0 means 500
	KeepLast        int    `json:"keep_last"`        // newest checkpoints to keep; 2 when absent
	KeepBest        int    `json:"keep_best"`        // and those of the lowest validation losses; 1 when absent
	// element type of the trained model's file: "F32" (default) or "BF16"
	DType        string  `json:"dtype"`
	Samples      Samples `json:"samples"`       // texts to generate while the run goes on
	ChatTemplate string  `json:"chat_template"` // for the trained model's tokenizer_config.json; empty for none
}

// Data names what is read: texts, of which a step reads random windows, or token data, of which every epoch
// reads each sequence once. All paths are on the trainer's machine.
type Data struct {
	Text string   `json:"text"` // a file
	More []string `json:"more"` // further files, in order

	// Tokens are folders that "lamina data build" has written, with one vocabulary.
	Tokens []TokenData `json:"tokens,omitempty"`
	// Examples is a file of samples that are encoded already, as JSON lines {"ids", "mask"}, such as "lamina tune"
	// and "lamina data masks --rows-only" write. The mask says which ids are trained. Samples are never divided, and
	// attention keeps them apart. Packing is "best-fit" (default) or "none": a sequence for each.
	Examples string `json:"examples,omitempty"`
	// Pairs is a file of preferences that are encoded already, as JSON lines {"prompt_ids", "chosen_ids",
	// "rejected_ids"} or {"chosen": {"ids", "mask"}, "rejected": {"ids", "mask"}}, such as "lamina tune" writes. Both
	// answers of a pair, with their prompts, fit into one sequence. Packing is that of examples.
	Pairs string `json:"pairs,omitempty"`
	// Prompts is a file of prompts, as JSON lines {"prompt_ids", "prompt", "answer"}, such as "lamina tune" writes.
	// Rewards see the text of the prompt and the right answer.
	Prompts string `json:"prompts,omitempty"`

	// Packing says how the documents of token data fill sequences: "concat" (default) puts one behind the other
	// and divides them anywhere; "best-fit" divides no document that fits, and pads what is left.
	Packing string `json:"packing,omitempty"`
	// Isolate lets a token attend only to its own document. Positions restart in every document.
	Isolate bool `json:"isolate,omitempty"`

	// ValidationFraction is the share that is not trained on: of the characters, at the end of each text; of the
	// tokens, in whole documents at the end of each folder.
	ValidationFraction float64 `json:"validation_fraction"`
	// Validation are further texts or folders of token data that are only for validation.
	Validation []string `json:"validation,omitempty"`
}

// TokenData is a folder of token data in a mixture.
type TokenData struct {
	Path string `json:"path"`
	// Weight is the folder's share of the sequences, divided by the sum of all weights. Without weights the
	// folders are mixed as if they were one, each as often as its epochs say.
	Weight float64 `json:"weight,omitempty"`
	// Epochs is how often the run may read the folder, such as 0.5 or 3. Absent: as often as it has to.
	Epochs float64 `json:"epochs,omitempty"`
}

// LearningRate holds the settings of the learning rate schedule.
type LearningRate struct {
	Type   string  `json:"type"` // "cosine" (default), "linear", "constant" or "wsd" (warmup-stable-decay)
	Max    float64 `json:"max"`
	Min    float64 `json:"min"`
	Warmup int     `json:"warmup"` // steps
	Decay  int     `json:"decay"`  // steps of wsd's decay, at the end; a tenth of all when absent
}

// Optimizer holds the settings of the optimizer. AdamW's own are fields of the manifest.
type Optimizer struct {
	// Type is "adamw" (default), "muon" (for the layers' matrices; AdamW steps the rest) or "sgd".
	Type     string   `json:"type"`
	Momentum *float64 `json:"momentum"` // of muon (0.95 when absent) and sgd (0.9)
	Nesterov *bool    `json:"nesterov"` // of muon (true when absent) and sgd (false)
	// Iterations is the number of steps of Muon's Newton-Schulz iteration; 5 when absent.
	Iterations int `json:"iterations"`
	// Scale is "adamw" (default) or "original". With "adamw" Muon's steps are as large as AdamW's, so that
	// both take the same learning rate.
	Scale string `json:"scale"`
}

// ParameterRule changes how the parameters that a pattern matches are stepped. Absent fields change
// nothing. A tied head goes by the name of the embedding.
type ParameterRule struct {
	Match        string   `json:"match"`                   // * stands for any characters and ? for one
	Optimizer    string   `json:"optimizer,omitempty"`     // "adamw", "muon" or "sgd"
	LearningRate *float64 `json:"learning_rate,omitempty"` // multiplies the learning rate
	Decay        *float64 `json:"decay,omitempty"`         // replaces the weight decay
	Trainable    *bool    `json:"trainable,omitempty"`     // false freezes the parameters
}

// Dropout has rates from 0 to below 1.
type Dropout struct {
	Attention float64 `json:"attention,omitempty"` // of the softmax weights
	Residual  float64 `json:"residual,omitempty"`  // of the outputs of attention and feed-forward
	Embedding float64 `json:"embedding,omitempty"` // of the sum of the embeddings
}

// open converts the rates for the stages; nil if there are none.
func (d *Dropout) open() *shardv1.Dropout {
	if *d == (Dropout{}) {
		return nil
	}
	return &shardv1.Dropout{Attention: d.Attention, Residual: d.Residual, Embedding: d.Embedding}
}

// The values of Manifest.Recompute.
const (
	recomputeNone   = "none"
	recomputeLayers = "layers"
)

// maxDropout is the largest rate of dropout.
const maxDropout = 0.99

// maxSlotTokens bounds a slot so that its ids and targets fit into a message of 4 MiB.
const maxSlotTokens = 1 << 19

// ParseManifest reads a manifest. Errors name the unknown field, or the field whose value is
// out of bounds.
func ParseManifest(text []byte) (*Manifest, error) {
	m := &Manifest{Betas: [2]float64{0.9, 0.95}, Epsilon: 1e-8, Schedule: "1f1b", CheckpointEvery: 500, KeepLast: 2,
		KeepBest: 1, DType: "F32",
		Precision: "F32"}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fault.Field("manifest", "byte %d: %v", syntax.Offset, err)
		}
		return nil, fault.Field("manifest", "%v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fault.Field("manifest", "byte %d: more than one JSON value", d.InputOffset())
	}
	if m.Model.Context == 0 && m.Model.short() {
		m.Model.Context = m.SequenceLen
	}
	if m.Model.FF == 0 {
		m.Model.FF = 4 * m.Model.Width
	}
	m.setDefaults()
	m.setGradientDefaults()
	if m.Spans == 0 {
		m.Spans = schedule.DefaultSpans(m.Schedule)
	}
	if m.CheckpointEvery == 0 {
		m.CheckpointEvery = 500
	}
	return m, m.check()
}

// setDefaults sets the defaults that depend on other fields.
func (m *Manifest) setDefaults() {
	r, o := &m.LearningRate, &m.Optimizer
	if len(m.Data.Tokens) > 0 {
		m.Vocabulary.Type = cmp.Or(m.Vocabulary.Type, vocabularyTokens)
		m.Data.Packing = cmp.Or(m.Data.Packing, corpus.PackConcat)
	}
	if m.Data.Examples != "" || m.Data.Pairs != "" || m.Data.Prompts != "" {
		m.Vocabulary.Type = cmp.Or(m.Vocabulary.Type, vocabModel)
		m.Data.Packing, m.Data.Isolate = cmp.Or(m.Data.Packing, corpus.PackBestFit), true
	}
	m.setObjectiveDefaults()
	r.Type, o.Type = cmp.Or(r.Type, optim.RateCosine), cmp.Or(o.Type, optim.NameAdamW)
	if r.Type == optim.RateWSD && r.Decay == 0 {
		r.Decay = (m.Steps + 9) / 10
	}
	defaults := optim.DefaultMuon()
	momentum, nesterov := defaults.Momentum, defaults.Nesterov
	if o.Type == optim.NameSGD {
		momentum, nesterov = 0.9, false
	}
	if o.Momentum == nil {
		o.Momentum = &momentum
	}
	if o.Nesterov == nil {
		o.Nesterov = &nesterov
	}
	o.Iterations, o.Scale = cmp.Or(o.Iterations, defaults.Iterations), cmp.Or(o.Scale, scaleAdamW)
}

// The names of the sizes of Muon's steps.
const (
	scaleAdamW    = "adamw"
	scaleOriginal = "original"
)

// optim returns how the parameters are stepped.
func (m *Manifest) optim() optim.Config {
	o := &m.Optimizer
	out := optim.Config{
		Name:  o.Type,
		AdamW: optim.AdamW{Beta1: m.Betas[0], Beta2: m.Betas[1], Epsilon: m.Epsilon},
		Muon: optim.Muon{Momentum: *o.Momentum, Nesterov: *o.Nesterov, Iterations: o.Iterations,
			MatchAdamW: o.Scale == scaleAdamW},
		SGD:   optim.SGD{Momentum: *o.Momentum, Nesterov: *o.Nesterov},
		Decay: m.Decay, DecayMatricesOnly: m.DecayMatricesOnly,
	}
	for _, r := range m.Parameters {
		out.Rules = append(out.Rules, optim.Rule{Match: r.Match, Optimizer: r.Optimizer, Rate: r.LearningRate,
			Decay: r.Decay, Trainable: r.Trainable})
	}
	return out
}

// checkOptimizer checks the optimizer, the learning rate and the rules for parameters.
func (m *Manifest) checkOptimizer() error {
	if err := m.rate().Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "learning_rate")
	}
	if s := m.Optimizer.Scale; s != scaleAdamW && s != scaleOriginal {
		return fault.Field("optimizer.scale", "%q is neither %s nor %s", s, scaleAdamW, scaleOriginal)
	}
	config := m.optim()
	return config.Check()
}

// checkParameters checks the rules for parameters.
func (m *Manifest) checkParameters(spec *model.Spec, low *lowRank) error {
	config := m.optim()
	if low != nil {
		return config.CheckNames(low.names)
	}
	params, err := spec.Parameters()
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "model")
	}
	var all []optim.Parameter
	for _, p := range params {
		all = append(all, optim.Parameter{Name: p.Owner(), Shape: p.Shape, Hidden: spec.Hidden(p.Name)})
	}
	return config.CheckNames(all)
}

func (m *Manifest) check() error {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`).MatchString(m.Name) {
		return fault.Field("name", "%q: want at most 64 letters, digits, '.', '_' and '-'", m.Name)
	}
	for _, f := range []struct {
		name     string
		v        int
		min, max int
	}{
		{"slots", m.Slots, 1, 4096}, {"slot_sequences", m.SlotSequences, 1, 65536},
		{"sequence_len", m.SequenceLen, 1, 65536},
		{"steps", m.Steps, 1, 1 << 30}, {"evaluate_every", m.EvaluateEvery, 0, 1 << 30},
		{"checkpoint_every", m.CheckpointEvery, 1, 1 << 30}, {"keep_last", m.KeepLast, 1, 1000},
		{"keep_best", m.KeepBest, 0, 1000},
		{"learning_rate.warmup", m.LearningRate.Warmup, 0, 1 << 30},
	} {
		if f.v < f.min || f.v > f.max {
			return fault.Field(f.name, "%d is not within %d..%d", f.v, f.min, f.max)
		}
	}
	for _, f := range []struct {
		name     string
		v        float64
		min, max float64
	}{
		{"learning_rate.max", m.LearningRate.Max, 0, 10},
		{"learning_rate.min", m.LearningRate.Min, 0, m.LearningRate.Max},
		{"dropout.attention", m.Dropout.Attention, 0, maxDropout}, {"dropout.residual", m.Dropout.Residual, 0, maxDropout},
		{"dropout.embedding", m.Dropout.Embedding, 0, maxDropout},
		{"clip", m.Clip, 0, 1e9}, {"z_loss", m.ZLoss, 0, 1}, {"data.validation_fraction", m.Data.ValidationFraction, 0, 0.9},
	} {
		if !(f.v >= f.min && f.v <= f.max) {
			return fault.Field(f.name, "%v is not within %v..%v", f.v, f.min, f.max)
		}
	}
	if n := m.SlotSequences * m.SequenceLen; n > maxSlotTokens {
		return fault.Field("slot_sequences", "%d sequences of %d tokens exceed the %d tokens of a message",
			m.SlotSequences, m.SequenceLen, maxSlotTokens)
	}
	switch m.Vocabulary.Type {
	case "char", vocabModel, vocabularyTokens:
	case "bpe":
		if m.Vocabulary.Size < 257 || m.Vocabulary.Size > 1<<20 {
			return fault.Field("vocabulary.size", "%d is not within 257..%d", m.Vocabulary.Size, 1<<20)
		}
	default:
		return fault.Field("vocabulary.type", "%q is none of char, bpe, model and tokens", m.Vocabulary.Type)
	}
	if err := (schedule.Config{Name: m.Schedule, Stages: 1, Spans: m.Spans, Micro: m.Slots}).Check(); err != nil {
		return err
	}
	if m.DType != tensor.F32.String() && m.DType != tensor.BF16.String() {
		return fault.Field("dtype", "%q is neither F32 nor BF16", m.DType)
	}
	if m.Precision != tensor.F32.String() && m.Precision != tensor.BF16.String() {
		return fault.Field("precision", "%q is neither F32 nor BF16", m.Precision)
	}
	if m.Recompute != "" && m.Recompute != recomputeNone && m.Recompute != recomputeLayers {
		return fault.Field("recompute", "%q is neither %s nor %s", m.Recompute, recomputeNone, recomputeLayers)
	}
	if _, err := template.Parse(m.ChatTemplate); err != nil {
		return fault.Field("chat_template", "%v", err)
	}
	if err := m.Samples.check(); err != nil {
		return err
	}
	if err := m.Data.check(m.Vocabulary.Type); err != nil {
		return err
	}
	if err := m.checkObjective(); err != nil {
		return err
	}
	if err := m.checkGradients(); err != nil {
		return err
	}
	if err := m.checkSpikes(); err != nil {
		return err
	}
	if err := m.checkOptimizer(); err != nil {
		return err
	}
	if err := m.checkAdapter(); err != nil {
		return err
	}
	if err := m.checkPublish(); err != nil {
		return err
	}
	return m.checkModel()
}

// vocabularyTokens is the type of a vocabulary that token data brings along.
const vocabularyTokens = "tokens"

// maxFolders bounds the folders of token data, all of which stay open.
const maxFolders = 1024

// check checks the data. Folders are checked when they are opened.
func (d *Data) check(vocabulary string) error {
	field, samples := "", 0
	for _, f := range []struct{ name, path string }{{"data.prompts", d.Prompts}, {"data.pairs", d.Pairs},
		{"data.examples", d.Examples}} {
		if f.path != "" {
			field, samples = f.name, samples+1
		}
	}
	if samples > 0 {
		switch {
		case d.Text != "" || len(d.More) > 0 || len(d.Tokens) > 0 || samples > 1:
			return fault.Field(field, "excludes texts, token data and other samples")
		case vocabulary != vocabModel:
			return fault.Field("vocabulary.type", "%q: %s are encoded with the vocabulary of a model", vocabulary, field)
		case d.Packing != corpus.PackBestFit && d.Packing != packExamples:
			return fault.Field("data.packing", "%q is neither %s nor %s", d.Packing, corpus.PackBestFit, packExamples)
		}
		return nil
	}
	if len(d.Tokens) == 0 {
		switch {
		case vocabulary == vocabularyTokens:
			return fault.Field("vocabulary.type", "%q is for data.tokens only", vocabulary)
		case d.Text == "":
			return fault.Field("data.text", "want the name of a text file, or data.tokens")
		case d.Packing != "":
			return fault.Field("data.packing", "%q is for data.tokens only", d.Packing)
		case d.Isolate:
			return fault.Field("data.isolate", "it is for data.tokens only")
		}
		return nil
	}
	if vocabulary != vocabularyTokens && vocabulary != vocabModel {
		return fault.Field("vocabulary.type", "%q: token data has its own vocabulary", vocabulary)
	}
	if d.Text != "" || len(d.More) > 0 {
		return fault.Field("data.text", "want either texts or data.tokens")
	}
	if n := len(d.Tokens) + len(d.Validation); n > maxFolders {
		return fault.Field("data.tokens", "%d folders, at most %d are allowed", n, maxFolders)
	}
	if d.Packing != corpus.PackConcat && d.Packing != corpus.PackBestFit {
		return fault.Field("data.packing", "%q is neither %s nor %s", d.Packing, corpus.PackConcat, corpus.PackBestFit)
	}
	for i, t := range d.Tokens {
		if t.Path == "" {
			return fault.Field(fmt.Sprintf("data.tokens[%d].path", i), "want a folder of token data")
		}
	}
	return nil
}

// spans returns the number of layer ranges of each stage. A lone stage waits for nobody, so it has one.
func (m *Manifest) spans(stages int) int {
	if stages == 1 {
		return 1
	}
	return m.Spans
}

// rate returns the learning-rate schedule.
func (m *Manifest) rate() optim.Rate {
	r := &m.LearningRate
	return optim.Rate{Name: r.Type, Max: r.Max, Min: r.Min, Warmup: r.Warmup, Decay: r.Decay, Total: m.Steps}
}

// String names the run for logs.
func (m *Manifest) String() string { return fmt.Sprintf("run %s", m.Name) }

// files lists the fields that name files or folders of the trainer's machine.
func (m *Manifest) files() []fileField {
	var out []fileField
	switch {
	case m.Data.Examples != "":
		out = append(out, fileField{"data.examples", &m.Data.Examples})
	case m.Data.Pairs != "":
		out = append(out, fileField{"data.pairs", &m.Data.Pairs})
	case m.Data.Prompts != "":
		out = append(out, fileField{"data.prompts", &m.Data.Prompts})
	case len(m.Data.Tokens) == 0:
		out = append(out, fileField{"data.text", &m.Data.Text})
	}
	for i := range m.Data.More {
		out = append(out, fileField{fmt.Sprintf("data.more[%d]", i), &m.Data.More[i]})
	}
	for i := range m.Data.Tokens {
		out = append(out, fileField{fmt.Sprintf("data.tokens[%d].path", i), &m.Data.Tokens[i].Path})
	}
	for i := range m.Data.Validation {
		out = append(out, fileField{fmt.Sprintf("data.validation[%d]", i), &m.Data.Validation[i]})
	}
	return out
}

// fileField is a field of a manifest that names a file or a folder.
type fileField struct {
	name string
	path *string
}

// resolve replaces the names of files by their real paths.
func (m *Manifest) resolve(p paths) error {
	for _, f := range m.files() {
		path, err := p.resolve(f.name, *f.path)
		if err != nil {
			return err
		}
		*f.path = path
	}
	return nil
}
