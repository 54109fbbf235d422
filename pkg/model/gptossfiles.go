package model

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// GPT-OSS's Hugging Face files hold all experts of a layer in one tensor, in which the rows
// of gate and up alternate: [E,I,2F] and [E,F,C], inputs first, or as MXFP4 blocks
// [E,2F,I/32,16] with scales [E,2F,I/32], outputs first.

func (l *loader[F]) interleavedBias(x *Experts, e int, p expertPart, v wanted) ([]F, error) {
	param, parts, which := x.stack(p)
	n := v.rows
	data, dtype, err := l.raw(l.files.tensor(Name{Param: param}, "_bias"), x.Count, parts*n)
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

func (l *loader[F]) interleavedExpert(x *Experts, e int, p expertPart, w wanted) (kernel.Matrix[F], error) {
	param, parts, which := x.stack(p)
	rows, cols := w.rows, w.cols
	if _, ok := l.files.Source.Info(l.files.tensor(Name{Param: param}, "_blocks")); ok {
		return l.mxfp4Expert(x, e, p, w)
	}
	m := kernel.Matrix[F]{Rows: rows, Cols: cols}
	data, dtype, err := l.raw(l.files.tensor(Name{Param: param}, ""), x.Count, cols, parts*rows)
	if err != nil {
		return m, err
	}
	size := dtype.RowBytes(cols * parts * rows)
	all := make([]F, cols*parts*rows)
	tensor.Dequantize(all, data[e*size:(e+1)*size], dtype)
	out := make([]F, rows*cols)
	for i := range cols {
		for n := range rows {
			out[n*cols+i] = all[(i*rows+n)*parts+which]
		}
	}
	m.Dense = out
	return m, nil
}

// mxfp4Expert puts MXFP4 blocks in the order of GGUF's: a scale, then 16 bytes with
// elements 0-15 in their low nibbles and 16-31 in their high ones.
func (l *loader[F]) mxfp4Expert(x *Experts, e int, p expertPart, w wanted) (kernel.Matrix[F], error) {
	param, parts, which := x.stack(p)
	rows, cols := w.rows, w.cols
	m := kernel.Matrix[F]{Rows: rows, Cols: cols, DType: tensor.MXFP4}
	groups := cols / 32
	if cols%32 != 0 {
		return m, &FieldError{param, "want a width that is a multiple of 32"}
	}
	file := func(end string) string { return l.files.tensor(Name{Param: param}, end) }
	blocks, dtype, err := l.bytes(file("_blocks"), x.Count, parts*rows, groups, 16)
	if err != nil {
		return m, err
	}
	scales, scaleType, err := l.bytes(file("_scales"), x.Count, parts*rows, groups)
	if err != nil {
		return m, err
	}
	if dtype != tensor.U8 || scaleType != tensor.U8 {
		return m, &UnsupportedError{"type of " + file("_blocks") + " and its scales",
			dtype.String() + ", " + scaleType.String(), "U8"}
	}
	m.Raw = make([]byte, rows*groups*17)
	for n := range rows {
		for g := range groups {
			at := (e*parts*rows+n*parts+which)*groups + g
			in, out := blocks[at*16:(at+1)*16], m.Raw[(n*groups+g)*17:][:17]
			out[0] = scales[at]
			for i := range 8 { // the file has elements 2i and 2i+1 in byte i
				out[1+2*i] = in[i]&15 | in[i+8]<<4
				out[2+2*i] = in[i]>>4 | in[i+8]&0xf0
			}
		}
	}
	if l.dense {
		return l.decoded(rows, cols, m.Raw, m.DType), nil
	}
	return m, nil
}
