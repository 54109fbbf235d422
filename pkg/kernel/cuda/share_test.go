package cuda_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
)

// process returns a set on a twin that stands for a process of its own.
func process(t *testing.T, memory int64) *cuda.Set {
	t.Helper()
	set, err := cuda.Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), cuda.Config{KV: kernel.KVAuto,
		Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return set
}

// What one process has put into memory that it shares, another one gets. The rest of it are zeros.
func TestSet_SharesMemory(t *testing.T) {
	leak.Check(t)
	const n = 100_000
	owner, reader := process(t, 0), process(t, 0)
	before := owner.Device()
	e, err := owner.Export(n)
	if err != nil {
		t.Fatal(err)
	}
	if e.Bytes() < 4*n || e.Bytes()%driver.ShareUnit != 0 || owner.Device().Reserved != before.Reserved+e.Bytes() {
		t.Errorf("%d bytes are shared, and %d reserved after %d", e.Bytes(), owner.Device().Reserved, before.Reserved)
	}
	i, err := reader.Import(e.Handle(), n)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]float32, n)
	for at, values := range map[int][]float32{0: {1, 2, 3}, 77: {4}, n - 2: {5, 6}, 500: {}} {
		copy(want[at:], values)
		e.Put(at, owner.FromHost(values))
	}
	got := reader.Alloc(n)
	i.Get(got[:50], 0)
	i.Get(got[50:], 50)
	i.Wait()
	e.Put(0, owner.Alloc(3)) // after the wait it comes too late to be read
	if !slices.Equal(reader.Host(got), want) {
		t.Error("another process reads other values")
	}
	for what, use := range map[string]func(){
		"beyond the end":    func() { i.Get(got[:2], n-1) },
		"before the begin":  func() { i.Get(got[:2], -1) },
		"put at the end":    func() { e.Put(n, owner.Alloc(1)) },
		"of another device": func() { e.Put(0, got[:1]) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			use()
		}()
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	e.Close()
	e.Close() // changes nothing
	if after := owner.Device(); after.Reserved != before.Reserved {
		t.Errorf("%d bytes are reserved when nothing is shared, %d before", after.Reserved, before.Reserved)
	}
}

// A handle that is not what it says is refused, and the device computes on.
func TestSet_Import_RefusesHandles(t *testing.T) {
	leak.Check(t)
	const n = 1000
	owner, reader := process(t, 0), process(t, 0)
	e, err := owner.Export(n)
	if err != nil {
		t.Fatal(err)
	}
	other, err := owner.Export(n)
	if err != nil {
		t.Fatal(err)
	}
	size := len(driver.MemoryHandle{})
	mixed := append(slices.Clone(e.Handle()[:size]), other.Handle()[size:]...)
	for what, c := range map[string]struct {
		set    *cuda.Set
		handle []byte
		n      int
		want   string
	}{
		"this process":    {owner, e.Handle(), n, "CUDA_ERROR_INVALID_CONTEXT"},
		"nothing":         {reader, nil, n, "a handle of 0 bytes, want 96"},
		"too much":        {reader, e.Handle(), driver.ShareUnit / 4, "it has 2097152 bytes, want 2097408"},
		"other memory":    {reader, mixed, n, "it is not what the handle was made for"},
		"unknown memory":  {reader, make([]byte, len(mixed)), n, "CUDA_ERROR_INVALID_VALUE"},
		"all that fits":   {reader, e.Handle(), driver.ShareUnit/4 - 64, ""},
		"the other one":   {reader, other.Handle(), n, ""},
		"the same, twice": {reader, other.Handle(), n, ""},
	} {
		i, err := c.set.Import(c.handle, c.n)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			} else if err := i.Close(); err != nil {
				t.Errorf("%s: close: %v", what, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", what, err, c.want)
		}
	}
	for _, set := range []*cuda.Set{owner, reader} {
		if got := set.Host(set.FromHost([]float32{1, 2})); !slices.Equal(got, []float32{1, 2}) || set.LostErr() != nil {
			t.Errorf("after what was refused the device has %v: %v", got, set.LostErr())
		}
	}
}

// Memory to be shared is refused like any other.
func TestSet_Export_RefusesWhatDoesNotFit(t *testing.T) {
	leak.Check(t)
	const memory = 3 << 20
	set := process(t, memory)
	short := (*driver.OutOfMemoryError)(nil)
	if _, err := set.Export(1 << 20); !errors.As(err, &short) || short.Wanted != 6<<20 || short.Free != memory {
		t.Errorf("6 MiB of 3: %v", err)
	}
	e, err := set.Export(1000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set.Export(1000); !errors.As(err, &short) || short.Free != 1<<20 {
		t.Errorf("4 MiB of 3: %v", err)
	}
	e.Close()
	if e, err = set.Export(1000); err != nil {
		t.Errorf("after the first is closed: %v", err)
	} else {
		e.Close()
	}
}
