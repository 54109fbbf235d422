package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// PoolKind says which rows of the hidden state make the embedding of a text.
type PoolKind string

// The kinds of pooling.
const (
	PoolMean  PoolKind = "mean"  // the mean of all rows
	PoolFirst PoolKind = "first" // the row of the first token ("cls")
	PoolLast  PoolKind = "last"  // the row of the last token
)

// Pooling says how a model's hidden states become the embedding of a text.
type Pooling struct {
	Kind      PoolKind
	Normalize bool // scale embeddings to an L2 norm of 1
	MaxTokens int  // longer texts are truncated
}

// Pooling reads how the model's embeddings are pooled: from modules.json and the files that it names, as
// sentence-transformers writes them, or from a GGUF file's pooling_type. Models that do not say are pooled
// by the mean if they are encoders, otherwise by the last token, and are normalized.
func (f *Files) Pooling() (Pooling, error) {
	p := Pooling{Kind: PoolLast, Normalize: true, MaxTokens: f.Spec.Context}
	if f.Spec.Encoder() {
		p.Kind = PoolMean
	}
	if f.gguf != nil {
		return p, f.ggufPooling(&p)
	}
	return p, f.sentencePooling(&p)
}

func (f *Files) ggufPooling(p *Pooling) error {
	arch, _ := f.gguf.Meta().String("general.architecture")
	key := arch + ".pooling_type"
	kind, ok := f.gguf.Meta().Uint(key)
	if !ok {
		return nil
	}
	switch kind {
	case 0: // none: the file leaves it open
	case 1:
		p.Kind = PoolMean
	case 2:
		p.Kind = PoolFirst
	case 3:
		p.Kind = PoolLast
	default:
		return &UnsupportedError{key, fmt.Sprint(kind), "0 (none), 1 (mean), 2 (first), 3 (last)"}
	}
	return nil
}

// sentencePooling reads the files of sentence-transformers, if the folder has them.
func (f *Files) sentencePooling(p *Pooling) error {
	var modules []struct{ Path, Type string }
	if found, err := readSettings(filepath.Join(f.Path, "modules.json"), &modules); err != nil || !found {
		return err
	}
	p.Normalize = false
	for i, m := range modules {
		if !filepath.IsLocal(m.Path) && m.Path != "" {
			return &FieldError{fmt.Sprintf("modules.json: %d.path", i),
				fmt.Sprintf("%q is not inside the folder", m.Path)}
		}
		switch filepath.Ext(m.Type) {
		case ".Transformer":
		case ".Normalize":
			p.Normalize = true
		case ".Pooling":
			var s struct {
				First    bool `json:"pooling_mode_cls_token"`
				Mean     bool `json:"pooling_mode_mean_tokens"`
				Last     bool `json:"pooling_mode_lasttoken"`
				Max      bool `json:"pooling_mode_max_tokens"`
				MeanSqrt bool `json:"pooling_mode_mean_sqrt_len_tokens"`
			}
			path := filepath.Join(f.Path, m.Path, "config.json")
			if _, err := readSettings(path, &s); err != nil {
				return err
			}
			switch [5]bool{s.First, s.Mean, s.Last, s.Max, s.MeanSqrt} {
			case [5]bool{0: true}:
				p.Kind = PoolFirst
			case [5]bool{1: true}:
				p.Kind = PoolMean
			case [5]bool{2: true}:
				p.Kind = PoolLast
			default:
				return &UnsupportedError{"pooling of " + path, fmt.Sprintf("%+v", s), "one of first, mean and last"}
			}
		default:
			return &UnsupportedError{fmt.Sprintf("modules.json: %d.type", i), m.Type, "Transformer, Pooling, Normalize"}
		}
	}
	var s struct {
		Max int `json:"max_seq_length"`
	}
	if _, err := readSettings(filepath.Join(f.Path, "sentence_bert_config.json"), &s); err != nil {
		return err
	}
	if s.Max > 0 {
		p.MaxTokens = min(p.MaxTokens, s.Max)
	}
	return nil
}

// readSettings reads a JSON file; found is false if there is none.
func readSettings(path string, into any) (found bool, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return false, &FieldError{path, err.Error()}
	}
	return true, nil
}

// Truncate cuts the ids of a text to MaxTokens. It keeps the last id if that is the vocabulary's end of
// texts ([SEP], end-of-text), as the model saw it in training.
func (p Pooling) Truncate(ids []int32, end func(id int32) bool) []int32 {
	if len(ids) <= p.MaxTokens || p.MaxTokens < 1 {
		return ids
	}
	last, out := ids[len(ids)-1], append([]int32(nil), ids[:p.MaxTokens]...)
	if end(last) {
		out[len(out)-1] = last
	}
	return out
}

// Pool computes the embedding [C] of a text from its rows [n,C] of the hidden state after the final norm.
// Sums are in float64, in the order of rows and of components.
func Pool[F tensor.Float](p Pooling, rows []F, width int) []float32 {
	n := len(rows) / width
	sum := make([]float64, width)
	switch p.Kind {
	case PoolFirst:
		rows = rows[:width]
	case PoolLast:
		rows = rows[(n-1)*width:]
	}
	for i, v := range rows {
		sum[i%width] += float64(v)
	}
	scale := float64(width) / float64(len(rows))
	if p.Normalize {
		var square float64
		for _, v := range sum {
			square += v * v
		}
		if scale = 0; square > 0 {
			scale = 1 / math.Sqrt(square)
		}
	}
	out := make([]float32, width)
	for i, v := range sum {
		out[i] = float32(v * scale)
	}
	return out
}
