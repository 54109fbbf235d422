package cuda_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/testdevice"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/kernel/kerneltest"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// open returns a set on a twin with so much memory; 0 means the twin's. See package testdevice for GPUs.
func open(t *testing.T, memory int64) *cuda.Set {
	t.Helper()
	t.Cleanup(func() { leak.Check(t) })
	d, number := testdevice.Open(t, twin.Config{Devices: 1, Memory: memory, Machine: twin.Simulated})
	s, err := cuda.Open(d, cuda.Config{Number: number, KV: kernel.KVAuto})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// The twin runs the text of the kernels.
func TestSet_KeepsTheContract(t *testing.T) {
	kerneltest.Run(t, open(t, 0))
}

func TestOpen_NamesTheDeviceAndItsArchitecture(t *testing.T) {
	s := open(t, 0)
	if s.Name() != "cuda:0" || s.Class() != "cuda/2/sm_80" {
		t.Errorf("the set is %s of class %s", s.Name(), s.Class())
	}
	if u, err := s.Usage(); u != driver.Unknown || err != nil {
		t.Errorf("a device that reports nothing has %+v, %v", u, err)
	}
}

// Buffers live as long as the scope that they came from, and no longer.
func TestScope_FreesWhenUnreachable(t *testing.T) {
	const most = 16 << 20
	s := open(t, most)
	before, limit := s.Use()
	if before != 0 || limit > most {
		t.Fatalf("%d of %d bytes are in use at the beginning", before, limit)
	}
	kept := s.Scope()
	b := kept.FromHost([]float32{1, 2, 3})
	// Ten times what there is: without frees the second one fails.
	for i := range 20 {
		x := s.Scope().Alloc(int(limit / 8))
		if len(x) == 0 {
			t.Fatal(i)
		}
	}
	if got := kept.Host(b); !slices.Equal(got, []float32{1, 2, 3}) {
		t.Errorf("the buffer of a scope that is reachable has %v", got)
	}
	runtime.KeepAlive(kept)
}

// An allocation beyond the limit is refused with sizes, before the device does, and the set works on.
func TestAlloc_BeyondTheLimit(t *testing.T) {
	s := open(t, 16<<20)
	_, limit := s.Use()
	func() {
		defer func() {
			err, _ := recover().(error)
			short := (*driver.OutOfMemoryError)(nil)
			if !errors.As(err, &short) || short.Wanted != 4*limit || short.Total != limit {
				t.Errorf("four times the limit: %v", err)
			}
			if want := fmt.Sprintf("cuda:0: out of device memory: want %d bytes, %d of %d are free", 4*limit, limit,
				limit); err != nil && err.Error() != want {
				t.Errorf("the error is %q, want %q", err, want)
			}
		}()
		s.Alloc(int(limit))
	}()
	x := s.Alloc(5)
	s.Shift(x, x, 2)
	if got := s.Host(x); !slices.Equal(got, []float32{2, 2, 2, 2, 2}) {
		t.Errorf("after the refusal: %v", got)
	}
}

// Memory of the host is refused where the device would read it.
func TestSet_RefusesHostMemory(t *testing.T) {
	s := open(t, 0)
	defer func() {
		if text := fmt.Sprint(recover()); !strings.Contains(text, "add: a buffer of 4 elements is not memory of cuda:0") {
			t.Errorf("adding a slice of the host: %s", text)
		}
	}()
	s.Add(s.Alloc(4), make([]float32, 4))
}

// Rows of a raw embedding come from the host, in several launches if they are many; those of a packed one from the
// device.
func TestEmbed_RawAndPacked(t *testing.T) {
	s := open(t, 0)
	const rows, cols, n = 9, 2048, 130 // n rows take over 1 MiB
	w := kernel.Matrix[float32]{Rows: rows, Cols: cols, DType: tensor.F32}
	for i := range rows * cols {
		w.Raw = binary.LittleEndian.AppendUint32(w.Raw, math.Float32bits(float32(i)))
	}
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(i * 7 % rows)
	}
	y := s.Alloc(n * cols)
	check := func(what string, ids []int32) {
		s.Clear(y)
		s.Embed(y[:len(ids)*cols], &w, ids)
		for i, v := range s.Host(y[:len(ids)*cols]) {
			if want := float32(int(ids[i/cols])*cols + i%cols); v != want {
				t.Fatalf("%s: element %d is %v, want %v", what, i, v, want)
			}
		}
	}
	check("raw", ids)
	s.Pack(&w)
	check("packed", ids[:3])
}

// Weights that the host decodes take no memory of the device as they lie.
func TestPack_OfATypeThatTheHostDecodes(t *testing.T) {
	s := open(t, 0)
	const rows, cols = 3, 256
	w := kernel.Matrix[float32]{Rows: rows, Cols: cols, DType: tensor.IQ2_XS}
	w.Raw = make([]byte, rows*w.DType.RowBytes(cols))
	before, _ := s.Use()
	s.Pack(&w)
	if after, _ := s.Use(); after-before != 4*rows*cols {
		t.Errorf("%d decoded weights take %d bytes", rows*cols, after-before)
	}
	runtime.KeepAlive(w)
}
