package trainer

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"

	"github.com/lamina-mesh/lamina/internal/configfile"
	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
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

	// MixClasses lets stages compute with different kernel classes, such as a GPU and a processor. The weights then
	// depend on which layers are computed where, and so on the layout. The replicas of a stage still have one class.
	MixClasses bool `json:"mix_classes,omitempty"`

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
	if err := configfile.JSON(text, m); err != nil {
		var about *fault.Error
		if errors.As(err, &about) && about.Field == "" {
			about.Field = "manifest"
		}
		return nil, err
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

// check returns the first error that it finds, which names the field.
func (m *Manifest) check() error {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`).MatchString(m.Name) {
		return fault.Field("name", "%q: want at most 64 letters, digits, '.', '_' and '-'", m.Name)
	}
	for _, check := range []func() error{
		m.checkNumbers, m.checkNames, m.Samples.check, m.checkData, m.checkObjective, m.checkGradients, m.checkSpikes,
		m.checkOptimizer, m.checkAdapter, m.checkPublish, m.checkModel,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// checkNumbers checks the bounds of numbers.
func (m *Manifest) checkNumbers() error {
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
	return nil
}

// checkNames checks fields that name one of several things.
func (m *Manifest) checkNames() error {
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
	return nil
}

// spans returns the number of layer ranges of each stage. A lone stage waits for nobody, so it has one.
func (m *Manifest) spans(stages int) int {
	if stages == 1 {
		return 1
	}
	return m.Spans
}

// String names the run for logs.
func (m *Manifest) String() string { return fmt.Sprintf("run %s", m.Name) }
