package wire_test

import (
	"math"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const f32, bf16 = tensorv1.ElementType_ELEMENT_TYPE_F32, tensorv1.ElementType_ELEMENT_TYPE_BF16

func values(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.Sin(float64(i)))
	}
	return x
}

// through encodes a tensor and assembles it again.
func through(t *testing.T, as tensorv1.ElementType, shape []int, x []float32) ([]float32, int) {
	t.Helper()
	head, chunks := wire.Encode(as, shape, x)
	raw, err := proto.Marshal(head)
	if err != nil {
		t.Fatal(err)
	}
	var got tensorv1.Tensor
	if err := proto.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	a := wire.NewAssembler(64 << 20)
	done, err := a.Start(&got)
	for _, c := range chunks {
		if done || err != nil {
			t.Fatalf("done %v before the last chunk, %v", done, err)
		}
		done, err = a.Add(c)
	}
	if err != nil || !done {
		t.Fatalf("not complete after the last chunk: %v", err)
	}
	out, err := a.Float32(nil)
	if err != nil {
		t.Fatal(err)
	}
	return out, len(chunks)
}

func TestEncode_RoundTripsInChunks(t *testing.T) {
	for _, n := range []int{0, 1, 577, 1 << 18, 1<<18 + 1, 3 << 18} {
		x := values(n)
		got, chunks := through(t, f32, []int{n}, x)
		if !slices.Equal(got, x) {
			t.Errorf("%d floats are changed by the round trip", n)
		}
		if want := max(0, (4*n+wire.ChunkSize-1)/wire.ChunkSize-1); chunks != want {
			t.Errorf("%d floats take %d chunks, want %d", n, chunks, want)
		}
	}
	half, _ := through(t, bf16, []int{2, 500}, values(1000))
	for i, v := range values(1000) {
		if math.Abs(float64(half[i]-v)) > math.Abs(float64(v))/256 {
			t.Fatalf("element %d is %v as bf16, was %v", i, half[i], v)
		}
	}
}

func TestAssembler_RefusesWhatDoesNotFit(t *testing.T) {
	x := values(1 << 19)
	fresh := func() (*tensorv1.Tensor, []*tensorv1.Chunk) {
		head, chunks := wire.Encode(f32, []int{1 << 19}, x)
		return proto.CloneOf(head), []*tensorv1.Chunk{proto.CloneOf(chunks[0])}
	}
	for name, damage := range map[string]func(h *tensorv1.Tensor, c *tensorv1.Chunk){
		"type":       func(h *tensorv1.Tensor, _ *tensorv1.Chunk) { h.ElementType = 0 },
		"shape":      func(h *tensorv1.Tensor, _ *tensorv1.Chunk) { h.Shape = []uint32{7} },
		"huge shape": func(h *tensorv1.Tensor, _ *tensorv1.Chunk) { h.Shape = []uint32{1 << 31, 1 << 31, 1 << 31} },
		"dimensions": func(h *tensorv1.Tensor, _ *tensorv1.Chunk) { h.Shape = make([]uint32, 9) },
		"size":       func(h *tensorv1.Tensor, _ *tensorv1.Chunk) { h.Size-- },
		"short data": func(h *tensorv1.Tensor, _ *tensorv1.Chunk) { h.Data = h.Data[1:] },
		"offset":     func(_ *tensorv1.Tensor, c *tensorv1.Chunk) { c.Offset++ },
		"long chunk": func(_ *tensorv1.Tensor, c *tensorv1.Chunk) { c.Data = append(c.Data, 0) },
		"bit":        func(_ *tensorv1.Tensor, c *tensorv1.Chunk) { c.Data[5] ^= 1 },
		"checksum":   func(h *tensorv1.Tensor, _ *tensorv1.Chunk) { h.Checksum++ },
	} {
		head, chunks := fresh()
		damage(head, chunks[0])
		a := wire.NewAssembler(4 << 20)
		_, err := a.Start(head)
		if err == nil {
			_, err = a.Add(chunks[0])
		}
		if err == nil {
			_, err = a.Float32(nil)
		}
		if c := fault.CodeOf(err); c != fault.Invalid && c != fault.DataLoss {
			t.Errorf("damaged %s: %v", name, err)
		}
	}
	if _, err := wire.NewAssembler(4).Add(&tensorv1.Chunk{}); err == nil {
		t.Error("a chunk without a tensor is accepted")
	}
}

func TestDigest_SeesNamesAndBits(t *testing.T) {
	sum := func(name string, x ...float32) uint64 {
		d := wire.NewDigest()
		d.Add(name, x)
		return d.Sum()
	}
	if sum("a", 0) == sum("b", 0) || sum("a", 0) == sum("a", float32(math.Copysign(0, -1))) ||
		sum("a", 1) != sum("a", 1) {
		t.Error("the digest does not distinguish names or bits")
	}
}

func FuzzAssembler(f *testing.F) {
	head, _ := wire.Encode(f32, []int{2, 3}, values(6))
	raw, err := proto.Marshal(head)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, []byte{0, 1})
	f.Fuzz(func(t *testing.T, header, chunk []byte) {
		var h tensorv1.Tensor
		if proto.Unmarshal(header, &h) != nil {
			return
		}
		a := wire.NewAssembler(1 << 16)
		done, err := a.Start(&h)
		if err == nil && !done {
			_, err = a.Add(&tensorv1.Chunk{Offset: uint64(len(h.GetData())), Data: chunk})
		}
		if err == nil {
			_, _ = a.Float32(nil)
		}
	})
}
