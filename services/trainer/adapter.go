package trainer

import (
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Adapter makes a run train a low-rank adapter in place of the parameters of the model that it starts from.
type Adapter struct {
	Rank    int     `json:"rank,omitempty"`    // 16 when absent
	Alpha   float64 `json:"alpha,omitempty"`   // twice the rank when absent
	Dropout float64 `json:"dropout,omitempty"` // of the adapters' inputs
	RSLoRA  bool    `json:"rslora,omitempty"`  // scale by alpha/sqrt(rank)
	DoRA    bool    `json:"dora,omitempty"`    // train the lengths of rows, too

	// TargetModules chooses matrices as in PEFT: a list of ends of names, a regular expression, or "all-linear"
	// (default), which stands for all matrices of the layers.
	TargetModules  json.RawMessage `json:"target_modules,omitempty"`
	ExcludeModules json.RawMessage `json:"exclude_modules,omitempty"`
	Layers         []int           `json:"layers,omitempty"` // absent for all
	// ModulesToSave are modules, such as "lm_head" and "embed_tokens", whose weights are trained whole and saved with
	// the adapter, as in PEFT.
	ModulesToSave []string `json:"modules_to_save,omitempty"`

	// From is the folder of an adapter to go on from. It fixes everything above but the dropout.
	From string `json:"from,omitempty"`
	// Base is "stored" (default for GGUF files), which uses the weights of the base in the types that they are
	// stored in, or "F32" (default for Hugging Face folders), which decodes them.
	Base string `json:"base,omitempty"`
}

// The values of Adapter.Base.
const (
	baseStored = "stored"
	baseF32    = "F32"
)

// check checks the section. Files are checked when they are opened.
func (m *Manifest) checkAdapter() error {
	a := m.Adapter
	if a == nil {
		return nil
	}
	switch {
	case m.Model.From == "":
		return fault.Field("adapter", "is for a model that starts from files (model.from)")
	case m.DiLoCo != nil:
		return fault.Field("adapter", "excludes diloco")
	case a.Base != "" && a.Base != baseStored && a.Base != baseF32:
		return fault.Field("adapter.base", "%q is neither %s nor %s", a.Base, baseStored, baseF32)
	case a.From != "" && (a.Rank != 0 || a.Alpha != 0 || a.TargetModules != nil || a.ExcludeModules != nil ||
		a.Layers != nil || a.ModulesToSave != nil || a.RSLoRA || a.DoRA):
		return fault.Field("adapter.from", "the adapter fixes rank, alpha and modules")
	case !(a.Dropout >= 0 && a.Dropout <= maxDropout):
		return fault.Field("adapter.dropout", "%v is not within 0..%v", a.Dropout, maxDropout)
	}
	if a.From != "" {
		return nil
	}
	_, err := a.config()
	return err
}

// config returns the section as PEFT has it.
func (a *Adapter) config() (*adapter.Config, error) {
	fields := map[string]any{"r": a.Rank, "lora_alpha": a.Alpha, "lora_dropout": a.Dropout, "use_rslora": a.RSLoRA,
		"use_dora": a.DoRA, "target_modules": adapter.AllLinear}
	if a.Rank == 0 {
		fields["r"] = 16
	}
	if a.Alpha == 0 {
		fields["lora_alpha"] = 2 * fields["r"].(int)
	}
	if a.TargetModules != nil {
		fields["target_modules"] = a.TargetModules
	}
	if a.ExcludeModules != nil {
		fields["exclude_modules"] = a.ExcludeModules
	}
	if a.Layers != nil {
		fields["layers_to_transform"] = a.Layers
	}
	if a.ModulesToSave != nil {
		fields["modules_to_save"] = a.ModulesToSave
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return nil, fault.Field("adapter", "%v", err)
	}
	c, err := adapter.ParseConfig(text)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "adapter")
	}
	return c, nil
}

// checkSaved refuses objectives for an adapter with modules_to_save, of which there are so many parameters: the stages
// that train them have no base left that an objective compares with.
func (m *Manifest) checkSaved(params int) error {
	if params > 0 && m.Objective != "" {
		return fault.Field("adapter.modules_to_save", "the objective %s excludes it", m.Objective)
	}
	return nil
}

// lowRank is what a run's adapter is, with the files read that the manifest names.
type lowRank struct {
	config *adapter.Config
	from   string // folder of the initial values; "" for those of a new adapter
	stored bool
	pairs  func(module string) bool // see model.Spec.Pairs
	names  []optim.Parameter
	saved  []string // parameters of modules_to_save
	untied bool     // the embedding and the head that the model ties are two, since one of them is saved
}

// adapter reads what the section names. files are those of the base.
func (b *blueprint) openAdapter(allowed PathRule, files *model.Files) error {
	a := b.manifest.Adapter
	if a == nil {
		return nil
	}
	out := &lowRank{stored: a.Base == baseStored || a.Base == "" && files.GGUF() != nil,
		pairs: func(string) bool { return false }}
	if out.stored {
		out.pairs = files.Spec.Pairs
	}
	var made *adapter.Adapter
	var err error
	if a.From != "" {
		if out.from, err = allowed("adapter.from", a.From); err != nil {
			return pathFault(err, "adapter.from")
		}
		if made, err = adapter.Open(out.from); err == nil {
			err = b.fixed.CheckAdapter(made)
		}
		if err != nil {
			return pathFault(err, "adapter.from")
		}
		if out.from, err = filepath.Abs(out.from); err != nil {
			return err
		}
		made.Dropout = a.Dropout
		out.config = &made.Config
	} else {
		if out.config, err = a.config(); err != nil {
			return err
		}
		if made, err = b.fixed.NewAdapterFor(*out.config, 0); err != nil {
			return err
		}
	}
	for _, m := range made.Modules {
		parts := map[adapter.Part][]int{adapter.A: {m.Rank, m.In}, adapter.B: {m.Out, m.Rank}}
		if m.Embeds {
			parts = map[adapter.Part][]int{adapter.EmbedA: {m.In, m.Rank}, adapter.EmbedB: {m.Out, m.Rank}}
		}
		if out.config.DoRA {
			parts[adapter.Magnitude] = []int{m.Out}
		}
		for part, shape := range parts {
			name := adapter.Name(m.Name, part)
			out.names = append(out.names, optim.Parameter{Name: name, Shape: shape, Hidden: b.fixed.Hidden(name)})
		}
	}
	saved, err := b.fixed.SavedParams(out.config)
	if err != nil {
		return err
	}
	if err := b.manifest.checkSaved(len(saved)); err != nil {
		return err
	}
	for _, p := range saved {
		out.saved = append(out.saved, p.Name)
		out.names = append(out.names, optim.Parameter{Name: p.Name, Shape: p.Shape, Hidden: b.fixed.Hidden(p.Name)})
	}
	out.untied = b.fixed.Head.Tied && !b.fixed.WithSaved(out.config.Saves).Head.Tied
	slices.SortFunc(out.names, func(x, y optim.Parameter) int { return strings.Compare(x.Name, y.Name) })
	out.config.Base = b.manifest.Model.From
	b.lowRank = out
	return nil
}

// isUntied returns untied; false if the run has no adapter.
func (l *lowRank) isUntied() bool { return l != nil && l.untied }

// open returns the adapter as stages are told; nil if the run has none.
func (l *lowRank) open() (*shardv1.TrainAdapter, error) {
	if l == nil {
		return nil, nil
	}
	config, err := l.config.JSON()
	if err != nil {
		return nil, err
	}
	out := &shardv1.TrainAdapter{ConfigJson: config, StoredBase: l.stored}
	if l.from != "" {
		digest, err := adapter.Digest(l.from)
		if err != nil {
			return nil, pathFault(err, "adapter.from")
		}
		out.Initial = &shardv1.InitialWeights{Path: l.from, Digest: digest}
	}
	return out, nil
}

// adapterDir is the folder of the trained adapter in the folder of the run.
const adapterDir = "adapter"

// adapter returns the adapter of the last checkpoint.
func (t *training) adapter() (*adapter.Adapter, error) {
	l := t.run.plan.lowRank
	out := &adapter.Adapter{Config: *l.config, BaseDigest: t.initial.GetDigest()}
	modules := map[string]*adapter.Module{}
	for _, f := range t.last.Files {
		if f.Kind != checkpoint.Weight {
			continue
		}
		for _, w := range f.Tensors {
			name, part, ok := adapter.Split(w.Name)
			if !ok && !slices.Contains(l.saved, w.Name) {
				return nil, fault.New(fault.Internal, "read adapter: %s is not a tensor of an adapter", w.Name)
			}
			values, err := t.readTensor(f.Kind, w)
			if err != nil {
				return nil, err
			}
			if !ok {
				module := strings.TrimSuffix(strings.TrimSuffix(w.Name, ".weight"), ".bias")
				values, shape := t.spec.AsSaved(w.Name, values, w.Shape, l.pairs(module))
				out.Saved = append(out.Saved, adapter.Saved{Name: w.Name, Shape: shape, Data: values})
				continue
			}
			m := modules[name]
			if m == nil {
				rank, scale := l.config.For(name)
				m = &adapter.Module{Name: name, Rank: rank, Scale: scale}
				modules[name] = m
			}
			headDim := t.spec.Layers[0].Attention.HeadDim
			switch part {
			case adapter.A:
				m.A, m.In = values, w.Shape[1]
			case adapter.EmbedA: // [V,r] in training
				m.In, m.Embeds = w.Shape[0], true
				m.A = make([]float32, len(values))
				for v := range m.In {
					for r := range m.Rank {
						m.A[r*m.In+v] = values[v*m.Rank+r]
					}
				}
			case adapter.B, adapter.EmbedB:
				m.B, m.Out = values, w.Shape[0]
				if l.pairs(name) {
					m.B = model.Unpair(values, m.Rank, headDim)
				}
			case adapter.Magnitude:
				m.Magnitude = values
				if l.pairs(name) {
					m.Magnitude = model.Unpair(values, 1, headDim)
				}
			}
		}
	}
	for _, m := range modules {
		out.Modules = append(out.Modules, *m)
	}
	slices.SortFunc(out.Modules, func(x, y adapter.Module) int { return strings.Compare(x.Name, y.Name) })
	slices.SortFunc(out.Saved, func(x, y adapter.Saved) int { return strings.Compare(x.Name, y.Name) })
	return out, nil
}

// exportAdapter writes the adapter of the last checkpoint as a folder in PEFT's layout.
func (t *training) exportAdapter() error {
	out, err := t.adapter()
	if err != nil {
		return err
	}
	dir := filepath.Join(t.run.dir, adapterDir)
	if err := adapter.Write(dir, out); err != nil {
		return err
	}
	if err := weights.WriteFile(filepath.Join(dir, "manifest.json"), func(w io.Writer) error {
		_, err := w.Write(t.run.raw)
		return err
	}); err != nil {
		return err
	}
	t.run.update(func(s *trainerv1.Run) { s.ModelPath, s.WeightsDigest = dir, t.last.Weights })
	return nil
}

// readTensor reads a tensor of the last checkpoint and verifies it.
func (t *training) readTensor(kind string, w checkpoint.Tensor) (_ []float32, err error) {
	if err := t.last.Read(kind, w.Name, func([]byte) error { return nil }); err != nil {
		return nil, err
	}
	r, err := t.last.OpenTensor(kind, w.Name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	n := 1
	for _, d := range w.Shape {
		n *= d
	}
	raw := make([]byte, 4*n)
	if _, err := r.ReadAt(raw, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	out := make([]float32, n)
	tensor.F32LE(out, raw)
	return out, nil
}
