// Package wire converts tensors to and from their protobuf form. All of its rules are here: byte
// order, chunks, checksums and limits. The package also computes the digest over named weights,
// which covers the same bytes.
//
// A sender calls Encode and sends the header and then the chunks. A receiver passes them to an
// Assembler, which returns a tensor only when it is complete and its checksum is right.
package wire

import (
	"encoding/binary"
	"io"
	"math"
	"unsafe"

	"github.com/zeebo/xxh3"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

const (
	// ChunkSize is the maximum number of data bytes in a message.
	ChunkSize = 1 << 20
	// maxDims is the maximum number of dimensions of a shape.
	maxDims = 8
)

// littleEndian reports whether this machine has the byte order of the wire format.
func littleEndian() bool {
	x := uint16(1)
	return *(*byte)(unsafe.Pointer(&x)) == 1
}

// view returns x as little-endian bytes. On a little-endian machine they share the memory of x.
func view(x []float32) []byte {
	if len(x) == 0 {
		return nil
	}
	if littleEndian() {
		return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
	}
	out := make([]byte, 0, 4*len(x))
	for _, v := range x {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	return out
}

// Encode turns x of a shape into a header and the chunks that follow it. An unspecified element
// type means float32. Messages of float32 share the memory of x, so x must neither change nor
// return to a pool before they are sent.
func Encode(as tensorv1.ElementType, shape []int, x []float32) (*tensorv1.Tensor, []*tensorv1.Chunk) {
	data := view(x)
	if as == tensorv1.ElementType_ELEMENT_TYPE_BF16 {
		data = make([]byte, 0, 2*len(x))
		for _, v := range x {
			data = binary.LittleEndian.AppendUint16(data, tensor.BFloat16bits(v))
		}
	} else {
		as = tensorv1.ElementType_ELEMENT_TYPE_F32
	}
	head := &tensorv1.Tensor{ElementType: as, Size: uint64(len(data)), Checksum: xxh3.Hash(data),
		Data: data[:min(len(data), ChunkSize)]}
	for _, d := range shape {
		head.Shape = append(head.Shape, uint32(d))
	}
	var chunks []*tensorv1.Chunk
	for at := ChunkSize; at < len(data); at += ChunkSize {
		chunks = append(chunks, &tensorv1.Chunk{Offset: uint64(at), Data: data[at:min(len(data), at+ChunkSize)]})
	}
	return head, chunks
}

// Stream sends a float32 tensor whose little-endian bytes come from a reader, as Encode does for one in
// memory. It holds one chunk. checksum is that of all bytes.
func Stream(shape []int, checksum uint64, r io.Reader, head func(*tensorv1.Tensor) error,
	chunk func(*tensorv1.Chunk) error) error {
	first := &tensorv1.Tensor{ElementType: tensorv1.ElementType_ELEMENT_TYPE_F32, Size: 4, Checksum: checksum}
	for _, d := range shape {
		first.Shape = append(first.Shape, uint32(d))
		first.Size *= uint64(d)
	}
	for at := uint64(0); at < first.GetSize() || at == 0; at += ChunkSize {
		data := make([]byte, min(first.GetSize()-at, ChunkSize)) // the receiver may be in this process and keep it
		if _, err := io.ReadFull(r, data); err != nil {
			return fault.Wrap(fault.DataLoss, err, "read tensor of shape %v at byte %d", shape, at)
		}
		var err error
		if at == 0 {
			first.Data = data
			err = head(first)
		} else {
			err = chunk(&tensorv1.Chunk{Offset: at, Data: data})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Sum is a checksum of bytes that are added piece by piece.
type Sum struct{ h *xxh3.Hasher }

// NewSum returns the checksum of nothing.
func NewSum() *Sum { return &Sum{xxh3.New()} }

// Add appends bytes.
func (s *Sum) Add(p []byte) { _, _ = s.h.Write(p) }

// Checksum returns the checksum, as Checksum does for bytes that are in one piece.
func (s *Sum) Checksum() uint64 { return s.h.Sum64() }

// Assembler assembles tensors from their messages, one tensor at a time.
type Assembler struct {
	max  uint64 // bytes
	head *tensorv1.Tensor
	data []byte
	got  uint64
}

// NewAssembler returns an assembler for tensors of at most max bytes.
func NewAssembler(max int) *Assembler { return &Assembler{max: uint64(max)} }

// Start takes a header and reports whether the tensor is complete already.
func (a *Assembler) Start(head *tensorv1.Tensor) (bool, error) {
	if a.head != nil {
		return false, fault.Field("tensor", "start a tensor: the previous one lacks %d bytes", a.head.GetSize()-a.got)
	}
	size, err := expectedSize(head, a.max)
	if err != nil {
		return false, err
	}
	data := head.GetData()
	if head.GetSize() != size {
		return false, fault.Field("tensor.size", "%d bytes for shape %v, want %d", head.GetSize(), head.GetShape(),
			size)
	}
	if uint64(len(data)) != min(size, ChunkSize) {
		return false, fault.Field("tensor.data", "%d bytes in the first message, want %d", len(data),
			min(size, ChunkSize))
	}
	a.head, a.got, a.data = head, uint64(len(data)), data
	if a.got < size {
		a.data = make([]byte, size)
		copy(a.data, data)
	}
	return a.got == size, nil
}

// expectedSize checks the type and shape of a header and returns the size of its data in bytes.
func expectedSize(head *tensorv1.Tensor, limit uint64) (uint64, error) {
	size := uint64(4)
	switch head.GetElementType() {
	case tensorv1.ElementType_ELEMENT_TYPE_F32:
	case tensorv1.ElementType_ELEMENT_TYPE_BF16:
		size = 2
	default:
		return 0, fault.Field("tensor.element_type", "unknown element type %v", head.GetElementType())
	}
	if len(head.GetShape()) > maxDims {
		return 0, fault.Field("tensor.shape", "%d dimensions, more than %d", len(head.GetShape()), maxDims)
	}
	for _, d := range head.GetShape() {
		if d > 0 && size > limit/uint64(d) {
			return 0, fault.Field("tensor.shape", "%v is more than %d bytes", head.GetShape(), limit)
		}
		size *= uint64(d)
	}
	if size > limit {
		return 0, fault.Field("tensor.shape", "%v is more than %d bytes", head.GetShape(), limit)
	}
	return size, nil
}

// Add takes a chunk and reports whether the tensor is complete.
func (a *Assembler) Add(c *tensorv1.Chunk) (bool, error) {
	if a.head == nil {
		return false, fault.Field("chunk", "add a chunk: no tensor has been started")
	}
	left := a.head.GetSize() - a.got
	if c.GetOffset() != a.got {
		return false, fault.Field("chunk.offset", "%d, want %d", c.GetOffset(), a.got)
	}
	if uint64(len(c.GetData())) != min(left, ChunkSize) || left == 0 {
		return false, fault.Field("chunk.data", "%d bytes, want %d", len(c.GetData()), min(left, ChunkSize))
	}
	copy(a.data[a.got:], c.GetData())
	a.got += uint64(len(c.GetData()))
	return a.got == a.head.GetSize(), nil
}

// Float32 returns the values of the complete tensor, in dst if they fit. Then the assembler is
// ready for the next tensor.
func (a *Assembler) Float32(dst []float32) ([]float32, error) {
	head, data := a.head, a.data
	if head == nil || a.got != head.GetSize() {
		return nil, fault.Field("tensor", "read the tensor: it is not complete")
	}
	a.head, a.data, a.got = nil, nil, 0
	if sum := xxh3.Hash(data); sum != head.GetChecksum() {
		return nil, fault.New(fault.DataLoss, "read tensor of shape %v: checksum %016x, want %016x", head.GetShape(),
			sum, head.GetChecksum())
	}
	if head.GetElementType() == tensorv1.ElementType_ELEMENT_TYPE_BF16 {
		dst = grow(dst, len(data)/2)
		for i := range dst {
			dst[i] = tensor.BFloat16(binary.LittleEndian.Uint16(data[2*i:]))
		}
		return dst, nil
	}
	dst = grow(dst, len(data)/4)
	if littleEndian() {
		copy(view(dst), data)
		return dst, nil
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return dst, nil
}

func grow(dst []float32, n int) []float32 {
	if cap(dst) < n {
		return make([]float32, n)
	}
	return dst[:n]
}

// Whole decodes a tensor that is complete in one message.
func Whole(head *tensorv1.Tensor, dst []float32) ([]float32, error) {
	a := NewAssembler(ChunkSize)
	if done, err := a.Start(head); err != nil || !done {
		if err == nil {
			err = fault.Field("tensor.size", "%d bytes do not fit in one message", head.GetSize())
		}
		return nil, err
	}
	return a.Float32(dst)
}

// Bytes returns x as little-endian bytes, which may share the memory of x.
func Bytes(x []float32) []byte { return view(x) }

// Floats appends float32 values, given as little-endian bytes, to dst. The length of data must be
// a multiple of 4.
func Floats(dst []float32, data []byte) []float32 {
	for ; len(data) >= 4; data = data[4:] {
		dst = append(dst, math.Float32frombits(binary.LittleEndian.Uint32(data)))
	}
	return dst
}

// Checksum returns the XXH3-64 of data, which all checksums on the wire use.
func Checksum(data []byte) uint64 { return xxh3.Hash(data) }

// Digest computes an XXH3-64 over names and weights. Tensors must be added in the order of their
// names.
type Digest struct{ h *xxh3.Hasher }

// NewDigest returns an empty digest.
func NewDigest() *Digest { return &Digest{xxh3.New()} }

// Add appends a tensor: its name, a zero byte, and its values.
func (d *Digest) Add(name string, x []float32) {
	_, _ = d.h.Write([]byte(name))
	_, _ = d.h.Write([]byte{0})
	_, _ = d.h.Write(view(x))
}

// Sum returns the digest.
func (d *Digest) Sum() uint64 { return d.h.Sum64() }
