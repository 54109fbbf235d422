package model

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// ConfigJSON is a config.json in Hugging Face's form that ParseHF reads back equal.
func ConfigJSON(c Config) ([]byte, error) {
	var out map[string]any
	var err error
	switch c.Architecture {
	case "gpt2":
		out = gpt2JSON(c)
	case "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "mixtral", "qwen3_moe":
		out, err = llamaJSON(c)
	default:
		err = &UnsupportedError{"architecture to write", c.Architecture, supported}
	}
	if err != nil {
		return nil, err
	}
	for name, ids := range map[string][]int32{"bos_token_id": c.BOS, "eos_token_id": c.EOS} {
		switch len(ids) {
		case 0:
		case 1:
			out[name] = ids[0]
		default:
			out[name] = ids
		}
	}
	out["torch_dtype"] = "float32"
	return json.MarshalIndent(out, "", "  ")
}

// ExportHF writes config.json and model.safetensors into dir, as Hugging Face's
// libraries read them. params holds every tensor of the model; tied ones are left
// out. dtype is F32, or BF16 (rounded to nearest even).
func ExportHF(dir string, c Config, params []Param[float32], dtype tensor.DType) error {
	if dtype != tensor.F32 && dtype != tensor.BF16 {
		return fmt.Errorf("export model: type %v is neither F32 nor BF16", dtype)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config, err := ConfigJSON(c)
	if err != nil {
		return err
	}
	var named []weights.Named
	for _, p := range params {
		if p.TiedTo != "" {
			continue
		}
		data, shape := p.Data, p.Shape
		if c.Architecture == "gpt2" && conv1D(p.Name) {
			data, shape = transpose(data, shape[0], shape[1]), []int{shape[1], shape[0]}
		}
		if len(shape) == 3 {
			for _, e := range expertParams(c, p) {
				named = append(named, weights.Named{Name: e.Name, DType: dtype, Shape: e.Shape, Data: encode(e.Data, dtype)})
			}
			continue
		}
		if c.Architecture == "mixtral" {
			p.Name = mixtralNames.Replace(p.Name)
		}
		named = append(named, weights.Named{Name: p.Name, DType: dtype, Shape: shape, Data: encode(data, dtype)})
	}
	if err := weights.WriteSafetensors(filepath.Join(dir, "model.safetensors"), named, map[string]string{"format": "pt"}); err != nil {
		return err
	}
	return weights.WriteFile(filepath.Join(dir, "config.json"), func(w io.Writer) error {
		_, err := w.Write(append(config, '\n'))
		return err
	})
}

// expertParams cuts a stack of experts' matrices into those of files.
func expertParams(c Config, p Param[float32]) []Param[float32] {
	prefix, kind, _ := strings.Cut(p.Name, ".experts.")
	parts := []string{kind}
	if kind == "gate_up_proj" {
		parts = []string{"gate_proj", "up_proj"}
	}
	rows, cols := p.Shape[1]/len(parts), p.Shape[2]
	var out []Param[float32]
	for e := range p.Shape[0] {
		for i, part := range parts {
			name := fmt.Sprintf("%s.experts.%d.%s.weight", prefix, e, part)
			if c.Architecture == "mixtral" {
				name = mixtralNames.Replace(name)
			}
			from := (e*len(parts) + i) * rows * cols
			out = append(out, Param[float32]{Name: name, Shape: []int{rows, cols}, Data: p.Data[from : from+rows*cols]})
		}
	}
	return out
}

func encode(x []float32, dtype tensor.DType) []byte {
	out := make([]byte, 0, dtype.RowBytes(len(x)))
	for _, v := range x {
		if dtype == tensor.BF16 {
			out = binary.LittleEndian.AppendUint16(out, tensor.BFloat16bits(v))
		} else {
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
		}
	}
	return out
}
