package compress

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// The names of the wire types.
const (
	F32  = "f32"
	BF16 = "bf16"
	Int8 = "int8"
	TopK = "topk"
)

// Names lists the wire types.
func Names() []string { return []string{F32, BF16, Int8, TopK} }

// Block is the number of values that share a scale in int8.
const Block = 256

// largest is the greatest magnitude of an int8 value; -128 is not used.
const largest = 127

// Codec encodes and decodes tensors. The zero value is that of F32.
type Codec struct {
	Wire    string  // one of Names
	Density float64 // the share of values that TopK keeps, in (0, 1]
}

// Check returns an error that names the field that is out of bounds.
func (c Codec) Check() error {
	if c.Wire != "" && !slices.Contains(Names(), c.Wire) {
		return fault.Field("wire", "%q is not one of %v", c.Wire, Names())
	}
	if c.Wire == TopK && !(c.Density > 0 && c.Density <= 1) {
		return fault.Field("density", "%v is not within (0, 1]", c.Density)
	}
	return nil
}

// Exact reports whether decoding gives back the values that were encoded.
func (c Codec) Exact() bool { return c.Wire == "" || c.Wire == F32 }

// Feedback reports whether Encode needs a residual.
func (c Codec) Feedback() bool { return c.Wire == Int8 || c.Wire == TopK }

// kept returns how many of n values TopK keeps.
func (c Codec) kept(n int) int {
	return min(n, int(math.Ceil(c.Density*float64(n))))
}

// Size returns the number of bytes of an encoded tensor of n values.
func (c Codec) Size(n int) int {
	switch c.Wire {
	case BF16:
		return 2 * n
	case Int8:
		return n + 4*((n+Block-1)/Block)
	case TopK:
		return 8 * c.kept(n)
	}
	return 4 * n
}

// Encode appends the encoded tensor to dst. It encodes x, which must be finite, and leaves in x the values
// that Decode returns. With Feedback, x is the gradient plus the residual, and residual, of the same length,
// is set to what was left out. A residual is not needed otherwise.
func (c Codec) Encode(dst []byte, x, residual []float32) []byte {
	switch c.Wire {
	case BF16:
		for i, v := range x {
			bits := tensor.BFloat16bits(v)
			if bits&0x7fff == 0x7f80 { // v is finite: the largest bfloat16 is
				bits--
			}
			dst = binary.LittleEndian.AppendUint16(dst, bits)
			x[i] = tensor.BFloat16(bits)
		}
		return dst
	case Int8:
		return encodeInt8(dst, x, residual)
	case TopK:
		return c.encodeTopK(dst, x, residual)
	}
	for _, v := range x {
		dst = binary.LittleEndian.AppendUint32(dst, math.Float32bits(v))
	}
	return dst
}

func encodeInt8(dst []byte, x, residual []float32) []byte {
	for lo := 0; lo < len(x); lo += Block {
		block := x[lo:min(len(x), lo+Block)]
		left := residual[lo : lo+len(block)]
		var most uint32
		for _, v := range block {
			most = max(most, magnitude(v))
		}
		scale := math.Float32frombits(most) / largest
		dst = binary.LittleEndian.AppendUint32(dst, math.Float32bits(scale))
		inverse := 0.0
		if scale > 0 {
			inverse = 1 / float64(scale)
		}
		for i, v := range block {
			scaled := float64(v) * inverse // a variable, so that it is rounded before the sum in round
			q := round(scaled)
			dst = append(dst, byte(q))
			block[i] = float32(q) * scale
			left[i] = v - block[i]
		}
	}
	return dst
}

// round rounds to the nearest int8 other than -128, halves away from zero.
func round(v float64) int8 {
	half := 0.5
	if v < 0 {
		half = -0.5
	}
	return int8(max(-largest, min(largest, int32(v+half))))
}

// encodeTopK keeps the values of largest magnitude; of equal ones those with the lowest index.
func (c Codec) encodeTopK(dst []byte, x, residual []float32) []byte {
	order := make([]uint64, len(x)) // descending: by magnitude, then by index from the first
	for i, v := range x {
		order[i] = uint64(magnitude(v))<<32 | uint64(math.MaxUint32-uint32(i))
	}
	k := c.kept(len(x))
	selectLargest(order, k)
	kept := order[:k]
	for i, v := range kept {
		kept[i] = uint64(math.MaxUint32 - uint32(v))
	}
	slices.Sort(kept)
	copy(residual, x)
	clear(x)
	for _, i := range kept {
		v := residual[i]
		dst = binary.LittleEndian.AppendUint32(dst, uint32(i))
		dst = binary.LittleEndian.AppendUint32(dst, math.Float32bits(v))
		x[i], residual[i] = v, 0
	}
	return dst
}

// magnitude orders finite values as their absolute values do.
func magnitude(v float32) uint32 { return math.Float32bits(v) &^ (1 << 31) }

// selectLargest moves the k largest elements, which are all different, to the front. It is quickselect, with
// the median of three as pivot. The result is a set, so it does not depend on the pivots.
func selectLargest(s []uint64, k int) {
	for len(s) > 1 && k > 0 && k < len(s) {
		a, b, c := s[0], s[len(s)/2], s[len(s)-1]
		pivot := max(min(a, b), min(max(a, b), c))
		i, j := 0, len(s)-1
		for i <= j {
			for s[i] > pivot {
				i++
			}
			for s[j] < pivot {
				j--
			}
			if i <= j {
				s[i], s[j] = s[j], s[i]
				i++
				j--
			}
		}
		switch { // s[:j+1] are at least the pivot, s[i:] at most
		case k <= j+1:
			s = s[:j+1]
		case k >= i:
			s, k = s[i:], k-i
		default:
			return
		}
	}
}

// Decode sets dst to the values of an encoded tensor. It returns DataLoss, with the offset, if data is not
// what Encode returns for so many finite values.
func (c Codec) Decode(dst []float32, data []byte) error {
	if len(data) != c.Size(len(dst)) {
		return fault.New(fault.DataLoss, "decode %s gradient of %d values: %d bytes, want %d", c.name(), len(dst),
			len(data), c.Size(len(dst)))
	}
	switch c.Wire {
	case BF16:
		for i := range dst {
			dst[i] = tensor.BFloat16(binary.LittleEndian.Uint16(data[2*i:]))
			if !finite(dst[i]) {
				return c.notFinite(2*i, dst[i])
			}
		}
		return nil
	case Int8:
		return c.decodeInt8(dst, data)
	case TopK:
		return c.decodeTopK(dst, data)
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		if !finite(dst[i]) {
			return c.notFinite(4*i, dst[i])
		}
	}
	return nil
}

func (c Codec) decodeInt8(dst []float32, data []byte) error {
	at := 0
	for lo := 0; lo < len(dst); lo += Block {
		block := dst[lo:min(len(dst), lo+Block)]
		scale := math.Float32frombits(binary.LittleEndian.Uint32(data[at:]))
		if !finite(scale) {
			return c.notFinite(at, scale)
		}
		if !(scale >= 0 && scale <= math.MaxFloat32/largest) || math.Signbit(float64(scale)) {
			return c.bad(at, "a scale of %v", scale)
		}
		at += 4
		for i := range block {
			if data[at+i] == 1<<7 {
				return c.bad(at+i, "the value -128")
			}
			block[i] = float32(int8(data[at+i])) * scale
		}
		at += len(block)
	}
	return nil
}

func (c Codec) decodeTopK(dst []float32, data []byte) error {
	clear(dst)
	last := -1
	for at := 0; at < len(data); at += 8 {
		i := int64(binary.LittleEndian.Uint32(data[at:]))
		if i <= int64(last) || i >= int64(len(dst)) {
			return c.bad(at, "index %d after %d, of %d values", i, last, len(dst))
		}
		last = int(i)
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[at+4:]))
		if !finite(dst[i]) {
			return c.notFinite(at+4, dst[i])
		}
	}
	return nil
}

func (c Codec) name() string { return cmp.Or(c.Wire, F32) }

// ErrNotFinite is in the error of Decode for a value that is not a number or infinite.
var ErrNotFinite = errors.New("a value is not finite")

func (c Codec) notFinite(offset int, v float32) error {
	return fault.Wrap(fault.DataLoss, ErrNotFinite, "decode %s gradient: byte %d: %v", c.name(), offset, v)
}

func (c Codec) bad(offset int, format string, args ...any) error {
	return fault.New(fault.DataLoss, "decode %s gradient: byte %d: "+format,
		append([]any{c.name(), offset}, args...)...)
}

func finite(v float32) bool { return math.Float32bits(v)&0x7f800000 != 0x7f800000 }
