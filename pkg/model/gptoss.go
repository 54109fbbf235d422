package model

import (
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// GPT-OSS's Hugging Face files hold all experts of a layer in one tensor, in which the rows
// of gate and up alternate: [E,I,2F] and [E,F,C], inputs first, or as MXFP4 blocks
// [E,2F,I/32,16] with scales [E,2F,I/32], outputs first.

// fusedPart finds a part's tensor: its name, how many parts share it and which one this is.
func fusedPart(layer, part string) (file string, parts, which int) {
	switch kind, _, _ := strings.Cut(part, "."); kind {
	case "gate_proj":
		return layer + ".mlp.experts.gate_up_proj", 2, 0
	case "up_proj":
		return layer + ".mlp.experts.gate_up_proj", 2, 1
	}
	return layer + ".mlp.experts.down_proj", 1, 0
}

func (l *loader[F]) fusedBias(layer string, e int, part string, n int) ([]F, error) {
	file, parts, which := fusedPart(layer, part)
	data, dtype, err := l.raw(file+"_bias", l.files.Config.Experts, parts*n)
	if err != nil {
		return nil, err
	}
	size := dtype.RowBytes(parts * n)
	all, out := make([]F, parts*n), make([]F, n)
	tensor.Dequantize(all, data[e*size:(e+1)*size], dtype)
	for i := range out {
		out[i] = all[i*parts+which]
	}
	return out, nil
}

func (l *loader[F]) fusedExpert(layer string, e int, part string, rows, cols int) (kernel.Matrix[F], error) {
	m := kernel.Matrix[F]{Rows: rows, Cols: cols}
	file, parts, which := fusedPart(layer, part)
	if _, ok := l.files.Source.Info(l.files.names.file(file + "_blocks")); ok {
		return l.fusedBlocks(file, e, parts, which, rows, cols)
	}
	data, dtype, err := l.raw(file, l.files.Config.Experts, cols, parts*rows)
	if err != nil {
		return m, err
	}
	size := dtype.RowBytes(cols * parts * rows)
	all := make([]F, cols*parts*rows)
	tensor.Dequantize(all, data[e*size:(e+1)*size], dtype)
	m.Dense = make([]F, rows*cols)
	for i := range cols {
		for n := range rows {
			m.Dense[n*cols+i] = all[(i*rows+n)*parts+which]
		}
	}
	return m, nil
}

// fusedBlocks puts MXFP4 blocks in the order of GGUF's: 16 low nibbles before 16 high ones,
// behind their scale.
func (l *loader[F]) fusedBlocks(file string, e, parts, which, rows, cols int) (kernel.Matrix[F], error) {
	m := kernel.Matrix[F]{Rows: rows, Cols: cols, DType: tensor.MXFP4}
	groups := cols / 32
	blocks, _, err := l.raw(file+"_blocks", l.files.Config.Experts, parts*rows, groups, 16)
	if err != nil {
		return m, err
	}
	scales, _, err := l.raw(file+"_scales", l.files.Config.Experts, parts*rows, groups)
	if err != nil {
		return m, err
	}
	m.Raw = make([]byte, rows*groups*17)
	for n := range rows {
		for g := range groups {
			at := (e*parts*rows+n*parts+which)*groups + g
			in, out := blocks[at*16:(at+1)*16], m.Raw[(n*groups+g)*17:][:17]
			out[0] = scales[at]
			for i := range 8 { // elements 2i, 2i+1 of each half
				out[1+2*i] = in[i]&15 | in[i+8]<<4
				out[2+2*i] = in[i]>>4 | in[i+8]&0xf0
			}
		}
	}
	if l.dense {
		m.Dense = make([]F, rows*cols)
		tensor.Dequantize(m.Dense, m.Raw, m.DType)
		m.Raw, m.DType = nil, 0
	}
	return m, nil
}
