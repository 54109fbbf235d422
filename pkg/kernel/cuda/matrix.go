package cuda

import (
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// packed is a matrix in the device's memory: as it lies in the file, or decoded to float32. It keeps its scope, so that
// it lives as long as a Matrix that refers to it.
type packed struct {
	scope  *scope
	at     driver.Address
	name   string // of the type, as kernels spell it
	stride int    // bytes of a row
	dense  bool   // decoded
}

// Pack copies a raw matrix to the device.
func (s *Set) Pack(w *kernel.Matrix[float32]) {
	if w.Raw != nil && w.Packed == nil {
		w.Packed = s.pack(w, w.Plain)
	}
}

// pack copies a matrix as it lies if there is a kernel for its type and shape, and decodes it otherwise or if decode is
// set: on the device, or, if there is no kernel for that either, on the host.
func (s *Set) pack(w *kernel.Matrix[float32], decode bool) *packed {
	must("pack", "raw", len(w.Raw), w.Rows*w.DType.RowBytes(w.Cols))
	name, stride := typeName(w.DType), w.DType.RowBytes(w.Cols)
	if s.multiplied(w, decode) {
		p := s.put(w.Raw)
		p.name, p.stride = name, stride
		return p
	}
	dense := &packed{scope: s.newScope(), name: "f32", stride: 4 * w.Cols, dense: true}
	dense.at = dense.scope.alloc(4*int64(w.Rows)*int64(w.Cols), weightsUse)
	if k := s.kernels["embed_"+name]; k != nil {
		p := s.put(w.Raw)
		s.decode(k, dense.at, p.at, w, stride)
		runtime.KeepAlive(p) // until the last launch is in the queue
		return dense
	}
	most := max(1, stagingBytes/dense.stride)
	host := make([]float32, min(most, w.Rows)*w.Cols)
	for from := 0; from < w.Rows; from += most {
		n := min(most, w.Rows-from)
		for r := range n {
			tensor.Dequantize(host[r*w.Cols:(r+1)*w.Cols], w.Raw[(from+r)*stride:(from+r+1)*stride], w.DType)
		}
		s.do(func(d *worker) error {
			return d.upload(dense.at+driver.Address(from*dense.stride), bytesOf(host[:n*w.Cols]))
		})
	}
	return dense
}

// multiplied reports whether a matrix is multiplied as it lies.
func (s *Set) multiplied(w *kernel.Matrix[float32], decode bool) bool {
	_, has := s.kernels["matmul_"+typeName(w.DType)+"_16x8"]
	return has && !decode && w.Cols%32 == 0 && s.aligned(w)
}

// decode writes the rows of a matrix to memory of the device, from where they lie there.
func (s *Set) decode(k *Kernel, to, from driver.Address, w *kernel.Matrix[float32], stride int) {
	for row := 0; row < w.Rows; row += maxBlocksY {
		n := min(maxBlocksY, w.Rows-row)
		s.launch(k, driver.Dim{X: blocks(w.Cols, k.Threads), Y: uint32(n), Z: 1}, 0, to+driver.Address(4*row*w.Cols),
			from, driver.Address(0), uint32(row), uint32(w.Cols), uint32(stride))
	}
}

// decoded returns where a matrix lies in float32, and what must be kept until the last launch that reads it.
func (s *Set) decoded(w *kernel.Matrix[float32]) (driver.Address, *packed) {
	if w.Dense != nil {
		must("matmul grad", "weights", len(w.Dense), w.Rows*w.Cols)
		return address(s.device, "matmul grad", w.Dense), nil
	}
	p, ok := w.Packed.(*packed)
	if !ok {
		p = s.pack(w, true)
	}
	if p.dense {
		return p.at, p
	}
	out := &packed{scope: s.newScope()}
	out.at = out.scope.alloc(4*int64(w.Rows)*int64(w.Cols), workspaceUse)
	s.decode(s.need("matmul grad", "embed_"+p.name), out.at, p.at, w, p.stride)
	return out.at, out
}

// aligned reports whether the rows of a 16-bit matrix begin where its kernels need it.
func (s *Set) aligned(w *kernel.Matrix[float32]) bool {
	return w.DType.BlockLen() > 1 || w.DType.RowBytes(w.Cols)%16 == 0
}

// put copies bytes to a scope of their own. The kernels read whole lines of 16 bytes.
func (s *Set) put(raw []byte) *packed {
	p := &packed{scope: s.newScope()}
	p.at = p.scope.allocRaw((int64(len(raw))+15)&^15, weightsUse)
	if err := s.uploadWeights(p.at, raw); err != nil {
		panic(fmt.Errorf("%s: %w", s.name, err))
	}
	return p
}

// typeName is how names of kernels spell a type.
func typeName(t tensor.DType) string { return strings.ToLower(t.String()) }

// maxBlocksY bounds the rows that a launch takes in y.
const maxBlocksY = 65535

// Embed copies rows of a matrix. Rows of a raw matrix stay on the host until they are needed: the rows of a batch are
// few, and an embedding is large.
func (s *Set) Embed(y kernel.Buffer[float32], w *kernel.Matrix[float32], ids []int32) {
	const op = "embed"
	must(op, "y", len(y), len(ids)*w.Cols)
	for i, id := range ids {
		if id < 0 || int(id) >= w.Rows {
			panic(fmt.Sprintf("%s: id %d at %d: there are %d rows", op, id, i, w.Rows))
		}
	}
	if w.Dense != nil {
		s.gather(op, y, address(s.device, op, w.Dense), "embed_f32", ids, w.Cols, 4*w.Cols)
		return
	}
	if p, ok := w.Packed.(*packed); ok && s.kernels["embed_"+p.name] != nil {
		s.gather(op, y, p.at, "embed_"+p.name, ids, w.Cols, p.stride)
		return
	}
	k, size := s.kernels["embed_"+typeName(w.DType)], w.DType.RowBytes(w.Cols)
	if k == nil { // decoded where the rows are
		host := make([]float32, len(y))
		for i, id := range ids {
			tensor.Dequantize(host[i*w.Cols:(i+1)*w.Cols], w.Raw[int(id)*size:(int(id)+1)*size], w.DType)
		}
		s.Upload(y, host)
		return
	}
	// The ring of lists bounds the rows that go together.
	most := min(maxBlocksY, max(1, stagingBytes/4/size))
	for from := 0; from < len(ids); from += most {
		part := ids[from:min(from+most, len(ids))]
		rows := make([]byte, 0, len(part)*size)
		for _, id := range part {
			rows = append(rows, w.Raw[int(id)*size:(int(id)+1)*size]...)
		}
		to := address(s.device, op, y[from*w.Cols:(from+len(part))*w.Cols])
		grid := driver.Dim{X: blocks(w.Cols, k.Threads), Y: uint32(len(part)), Z: 1}
		s.send(func(d *worker) error {
			a, err := d.stage(rows)
			if err != nil {
				return err
			}
			return d.launch(k, grid, 0, to, a, driver.Address(0), uint32(0), uint32(w.Cols), uint32(size))
		})
	}
}

// gather decodes rows of memory of the device, each of so many bytes, to y[len(rows),c].
func (s *Set) gather(
	op string, y kernel.Buffer[float32], from driver.Address, name string, rows []int32, c, bytes int,
) {
	k := s.need(op, name)
	rows = append([]int32(nil), rows...)
	for at := 0; at < len(rows); at += maxBlocksY {
		part := rows[at:min(at+maxBlocksY, len(rows))]
		to := address(s.device, op, y[at*c:(at+len(part))*c])
		grid := driver.Dim{X: blocks(c, k.Threads), Y: uint32(len(part)), Z: 1}
		s.send(func(w *worker) error {
			ids, err := w.stage(bytesOf(part))
			if err != nil {
				return err
			}
			return w.launch(k, grid, 0, to, from, ids, uint32(0), uint32(c), uint32(bytes))
		})
	}
}

// address0 is the place of a buffer that has elements, on the device or on the host.
func address0(x []float32) driver.Address { return driver.Address(uintptr(unsafe.Pointer(&x[0]))) }
