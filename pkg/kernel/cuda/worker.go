package cuda

import (
	"fmt"
	"time"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// stagingBytes is the size of the pinned memory for each direction. Half of it is the most that a list which steers
// an operation may take.
const stagingBytes = 4 << 20

// worker is what the device's goroutine works with: one stream, the kernels, and pinned memory that every copy between
// host and device goes through.
//
// Lists that steer an operation (ids, positions, rows) are copied to a ring of pinned memory and from there to the same
// place of a ring on the device, where the next kernel reads them. The stream orders the device's ring. Half of the
// pinned ring is written again when the event behind its last copy is done.
type worker struct {
	driver.Device
	stream    driver.Stream
	limit     time.Duration // of a wait
	functions map[string]driver.Function

	up, down []byte          // pinned
	filled   [2]driver.Event // the device has filled a half of down
	ring     driver.Address  // as long as up
	half, at int             // where the next list goes: half, and offset in it
	copied   [2]driver.Event
	pending  [2]bool // the event of a half has been recorded

	idle driver.Event // for waits until the stream is done

	work      driver.Address // memory of the operation that runs; see core.workspace
	capturing bool           // launches become part of a graph
}

// newWorker loads the kernels and allocates the staging memory.
func newWorker(d driver.Device, kernels []Kernel, limit time.Duration, fromText bool) (*worker, error) {
	w := &worker{Device: d, limit: limit, functions: map[string]driver.Function{}}
	var err error
	if w.stream, err = d.NewStream(); err != nil {
		return nil, err
	}
	for _, e := range []*driver.Event{&w.filled[0], &w.filled[1], &w.copied[0], &w.copied[1],
		&w.idle} {
		if *e, err = d.NewEvent(); err != nil {
			return nil, err
		}
	}
	for _, b := range []*[]byte{&w.up, &w.down} {
		if *b, err = d.AllocPinned(stagingBytes); err != nil {
			return nil, err
		}
	}
	if w.ring, err = d.Alloc(stagingBytes); err != nil {
		return nil, err
	}
	modules := map[string]driver.Module{}
	for _, k := range kernels {
		m, ok := modules[k.Module]
		if !ok {
			if m, err = loadModule(d, k.Module, fromText); err != nil {
				return nil, fmt.Errorf("load the kernels of %s: %w", k.Module, err)
			}
			modules[k.Module] = m
		}
		if w.functions[k.Name], err = d.Function(m, k.Name, 0); err != nil {
			return nil, fmt.Errorf("find the kernel %s: %w", k.Name, err)
		}
	}
	return w, nil
}

// loadModule loads the machine code of a module if there is any for the device, and else, or if the driver refuses it,
// the text.
func loadModule(d driver.Device, name string, fromText bool) (driver.Module, error) {
	p := d.Properties()
	if code, err := machineCode(p.SM(), name); err != nil {
		return 0, err
	} else if code != nil && !fromText {
		if m, err := d.Load(code); err == nil || driver.Sticky(err) {
			return m, err
		}
	}
	text, err := Text(name)
	if err != nil {
		return 0, err
	}
	return d.Load(append([]byte(text), 0))
}

// launch puts a kernel on the stream.
func (w *worker) launch(k *Kernel, grid driver.Dim, shared int, args ...any) error {
	return w.Launch(w.functions[k.Name], driver.Launch{Grid: grid, Block: driver.Dim{X: uint32(k.Threads), Y: 1, Z: 1},
		Shared: shared}, w.stream, args...)
}

// room returns n bytes of the pinned ring, and their place.
func (w *worker) room(n int) ([]byte, int, error) {
	const half = stagingBytes / 2
	if w.capturing {
		return nil, 0, &refusal{"a list that the host writes"}
	}
	n = (n + 15) &^ 15
	if n > half {
		return nil, 0, fmt.Errorf("stage a list of %d bytes: at most %d", n, half)
	}
	if w.at+n > half {
		if err := w.Record(w.copied[w.half], w.stream); err != nil {
			return nil, 0, err
		}
		w.pending[w.half] = true
		w.half, w.at = 1-w.half, 0
		if w.pending[w.half] {
			if err := driver.WaitFor(w.Device, w.copied[w.half], w.limit); err != nil {
				return nil, 0, err
			}
			w.pending[w.half] = false
		}
	}
	place := w.half*half + w.at
	w.at += n
	return w.up[place : place+n], place, nil
}

// stage copies a list to the device's ring. It stays there for the kernels that are launched next, up to the next
// half of the ring.
func (w *worker) stage(list []byte) (driver.Address, error) {
	b, place, err := w.room(len(list))
	if err != nil || len(list) == 0 {
		return 0, err
	}
	copy(b, list)
	a := w.ring + driver.Address(place)
	return a, w.Upload(a, b[:len(list)], w.stream)
}

// upload copies host memory to the device. It returns when src may change.
func (w *worker) upload(dst driver.Address, src []byte) error {
	const piece = stagingBytes / 4
	for len(src) > 0 {
		n := min(len(src), piece)
		b, _, err := w.room(n)
		if err != nil {
			return err
		}
		copy(b, src[:n])
		if err := w.Upload(dst, b[:n], w.stream); err != nil {
			return err
		}
		dst, src = dst+driver.Address(n), src[n:]
	}
	return nil
}

// download copies memory of the device to the host, behind all work. While the device copies to one half of the pinned
// memory, the other one is read.
func (w *worker) download(dst []byte, src driver.Address) error {
	const half = stagingBytes / 2
	if w.capturing {
		return &refusal{"a copy to the host"}
	}
	var before []byte // where the half that the device fills belongs
	for which := 0; len(dst) > 0 || before != nil; which = 1 - which {
		var now []byte
		if len(dst) > 0 {
			now = dst[:min(len(dst), half)]
			if err := w.Download(w.down[which*half:][:len(now)], src, w.stream); err != nil {
				return err
			}
			if err := w.Record(w.filled[which], w.stream); err != nil {
				return err
			}
			dst, src = dst[len(now):], src+driver.Address(len(now))
		}
		if before != nil {
			if err := driver.WaitFor(w.Device, w.filled[1-which], w.limit); err != nil {
				return err
			}
			copy(before, w.down[(1-which)*half:])
		}
		before = now
	}
	return nil
}

// wait waits until the stream is done.
func (w *worker) wait() error { return driver.Wait(w.Device, w.stream, w.idle, w.limit) }

// bytesOf returns the memory of a list.
func bytesOf[E uint16 | int32 | uint32 | uint64 | float32](x []E) []byte {
	if len(x) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), len(x)*int(unsafe.Sizeof(x[0])))
}
