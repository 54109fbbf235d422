package model

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// ExportHF writes config.json and model.safetensors into dir, in the form that Hugging
// Face's libraries read. params holds all parameters of the model; tied ones are not
// written. dtype is F32, or BF16 (rounded to nearest even).
func ExportHF(dir string, s Spec, params []Param[float32], dtype tensor.DType) error {
	if dtype != tensor.F32 && dtype != tensor.BF16 {
		return fmt.Errorf("export model: want type F32 or BF16, got %v", dtype)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config, err := ConfigJSON(s)
	if err != nil {
		return err
	}
	layout := s.hfLayout()
	var named []weights.Named
	add := func(name string, shape []int, data []float32) {
		named = append(named, weights.Named{Name: name, DType: dtype, Shape: shape, Data: encode(data, dtype)})
	}
	for _, p := range params {
		if p.TiedTo != "" {
			continue
		}
		switch form := layout[p.Name]; {
		case form.conv1D:
			add(p.Name, []int{p.Shape[1], p.Shape[0]}, transpose(p.Data, p.Shape[0], p.Shape[1]))
		case form.interleaved != 0:
			shape, data := interleave(p.Shape, p.Data, form.interleaved)
			add(p.Name, shape, data)
		case form.parts != nil: // a stack of experts
			n := len(form.parts)
			rows, cols := p.Shape[1]/n, p.Shape[2]
			for e := range p.Shape[0] {
				for i, part := range form.parts {
					from := (e*n + i) * rows * cols
					add(expertName(part, e), []int{rows, cols}, p.Data[from:from+rows*cols])
				}
			}
		case form.name != "":
			add(form.name, p.Shape, p.Data)
		default:
			add(p.Name, p.Shape, p.Data)
		}
	}
	if err := weights.WriteSafetensors(filepath.Join(dir, "model.safetensors"), named,
		map[string]string{"format": "pt"}); err != nil {
		return err
	}
	return weights.WriteFile(filepath.Join(dir, "config.json"), func(w io.Writer) error {
		_, err := w.Write(append(config, '\n'))
		return err
	})
}

// hfForm describes a parameter that Hugging Face's files hold in another form.
type hfForm struct {
	name   string
	conv1D bool
	parts  []string // names of each expert's tensors, %d in place of its index

	// interleaved is the number of matrices whose outputs alternate in a stack of GPT-OSS's experts; 0
	// for other parameters.
	interleaved int
}

// hfLayout lists the parameters that Hugging Face's files hold in another form.
func (s *Spec) hfLayout() map[string]hfForm {
	out := map[string]hfForm{}
	for i := range s.Layers {
		l := &s.Layers[i]
		for _, m := range l.linears() {
			if m.Conv1D || m.HF != "" {
				name := ""
				if m.HF != "" {
					name = m.HF + ".weight"
				}
				out[m.Param+".weight"] = hfForm{name: name, conv1D: m.Conv1D}
			}
		}
		if x := l.FFN.Experts; x != nil && x.InterleavedHF {
			for part, n := range map[string]int{"gate_up_proj": 2, "down_proj": 1} {
				out[x.Stack+"."+part], out[x.Stack+"."+part+"_bias"] = hfForm{interleaved: n}, hfForm{interleaved: n}
			}
		} else if x != nil {
			var parts []string
			for _, n := range []Name{x.Gate, x.Up, x.Down} {
				name := n.Param
				if n.HF != "" {
					name = n.HF
				}
				parts = append(parts, name+".weight")
			}
			out[x.Stack+".gate_up_proj"], out[x.Stack+".down_proj"] = hfForm{parts: parts[:2]},
				hfForm{parts: slices.Clone(parts[2:])}
		}
	}
	return out
}

// interleave returns a stack of experts [E,n·F,I], or its biases [E,n·F], as GPT-OSS's files hold it:
// inputs first, and the outputs of the n matrices alternating, [E,I,n·F].
func interleave(shape []int, data []float32, n int) (turned []int, out []float32) {
	experts, rows, cols := shape[0], shape[1], 1
	turned = []int{experts, rows}
	if len(shape) > 2 {
		cols = shape[2]
		turned = []int{experts, cols, rows}
	}
	out = make([]float32, len(data))
	for e := range experts {
		from, to := data[e*rows*cols:], out[e*rows*cols:]
		for r := range rows {
			at := r%(rows/n)*n + r/(rows/n)
			for c := range cols {
				to[c*rows+at] = from[r*cols+c]
			}
		}
	}
	return turned, out
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
