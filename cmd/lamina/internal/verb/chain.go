package verb

import (
	"errors"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// KernelFlags choose a kernel set.
type KernelFlags struct {
	Kernels string `help:"Kernel set: cpu or ref." enum:"cpu,ref" default:"cpu"`
	Threads int    `help:"Threads of the kernel set; 0 is one a processor." default:"0"`
	KVType  string `name:"kv-type" help:"What caches store keys and values as: f32, f16, q8 or auto: on cpu f16, but f32 for models narrower than 576." enum:"auto,f32,f16,q8" default:"auto"`
	// All instructions give the same bits: the flag is for comparing them.
	Instructions string `help:"Instructions of the cpu set: amx, avx512, avx2 or portable; the fastest that the machine has when absent."`
}

// Chain is a whole model as stages one after another in this process, with a
// cache each and without a service between them: what the measuring verbs run.
type Chain struct {
	Stages []*model.Stage[float32]
	caches []*kvcache.Cache[float32]
}

// LoadChain cuts an open model into stages. Positions is how many the caches hold,
// over all sequences, each of which starts a page of its own.
func LoadChain(f *model.Files, stages, sequences, positions int, set kernel.Set[float32], o model.LoadOptions) (*Chain, error) {
	if stages < 1 || stages > len(f.Spec.Layers) {
		return nil, fault.Field("stages", "%d stages: %s has %d layers, a stage takes one or more", stages, f.Path, len(f.Spec.Layers))
	}
	c := &Chain{}
	for _, r := range model.Split(len(f.Spec.Layers), stages) {
		s, err := model.Load(f, r, set, o)
		if err != nil {
			return nil, err
		}
		c.Stages = append(c.Stages, s)
		pages := sequences * ((positions + kvcache.DefaultPageLen - 1) / kvcache.DefaultPageLen)
		c.caches = append(c.caches, kvcache.New(s.CacheConfig(pages), s.Kernels()))
	}
	return c, nil
}

// Sequence is one sequence's end in every stage's cache.
type Sequence []*kvcache.Sequence[float32]

func (c *Chain) NewSequence() Sequence {
	var s Sequence
	for _, cache := range c.caches {
		s = append(s, cache.NewSequence())
	}
	return s
}

func (s Sequence) Free() {
	for _, stage := range s {
		stage.Free()
	}
}

func (s Sequence) Len() int { return s[0].Len() }

// Entry is the next ids of a sequence, of which the last few want logits.
type Entry struct {
	Seq    Sequence
	IDs    []int32
	Logits int
}

// Forward takes the entries through every stage and returns the logits, which
// stand until the next call.
func (c *Chain) Forward(entries ...Entry) ([]float32, error) {
	var ids []int32
	for _, e := range entries {
		ids = append(ids, e.IDs...)
	}
	var out []float32
	for i, s := range c.Stages {
		b := &model.Batch[float32]{Entries: make([]model.Entry[float32], len(entries))}
		for j, e := range entries {
			b.Entries[j] = model.Entry[float32]{Seq: e.Seq[i], Pos: e.Seq[i].Len(), Rows: len(e.IDs), Logits: e.Logits}
		}
		if s.First() {
			b.IDs = ids
		} else {
			b.Hidden = out
		}
		var err error
		if out, err = s.Forward(b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// CheckIDs reports the first id that the model lacks, and more ids than it has
// positions for.
func CheckIDs(ids []int32, f *model.Files) error {
	if len(ids) > f.Spec.Context {
		return fault.Field("ids", "%d ids: the context of %s is %d", len(ids), f.Path, f.Spec.Context)
	}
	for i, id := range ids {
		if int(id) >= f.Spec.Vocab {
			return fault.Field("ids", "id %d at %d: the vocabulary of %s has %d", id, i, f.Path, f.Spec.Vocab)
		}
	}
	return nil
}

// WithModel opens a model and a kernel set, runs body and closes both.
func WithModel(path string, k KernelFlags, body func(*model.Files, kernel.Set[float32]) error) error {
	set, closeSet, err := k.KernelSet()
	if err != nil {
		return err
	}
	defer closeSet()
	f, err := model.Open(path)
	if err != nil {
		return err
	}
	err = body(f, set)
	return errors.Join(err, f.Close())
}
