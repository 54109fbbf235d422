package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type inspectCmd struct {
	File   string `arg:"" type:"model" help:"GGUF file, safetensors file, Hugging Face folder, folder of token data, or folder of a training run."`
	Digest bool   `help:"Also print the digest, for which the whole model is read. Token data is compared with its digests."`
	Verify bool   `help:"Read all checkpoints of a training run and compare them with their digests. The exit code says if one is damaged."`
	Format string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// inspection is what --format json prints. It has no config or vocabulary if the file has none. If
// this build cannot read one of them, it has the error instead.
type inspection struct {
	Path            string          `json:"path"`
	Format          string          `json:"format"` // "gguf", "safetensors" or "huggingface"
	Digest          string          `json:"digest,omitempty"`
	Parameters      int64           `json:"parameters"` // elements of all tensors
	Bytes           int64           `json:"bytes"`      // of all tensors
	Types           map[string]int  `json:"types"`      // tensors of each type
	Config          *inspectConfig  `json:"config,omitempty"`
	ConfigError     string          `json:"config_error,omitempty"`
	Vocabulary      *inspectVocab   `json:"vocabulary,omitempty"`
	VocabularyError string          `json:"vocabulary_error,omitempty"`
	Metadata        map[string]any  `json:"metadata,omitempty"` // lists are given by their lengths
	Tensors         []inspectTensor `json:"tensors"`
}

type inspectConfig struct {
	Architecture string   `json:"architecture"`
	Layers       int      `json:"layers"`
	Width        int      `json:"width"`
	Heads        int      `json:"heads"`
	KVHeads      int      `json:"kv_heads"`
	HeadDim      int      `json:"head_dim"`
	FF           int      `json:"ff"`
	Vocab        int      `json:"vocab"`
	Context      int      `json:"context"`
	NormEps      float64  `json:"norm_eps"`
	TiedHead     bool     `json:"tied_head"`
	Positions    string   `json:"positions"` // "learned", "none", or the rope type
	RopeBase     float64  `json:"rope_base,omitempty"`
	Window       int      `json:"window,omitempty"`
	Unused       []string `json:"unused,omitempty"` // parts of a multimodal model that are not loaded
}

type inspectVocab struct {
	Family          string  `json:"family"`
	Size            int     `json:"size"`
	BOS             *int32  `json:"bos,omitempty"`
	EOS             *int32  `json:"eos,omitempty"`
	AddBOS          bool    `json:"add_bos"`
	EndOfGeneration []int32 `json:"end_of_generation"`
	ChatTemplate    string  `json:"chat_template,omitempty"`
}

type inspectTensor struct {
	Name  string `json:"name"`
	DType string `json:"dtype"`
	Shape []int  `json:"shape"` // outermost first
	Bytes int64  `json:"bytes"`
}

// Run prints the metadata of a file. Without --digest it reads no weights.
func (c *inspectCmd) Run(e *verb.Env) error {
	if _, err := os.Stat(filepath.Join(c.File, corpus.IndexName)); err == nil {
		return c.tokens(e)
	}
	if _, err := os.Stat(filepath.Join(c.File, checkpoint.Name)); err == nil {
		return c.checkpoints(e)
	}
	r, err := inspectPath(c.File)
	if err != nil {
		return err
	}
	if c.Digest {
		if r.Digest, err = weights.Digest(c.File); err != nil {
			return err
		}
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	return r.print(e.Stdout)
}

// tokens prints what token data holds.
func (c *inspectCmd) tokens(e *verb.Env) error {
	d, err := corpus.Open(c.File)
	if err != nil {
		return err
	}
	defer d.Close()
	if c.Digest {
		if err := d.Verify(); err != nil {
			return err
		}
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, d.Index)
	}
	return printTokens(e.Stdout, c.File, d.Index)
}

// inspectPath reads a model file or folder. It also works for models of architectures that this
// build does not support.
func inspectPath(path string) (*inspection, error) {
	at, err := weights.Locate(path)
	if err != nil {
		return nil, err
	}
	stat, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	r := &inspection{Path: path, Format: "safetensors", Types: map[string]int{}}
	switch {
	case at.Format == weights.FormatGGUF:
		r.Format = "gguf"
		g, err := weights.OpenGGUF(path)
		if err != nil {
			return nil, err
		}
		r.readMeta(g.Meta())
		if f, err := model.FromGGUF(g, path); err != nil {
			r.ConfigError = err.Error()
		} else {
			r.Config = describeConfig(f.Spec)
		}
		if g.Meta().Has("tokenizer.ggml.model") {
			r.readVocab(path)
		}
		return r, errors.Join(r.readTensors(g), g.Close())
	case stat.IsDir():
		r.Format = "huggingface"
		if text, err := os.ReadFile(filepath.Join(path, "config.json")); err == nil {
			r.readConfig(text)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if _, err := os.Stat(filepath.Join(path, "tokenizer.json")); err == nil {
			r.readVocab(path)
		}
	}
	s, err := weights.OpenSafetensors(path)
	if err != nil {
		return nil, err
	}
	for key, value := range s.Metadata() {
		r.setMeta(key, value)
	}
	return r, errors.Join(r.readTensors(s), s.Close())
}

func (r *inspection) readConfig(text []byte) {
	c, err := model.ParseHF(text)
	if err != nil {
		r.ConfigError = err.Error()
		return
	}
	r.Config = describeConfig(c)
}

func (r *inspection) readVocab(path string) {
	v, err := tokenizer.LoadVocab(path)
	if err != nil {
		r.VocabularyError = err.Error()
		return
	}
	r.Vocabulary = &inspectVocab{
		Family: v.Family(), Size: v.Size(), AddBOS: v.AddBOS(), EndOfGeneration: append([]int32{}, v.EOG()...),
		ChatTemplate: v.ChatTemplate(),
	}
	if id, ok := v.BOS(); ok {
		r.Vocabulary.BOS = &id
	}
	if id, ok := v.EOS(); ok {
		r.Vocabulary.EOS = &id
	}
}

func (r *inspection) readMeta(meta weights.Meta) {
	for _, key := range meta.Keys() {
		if value, ok := meta.Value(key); ok {
			r.setMeta(key, value)
		}
	}
}

// setMeta stores a value in a form that JSON can represent.
func (r *inspection) setMeta(key string, value any) {
	if r.Metadata == nil {
		r.Metadata = map[string]any{}
	}
	switch v := value.(type) {
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			value = fmt.Sprint(v)
		}
	case string, bool, int64, uint64:
	default:
		value = plural.Of(reflect.ValueOf(value).Len(), "value")
	}
	r.Metadata[key] = value
}

func (r *inspection) readTensors(s weights.Source) error {
	r.Tensors = []inspectTensor{}
	for _, name := range s.Names() {
		info, ok := s.Info(name)
		if !ok {
			return fmt.Errorf("describe tensor %s of %s: it is listed but does not exist", name, r.Path)
		}
		r.Tensors = append(r.Tensors,
			inspectTensor{Name: name, DType: info.DType.String(), Shape: slices.Clone(info.Shape), Bytes: info.Bytes})
		r.Parameters += int64(info.Elements())
		r.Bytes += info.Bytes
		r.Types[info.DType.String()]++
	}
	return nil
}

func describeConfig(c model.Spec) *inspectConfig {
	a, f := &c.Layers[0].Attention, &c.Layers[0].FFN
	out := &inspectConfig{
		Architecture: c.Architecture, Layers: len(c.Layers), Width: c.Width, Heads: a.Heads, KVHeads: a.KVHeads,
		HeadDim: a.HeadDim,
		FF:      f.Width, Vocab: c.Vocab, Context: c.Context, NormEps: c.Norm.Eps, TiedHead: c.Head.Tied,
		Window: c.Window(),
		Unused: c.Unused,
	}
	switch rope := c.Rope(); {
	case c.Embedding.Positions.Param != "":
		out.Positions = "learned"
	case rope == nil:
		out.Positions = "none"
	default:
		out.Positions, out.RopeBase = cmp.Or(rope.Type, "rope"), min(rope.Base, math.MaxFloat64) // JSON has no infinity
	}
	return out
}
