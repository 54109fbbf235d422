package cuda

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Memory for other processes begins with random bytes, the tag, which are in its handle too. So whoever opens a handle
// sees whether it has got what was meant, and can read nothing of which it does not know the content already: a handle
// of the driver alone could name any memory that any process has exported. The elements follow.
const (
	tagBytes    = 32
	elementsAt  = 256 // bytes from the beginning
	handleBytes = len(driver.MemoryHandle{}) + tagBytes
)

// sharedBytes is the size of an allocation with room for n elements.
func sharedBytes(n int) int64 {
	return (elementsAt + 4*int64(n) + driver.ShareUnit - 1) / driver.ShareUnit * driver.ShareUnit
}

// exported implements kernel.Exported.
type exported struct {
	memory *scope // nil when it is closed
	at     driver.Address
	n      int
	bytes  int64
	handle []byte
}

// Export returns n zeros that other processes can read.
func (s *Set) Export(n int) (kernel.Exported[float32], error) {
	e := &exported{memory: s.core.newScope(), n: n, bytes: sharedBytes(n)}
	if err := s.Reserve(e.bytes); err != nil {
		return nil, err
	}
	if err := e.open(); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// open allocates and exports the memory.
func (e *exported) open() error {
	a, err := e.memory.get(e.bytes, workspaceUse)
	if err != nil {
		return err
	}
	e.at = a + elementsAt
	tag := make([]byte, tagBytes)
	_, _ = rand.Read(tag) // it never fails
	return e.memory.ctx.Do(func(d driver.Device) error {
		w := e.memory.worker
		if err := w.Fill(a, 0, e.bytes, w.stream); err != nil {
			return err
		}
		if err := w.upload(a, tag); err != nil {
			return err
		}
		if err := w.wait(); err != nil {
			return err
		}
		h, err := d.Export(a)
		e.handle = append(h[:], tag...)
		return err
	})
}

// Handle is what another process opens the memory with.
func (e *exported) Handle() []byte { return e.handle }

// Bytes is what is reserved.
func (e *exported) Bytes() int64 { return e.bytes }

// Put copies x to the elements from at on.
func (e *exported) Put(at int, x kernel.Buffer[float32]) {
	within("put", at, len(x), e.n)
	from, bytes := address(e.memory.device, "put", x), 4*int64(len(x))
	if bytes == 0 {
		return
	}
	e.memory.do(func(w *worker) error {
		if err := w.Copy(e.at+driver.Address(4*at), from, bytes, w.stream); err != nil {
			return err
		}
		return w.wait()
	})
}

// Close gives the memory back.
func (e *exported) Close() {
	if e.memory != nil {
		e.memory.Unreserve(e.bytes)
		e.memory = nil // the collector frees it
	}
}

// imported implements kernel.Imported.
type imported struct {
	*device
	begin  driver.Address
	n      int
	copied driver.Event // the last copy is done
}

// Import opens memory that another process has exported.
func (s *Set) Import(handle []byte, n int) (kernel.Imported[float32], error) {
	if len(handle) != handleBytes {
		return nil, fmt.Errorf("%s: open memory of another process: a handle of %d bytes, want %d", s.name, len(handle),
			handleBytes)
	}
	h, tag := driver.MemoryHandle(handle), handle[len(driver.MemoryHandle{}):]
	i := &imported{device: &device{core: s.core}, n: n}
	err := s.ctx.Do(func(d driver.Device) error {
		var size int64
		var err error
		if i.begin, size, err = d.Import(h); err != nil {
			return err
		}
		found := make([]byte, tagBytes)
		if need := elementsAt + 4*int64(n); size < need {
			err = fmt.Errorf("it has %d bytes, want %d", size, need)
		} else if err = s.worker.download(found, i.begin); err == nil && !bytes.Equal(found, tag) {
			err = errors.New("it is not what the handle was made for")
		}
		if err == nil {
			i.copied, err = d.NewEvent()
		}
		if err != nil {
			return errors.Join(err, d.FreeImport(i.begin))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: open memory of another process: %w", s.name, err)
	}
	return i, nil
}

// Get copies the elements from at on to x.
func (i *imported) Get(x kernel.Buffer[float32], at int) {
	within("get", at, len(x), i.n)
	to, bytes := address(i.device, "get", x), 4*int64(len(x))
	if bytes == 0 {
		return
	}
	// An error of the call, such as that of a neighbour's device, is no reason to give up this one.
	i.do(func(w *worker) error {
		if err := w.Copy(to, i.begin+elementsAt+driver.Address(4*at), bytes, w.stream); err != nil {
			return err
		}
		return w.Record(i.copied, w.stream)
	})
}

// Wait returns when the copies are done.
func (i *imported) Wait() { i.do(i.wait) }

func (i *imported) wait(w *worker) error { return driver.WaitFor(w.Device, i.copied, w.limit) }

// Close waits for the copies, and closes the memory.
func (i *imported) Close() error {
	return i.ctx.Do(func(d driver.Device) error {
		if err := i.wait(i.worker); err != nil {
			return err
		}
		return errors.Join(d.FreeEvent(i.copied), d.FreeImport(i.begin))
	})
}

// within panics with the operation's name unless there are n elements from at on.
func within(op string, at, n, all int) {
	if at < 0 || n > all-at {
		panic(fmt.Sprintf("%s: %d elements from %d on, of %d", op, n, at, all))
	}
}
