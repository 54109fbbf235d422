package verb

import (
	"errors"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// KernelFlags choose and configure a kernel set.
type KernelFlags struct {
	Kernels string `help:"Kernel set: cpu or ref." enum:"cpu,ref" default:"cpu"`
	Device  string `help:"Device that computes: cpu, or cuda:N for an NVIDIA GPU, which lamina-cuda beside this program runs on." default:"cpu"`
	Threads int    `help:"Number of threads of the kernel set; 0 means one for each processor." default:"0"`
	KVType  string `name:"kv-type" help:"Element type of the KV cache: f32, f16, q8 or auto. On cpu, auto means f16, but f32 for models whose width is below 576." enum:"auto,f32,f16,q8" default:"auto"`
	// DeviceMemory bounds the bytes that are allocated on a GPU; 0 means what is free there.
	DeviceMemory int64 `kong:"-"`
	// The results are bit-identical for all instruction sets. The flag is for comparing their speed.
	Instructions string `help:"Instruction set of the cpu kernels: amx, avx512, avx2 or portable. Default: the fastest that the machine has."`
}

// Chain is a complete model, split into stages in this process. Each stage has a KV cache, and there
// are no services in between. Commands that measure a model use it.
type Chain struct {
	Stages []*model.Stage[float32]
	caches []*kvcache.Cache[float32]
}

// LoadChain splits an open model into stages. Each cache has room for the given number of sequences
// of the given number of positions.
func LoadChain(f *model.Files, stages, sequences, positions int, set kernel.Set[float32], o model.LoadOptions) (*Chain,
	error) {
	if stages < 1 || stages > len(f.Spec.Layers) {
		return nil, fault.Field("stages", "%d stages: %s has %d layers, and each stage needs one or more", stages,
			f.Path, len(f.Spec.Layers))
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

// Sequence is a sequence in the caches of all stages.
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

// Entry holds the next ids of a sequence. Logits is the number of ids, counted from the end, for
// which logits are computed.
type Entry struct {
	Seq    Sequence
	IDs    []int32
	Logits int
}

// Forward runs the entries through all stages and returns the logits, which are valid until the
// next call.
func (c *Chain) Forward(entries ...Entry) ([]float32, error) { return c.forward(false, entries) }

// Embed returns an embedding for each of the texts, given by their ids.
func (c *Chain) Embed(texts [][]int32, p model.Pooling) ([][]float32, error) {
	var entries []Entry
	for _, ids := range texts {
		s := c.NewSequence()
		defer s.Free()
		entries = append(entries, Entry{Seq: s, IDs: ids, Logits: len(ids)})
	}
	hidden, err := c.forward(true, entries)
	if err != nil {
		return nil, err
	}
	width := c.Stages[0].Spec.Width
	out := make([][]float32, len(texts))
	for i, ids := range texts {
		out[i] = model.Pool(p, hidden[:len(ids)*width], width)
		hidden = hidden[len(ids)*width:]
	}
	return out, nil
}

func (c *Chain) forward(features bool, entries []Entry) ([]float32, error) {
	var ids []int32
	for _, e := range entries {
		ids = append(ids, e.IDs...)
	}
	var out []float32
	for i, s := range c.Stages {
		b := &model.Batch[float32]{Entries: make([]model.Entry[float32], len(entries)), Features: features}
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

// CheckIDs returns an error if there are more ids than the context length or if an id is not in the
// vocabulary of the model.
func CheckIDs(ids []int32, f *model.Files) error {
	if len(ids) > f.Spec.Context {
		return fault.Field("ids", "%d ids: the context length of %s is %d", len(ids), f.Path, f.Spec.Context)
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
