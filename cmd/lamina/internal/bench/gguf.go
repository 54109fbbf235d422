package bench

import (
	"encoding/binary"
	"math"
	"strconv"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// The value types of GGUF metadata that a shape needs.
const (
	ggufUint32  = 4
	ggufFloat32 = 6
	ggufString  = 8
)

// ggufBuilder builds a GGUF file (version 3) with random weights in memory.
type ggufBuilder struct {
	meta, infos   []byte
	keys, tensors uint64
	size          int // of the data so far, in bytes
	parts         []ggufPart
}

type ggufPart struct {
	name string
	d    tensor.DType
	at   int // offset in the data
	size int
}

func blockPrefix(layer int) string { return "blk." + strconv.Itoa(layer) + "." }

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

func (g *ggufBuilder) key(key string, kind uint32) {
	g.meta = binary.LittleEndian.AppendUint32(appendString(g.meta, key), kind)
	g.keys++
}

func (g *ggufBuilder) text(key, value string) {
	g.key(key, ggufString)
	g.meta = appendString(g.meta, value)
}

func (g *ggufBuilder) uint(key string, value uint32) {
	g.key(key, ggufUint32)
	g.meta = binary.LittleEndian.AppendUint32(g.meta, value)
}

func (g *ggufBuilder) float(key string, value float32) {
	g.key(key, ggufFloat32)
	g.meta = binary.LittleEndian.AppendUint32(g.meta, math.Float32bits(value))
}

// tensor adds a tensor. The outermost dimension of its shape comes first.
func (g *ggufBuilder) tensor(name string, d tensor.DType, shape ...int) {
	id, _ := ggufType(d)
	g.infos = binary.LittleEndian.AppendUint32(appendString(g.infos, name), uint32(len(shape)))
	elements := 1
	for i := len(shape) - 1; i >= 0; i-- { // the file lists the innermost dimension first
		g.infos = binary.LittleEndian.AppendUint64(g.infos, uint64(shape[i]))
		elements *= shape[i]
	}
	g.infos = binary.LittleEndian.AppendUint32(g.infos, id)
	g.infos = binary.LittleEndian.AppendUint64(g.infos, uint64(g.size))
	size := d.RowBytes(elements)
	g.parts = append(g.parts, ggufPart{name, d, g.size, size})
	g.size += align(size)
	g.tensors++
}

// align rounds up to the default alignment of the format.
func align(n int) int { return (n + 31) &^ 31 }

// bytes returns the file.
func (g *ggufBuilder) bytes() []byte {
	header := append([]byte("GGUF"), 3, 0, 0, 0)
	header = binary.LittleEndian.AppendUint64(header, g.tensors)
	header = binary.LittleEndian.AppendUint64(header, g.keys)
	start := align(len(header) + len(g.meta) + len(g.infos))
	out := make([]byte, start+g.size)
	n := copy(out, header)
	n += copy(out[n:], g.meta)
	copy(out[n:], g.infos)
	for _, p := range g.parts {
		randomWeights(out[start+p.at:start+p.at+p.size], p.d, p.name)
	}
	return out
}

// ggufType returns the number that GGUF gives to an element type of matrices.
func ggufType(d tensor.DType) (uint32, bool) {
	id, ok := map[tensor.DType]uint32{
		tensor.F32: 0, tensor.F16: 1, tensor.Q4_0: 2, tensor.Q4_1: 3, tensor.Q5_0: 6, tensor.Q5_1: 7, tensor.Q8_0: 8,
		tensor.Q2_K: 10, tensor.Q3_K: 11, tensor.Q4_K: 12, tensor.Q5_K: 13, tensor.Q6_K: 14, tensor.IQ4_NL: 20,
		tensor.IQ4_XS: 23,
		tensor.BF16:   30, tensor.TQ1_0: 34, tensor.TQ2_0: 35, tensor.MXFP4: 39, tensor.NVFP4: 40, tensor.Q1_0: 41,
		tensor.IQ2_XXS: 16, tensor.IQ2_XS: 17, tensor.IQ3_XXS: 18, tensor.IQ1_S: 19, tensor.IQ3_S: 21, tensor.IQ2_S: 22,
		tensor.IQ1_M: 29,
	}[d]
	return id, ok
}
