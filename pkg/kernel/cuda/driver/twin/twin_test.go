package twin_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/drivertest"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
)

// memory is a machine with the kernel of drivertest, in Go.
type memory map[uint64][]byte

func newMemory() twin.Machine { return memory{} }

func (m memory) Alloc(n int64) (uint64, error) {
	b := make([]byte, n)
	a := uint64(uintptr(unsafe.Pointer(&b[0])))
	m[a] = b
	return a, nil
}

func (m memory) Free(a uint64) error {
	delete(m, a)
	return nil
}

func (m memory) Bytes(a uint64, n int64) ([]byte, error) {
	for from, b := range m {
		if a >= from && a+uint64(n) <= from+uint64(len(b)) {
			return b[a-from:][:n], nil
		}
	}
	return nil, fmt.Errorf("no memory at %#x", a)
}

func (m memory) Load(text string) (twin.Program, error) {
	if !strings.Contains(text, ".entry scale") {
		return nil, errors.New("no kernel")
	}
	return scale{m}, nil
}

type scale struct{ memory }

func (scale) Has(name string) bool { return name == "scale" }

func (s scale) Launch(_ string, l driver.Launch, args []any) error {
	n := min(args[2].(uint32), l.Grid.X*l.Block.X)
	b, err := s.Bytes(uint64(args[0].(driver.Address)), int64(n)*4)
	if err != nil {
		return err
	}
	x := unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), n)
	for i := range x {
		x[i] *= args[1].(float32)
	}
	return nil
}

func TestDriver_KeepsTheContract(t *testing.T) {
	defer leak.Check(t)
	drivertest.Run(t, twin.New(twin.Config{Devices: 1, Machine: newMemory}))
}

func TestStart_SaysWhatIsMissing(t *testing.T) {
	defer leak.Check(t)
	for _, c := range []struct {
		cfg    twin.Config
		number int
		want   string
	}{
		{twin.Config{Version: 11040, Devices: 1}, 0,
			"the NVIDIA driver is too old: it supports CUDA 11.4, want 11.8 or newer"},
		{twin.Config{Version: 12020}, 0, "no such device: the NVIDIA driver finds none"},
		{twin.Config{Devices: 1}, 3, "no such device: the only one is cuda:0"},
		{twin.Config{Devices: 2}, 2, "no such device: there are cuda:0 to cuda:1"},
	} {
		c.cfg.Machine = newMemory
		_, err := driver.Start(twin.New(c.cfg), c.number, 0)
		if err == nil || err.Error() != c.want {
			t.Errorf("device %d of %+v: %v, want %s", c.number, c.cfg, err, c.want)
		}
	}
}

// Work that nobody has waited for is not done, so that a wait that is missing shows.
func TestDevice_WorkRunsLater(t *testing.T) {
	run(t, func(d driver.Device, s driver.Stream, e driver.Event) error {
		a, err := d.Alloc(8)
		if err != nil {
			return err
		}
		p, err := d.AllocPinned(8)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Fill(a, 7, 8, s), d.Download(p, a, s)); err != nil {
			return err
		}
		if p[0] != 0 {
			t.Error("a copy is done before anybody waits for it")
		}
		if err := driver.Wait(d, s, e, driver.DefaultLimit); err != nil {
			return err
		}
		if p[0] != 7 || p[7] != 7 {
			t.Errorf("after the wait the memory is %v", p)
		}
		return nil
	})
}

func TestDevice_Misuse(t *testing.T) {
	run(t, func(d driver.Device, s driver.Stream, e driver.Event) error {
		a, err := d.Alloc(8)
		if err != nil {
			return err
		}
		refused := func(what string, err error) {
			t.Helper()
			if call := (*driver.CallError)(nil); !errors.As(err, &call) || call.Code == 0 || call.Name == "" {
				t.Errorf("%s: %v", what, err)
			}
		}
		refused("an upload of Go memory", d.Upload(a, make([]byte, 8), s))
		refused("a download to Go memory", d.Download(make([]byte, 8), a, s))
		refused("a copy onto itself", d.Copy(a, a+4, 8, s))
		refused("freeing what is no allocation", d.Free(a+4))
		refused("an unknown stream", d.Fill(a, 0, 8, s+100))
		_, err = d.Load([]byte("\x7fELF"))
		refused("machine code", err)
		if err := d.BeginCapture(s); err != nil {
			return err
		}
		_, err = d.Alloc(8)
		refused("memory while a stream is captured", err)
		refused("a wait within a capture", d.Record(e, s))
		g, err := d.EndCapture(s)
		if err != nil {
			return err
		}
		return errors.Join(d.FreeGraph(g), d.Free(a))
	})
}

// run runs f on the goroutine of a device of the twin.
func run(t *testing.T, f func(d driver.Device, s driver.Stream, e driver.Event) error) {
	t.Helper()
	defer leak.Check(t)
	c, err := driver.Start(twin.New(twin.Config{Devices: 1, Machine: newMemory}), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Do(func(d driver.Device) error {
		s, err := d.NewStream()
		if err != nil {
			return err
		}
		e, err := d.NewEvent()
		if err != nil {
			return err
		}
		return f(d, s, e)
	})
	if err := errors.Join(err, c.Close()); err != nil {
		t.Error(err)
	}
}

// start opens a device of a driver that stands for a process, with a stream and an event.
func start(t *testing.T, c twin.Config) *faulty {
	t.Helper()
	c.Devices, c.Machine = 1, newMemory
	f := &faulty{}
	var err error
	if f.Context, err = driver.Start(twin.New(c), 0, 0); err != nil {
		t.Fatal(err)
	}
	err = f.Do(func(d driver.Device) error {
		var e error
		f.stream, err = d.NewStream()
		f.event, e = d.NewEvent()
		return errors.Join(err, e)
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Memory that one process has exported is read by another one of its container until either has done with it.
func TestDevice_SharesMemoryBetweenProcesses(t *testing.T) {
	leak.Check(t)
	owner, reader, stranger := start(t, twin.Config{}), start(t, twin.Config{}), start(t, twin.Config{Container: "b"})
	var memory, at driver.Address
	var handle driver.MemoryHandle
	err := owner.Do(func(d driver.Device) (err error) {
		if memory, err = d.Alloc(driver.ShareUnit); err != nil {
			return err
		}
		if _, err := d.Export(memory + 256); err == nil {
			t.Error("a part of an allocation is exported")
		}
		if err := d.Fill(memory, 7, driver.ShareUnit, owner.stream); err != nil {
			return err
		}
		handle, err = d.Export(memory)
		return errors.Join(err, owner.wait(d))
	})
	if err != nil {
		t.Fatal(err)
	}
	err = stranger.Do(func(d driver.Device) error {
		_, _, err := d.Import(handle)
		return err
	})
	if shared := (*driver.ShareError)(nil); !errors.As(err, &shared) || stranger.Err() != nil {
		t.Errorf("another container opens it with %v", err)
	}
	read := func(f *faulty, d driver.Device) (byte, error) {
		p, err := d.AllocPinned(1)
		if err != nil {
			return 0, err
		}
		own, err := d.Alloc(1)
		if err != nil {
			return 0, err
		}
		err = errors.Join(d.Copy(own, at+driver.ShareUnit-1, 1, f.stream), d.Download(p, own, f.stream), f.wait(d))
		return p[0], err
	}
	err = reader.Do(func(d driver.Device) (err error) {
		var size int64
		if at, size, err = d.Import(handle); err != nil || size != driver.ShareUnit {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
		if v, err := read(reader, d); v != 7 || err != nil {
			return fmt.Errorf("the last byte is %d: %w", v, err)
		}
		if again, _, err := d.Import(handle); again != at || err != nil {
			return fmt.Errorf("opened again it is at %#x: %w", again, err)
		}
		if err := d.FreeImport(at); err != nil {
			return err
		}
		_, err = read(reader, d) // it is open once more
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := owner.Do(func(d driver.Device) error { return d.Free(memory) }); err != nil {
		t.Error(err)
	}
	err = reader.Do(func(d driver.Device) error {
		_, err := read(reader, d)
		return err
	})
	if lost[*driver.CallError](t, reader, err).Name != "CUDA_ERROR_ILLEGAL_ADDRESS" {
		t.Errorf("memory that is gone is read with %v", err)
	}
	late := start(t, twin.Config{})
	err = late.Do(func(d driver.Device) error {
		_, _, err := d.Import(handle)
		return err
	})
	if shared := (*driver.ShareError)(nil); !errors.As(err, &shared) {
		t.Errorf("memory that is gone is opened with %v", err)
	}
	_ = reader.Close() // it is lost
	if err := errors.Join(owner.Close(), stranger.Close(), late.Close()); err != nil {
		t.Error(err)
	}
}

// What is closed, and a write to what is open, are faults.
func TestDevice_ImportsAreForReadingWhileTheyAreOpen(t *testing.T) {
	for what, use := range map[string]func(d driver.Device, at driver.Address, s driver.Stream) error{
		"a write":            write,
		"a read when closed": readClosed,
	} {
		leak.Check(t)
		owner, reader := start(t, twin.Config{}), start(t, twin.Config{})
		var handle driver.MemoryHandle
		err := owner.Do(func(d driver.Device) error {
			a, err := d.Alloc(driver.ShareUnit)
			if err == nil {
				handle, err = d.Export(a)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = reader.Do(func(d driver.Device) error {
			at, _, err := d.Import(handle)
			if err != nil {
				return err
			}
			return errors.Join(use(d, at, reader.stream), reader.wait(d))
		})
		if lost[*driver.CallError](t, reader, err).Name != "CUDA_ERROR_ILLEGAL_ADDRESS" {
			t.Errorf("%s: %v", what, err)
		}
		_ = reader.Close() // it is lost
		if err := owner.Close(); err != nil {
			t.Error(err)
		}
	}
}

func write(d driver.Device, at driver.Address, s driver.Stream) error { return d.Fill(at, 0, 1, s) }

func readClosed(d driver.Device, at driver.Address, s driver.Stream) error {
	p, err := d.AllocPinned(1)
	return errors.Join(err, d.Download(p, at, s), d.FreeImport(at))
}
