package bench

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// shape holds the dimensions of a model that is built with random weights.
type shape struct {
	arch                                              string // GGUF's name of the architecture
	layers, width, heads, kvHeads, ff, vocab, context int
	ropeBase                                          float32
}

// shapeNamed returns the shape with a name of --shape.
func shapeNamed(name string) (shape, error) {
	switch name {
	case "smollm2-135m":
		return shape{arch: "llama", layers: 30, width: 576, heads: 9, kvHeads: 3, ff: 1536, vocab: 49152, context: 8192,
			ropeBase: 1e5}, nil
	case "smollm2-360m":
		return shape{arch: "llama", layers: 32, width: 960, heads: 15, kvHeads: 5, ff: 2560, vocab: 49152,
			context: 8192, ropeBase: 1e5}, nil
	case "gpt2-124m":
		return shape{arch: "gpt2", layers: 12, width: 768, heads: 12, kvHeads: 12, ff: 3072, vocab: 50257,
			context: 1024}, nil
	}
	return shape{}, fault.Field("shape", "unknown shape %q: want smollm2-135m, smollm2-360m or gpt2-124m", name)
}

// open builds the shape as a GGUF file in memory, with matrices of type d, so that it is loaded by
// the same code as a model from disk. The output head is tied to the embedding.
func (s shape) open(name string, d tensor.DType) (*model.Files, error) {
	g := &ggufBuilder{}
	g.text("general.architecture", s.arch)
	for key, v := range map[string]int{
		"block_count": s.layers, "embedding_length": s.width, "attention.head_count": s.heads,
		"attention.head_count_kv": s.kvHeads,
		"feed_forward_length":     s.ff, "context_length": s.context,
	} {
		g.uint(s.arch+"."+key, uint32(v))
	}
	if s.ropeBase > 0 {
		g.float(s.arch+".rope.freq_base", s.ropeBase)
	}
	if err := s.tensors(g, d); err != nil {
		return nil, err
	}
	file, err := weights.ParseGGUF(name, g.bytes())
	if err != nil {
		return nil, err
	}
	return model.FromGGUF(file, name)
}

// tensors adds the tensors of the shape to a GGUF file.
func (s shape) tensors(g *ggufBuilder, d tensor.DType) error {
	if _, ok := ggufType(d); !ok {
		return fault.Field("quant", "matrices cannot have type %v: want a float or block type", d)
	}
	kv := s.width / s.heads * s.kvHeads
	for _, cols := range []int{s.width, s.ff} {
		if cols%d.BlockLen() != 0 {
			return fault.Field("quant", "rows of %d elements cannot be split into %v blocks of %d", cols, d,
				d.BlockLen())
		}
	}
	g.tensor("token_embd.weight", d, s.vocab, s.width)
	bias := func(name string, n int) {
		if s.arch == "gpt2" {
			g.tensor(name+".bias", tensor.F32, n)
		}
	}
	linear := func(name string, rows, cols int) {
		g.tensor(name+".weight", d, rows, cols)
		bias(name, rows)
	}
	norm := func(name string) {
		g.tensor(name+".weight", tensor.F32, s.width)
		bias(name, s.width)
	}
	if s.arch == "gpt2" {
		g.tensor("position_embd.weight", tensor.F32, s.context, s.width)
	}
	for l := range s.layers {
		p := blockPrefix(l)
		norm(p + "attn_norm")
		if s.arch == "gpt2" {
			linear(p+"attn_qkv", s.width+2*kv, s.width)
		} else {
			linear(p+"attn_q", s.width, s.width)
			linear(p+"attn_k", kv, s.width)
			linear(p+"attn_v", kv, s.width)
			linear(p+"ffn_gate", s.ff, s.width)
		}
		linear(p+"attn_output", s.width, s.width)
		norm(p + "ffn_norm")
		linear(p+"ffn_up", s.ff, s.width)
		linear(p+"ffn_down", s.width, s.ff)
	}
	norm("output_norm")
	return nil
}

// randomWeights fills data with valid elements or blocks of type d. The values have a mean of about 0
// and a root mean square of about 0.05. The same key gives the same bytes.
func randomWeights(data []byte, d tensor.DType, key string) {
	var seed [32]byte
	copy(seed[:], key)
	random := rand.NewChaCha8(seed)
	_, _ = random.Read(data) // never fails
	const exponent = -5
	switch d {
	case tensor.F32:
		for i := 0; i+4 <= len(data); i += 4 {
			binary.LittleEndian.PutUint32(data[i:], binary.LittleEndian.Uint32(data[i:])&0x807fffff|(127+exponent)<<23)
		}
	case tensor.BF16:
		for i := 0; i+2 <= len(data); i += 2 {
			binary.LittleEndian.PutUint16(data[i:], binary.LittleEndian.Uint16(data[i:])&0x807f|(127+exponent)<<7)
		}
	case tensor.F16:
		for i := 0; i+2 <= len(data); i += 2 {
			binary.LittleEndian.PutUint16(data[i:], binary.LittleEndian.Uint16(data[i:])&0x83ff|(15+exponent)<<10)
		}
	default:
		scaleBlocks(data, d)
	}
}

// blockScale says where a block type stores its scale and its offset, and which offset, in units of
// the scale, makes the mean zero.
type blockScale struct {
	scale, offset int // byte positions in the block; offset is -1 if the type has none
	centre        float64
}

func blockScaleOf(d tensor.DType) blockScale {
	switch d {
	case tensor.Q4_1:
		return blockScale{0, 2, -7.5}
	case tensor.Q5_1:
		return blockScale{0, 2, -15.5}
	case tensor.Q2_K:
		return blockScale{80, 82, 1.5}
	case tensor.Q4_K:
		return blockScale{0, 2, 7.5}
	case tensor.Q5_K:
		return blockScale{0, 2, 15.5}
	case tensor.Q3_K, tensor.Q6_K, tensor.TQ1_0, tensor.TQ2_0:
		return blockScale{d.BlockBytes() - 2, -1, 0}
	}
	return blockScale{0, -1, 0}
}

// scaleBlocks sets the scales of random blocks so that their values have a root mean square of about
// 0.05.
func scaleBlocks(data []byte, d tensor.DType) {
	size := d.BlockBytes()
	switch d {
	case tensor.MXFP4: // its scale is a power of two
		for i := 0; i < len(data); i += size {
			data[i] = 127 - 6
		}
		return
	case tensor.NVFP4: // its scales are 8-bit floats with 3 fraction bits: 2^-6
		for i := 0; i < len(data); i += size {
			copy(data[i:], []byte{8, 8, 8, 8})
		}
		return
	}
	if d == tensor.TQ2_0 { // its codes are 0, 1 and 2
		for i := range data {
			data[i] &^= data[i] << 1 & 0xaa
		}
	}
	at := blockScaleOf(d)
	set := func(block []byte, scale float64) {
		if d == tensor.IQ1_M { // the scale is a float16, stored in the top four bits of each of four 16-bit words
			for i := range 4 {
				top := &block[49+2*i]
				*top = *top&15 | byte(tensor.Float16bits(float32(scale))>>(4*i))<<4
			}
			return
		}
		binary.LittleEndian.PutUint16(block[at.scale:], tensor.Float16bits(float32(scale)))
		if at.offset >= 0 {
			binary.LittleEndian.PutUint16(block[at.offset:], tensor.Float16bits(float32(scale*at.centre)))
		}
	}
	sample := data[:min(len(data), 16*size)]
	for i := 0; i < len(sample); i += size {
		set(sample[i:], 1.0/64)
	}
	values := make([]float32, len(sample)/size*d.BlockLen())
	tensor.Dequantize(values, sample, d)
	var sum float64
	for _, v := range values {
		sum += float64(v) * float64(v)
	}
	scale := 0.05 / 64 / math.Sqrt(sum/float64(len(values)))
	for i := 0; i < len(data); i += size {
		set(data[i:], scale)
	}
}

// parseQuant parses the name of an element type in upper or lower case.
func parseQuant(name string) (tensor.DType, error) {
	for _, spelling := range []string{name, strings.ToUpper(name)} {
		if d, err := tensor.Parse(spelling); err == nil {
			return d, nil
		}
	}
	_, err := tensor.Parse(name)
	return tensor.Invalid, fault.Wrap(fault.Invalid, err, "quant")
}
