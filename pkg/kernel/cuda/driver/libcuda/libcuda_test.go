//go:build cuda && linux && (amd64 || arm64)

package libcuda

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/drivertest"
)

// fake compiles the library of testdata.
func fake(t *testing.T) string {
	t.Helper()
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is missing: it compiles a library in place of the driver's")
	}
	path := filepath.Join(t.TempDir(), "libcuda.so.1")
	out, err := exec.Command(cc, "-shared", "-fPIC", "-o", path, "testdata/fake.c").CombinedOutput()
	if err != nil {
		t.Fatalf("compile: %v\n%s", err, out)
	}
	return path
}

// The real driver, where there is one.
func TestDriver_KeepsTheContract(t *testing.T) {
	defer leak.Check(t)
	d, err := Open(t.TempDir())
	if none := (*driver.NoDriverError)(nil); errors.As(err, &none) {
		t.Skip("this machine has no NVIDIA driver")
	}
	if err != nil {
		t.Fatal(err)
	}
	drivertest.Run(t, d)
	t.Run("TwoProcesses", func(t *testing.T) { sharesWithAChild(t, d) })
}

// handleVariable is the environment variable with the handle of memory that another process has exported.
const handleVariable = "LAMINA_TEST_MEMORY_HANDLE"

// shared is what the last bytes of that memory are.
var shared = []byte{1, 2, 3, 4}

// sharesWithAChild has a second process of this program read memory that this one exports.
func sharesWithAChild(t *testing.T, d driver.Driver) {
	c, err := driver.Start(d, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var handle driver.MemoryHandle
	err = c.Do(func(d driver.Device) error {
		s, err1 := d.NewStream()
		e, err2 := d.NewEvent()
		a, err3 := d.Alloc(driver.ShareUnit)
		p, err4 := d.AllocPinned(len(shared))
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return err
		}
		copy(p, shared)
		if err := d.Upload(a+driver.ShareUnit-driver.Address(len(p)), p, s); err != nil {
			return err
		}
		if err := driver.Wait(d, s, e, driver.DefaultLimit); err != nil {
			return err
		}
		handle, err = d.Export(a)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestDriver_ReadsMemoryOfAnotherProcess$")
	child.Env = append(os.Environ(), handleVariable+"="+hex.EncodeToString(handle[:]))
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("the second process ends with %v\n%s", err, out)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// It is the second process of sharesWithAChild.
func TestDriver_ReadsMemoryOfAnotherProcess(t *testing.T) {
	if os.Getenv(handleVariable) == "" {
		t.Skip("no other process has exported memory")
	}
	raw, err := hex.DecodeString(os.Getenv(handleVariable))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	c, err := driver.Start(d, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Do(func(d driver.Device) error {
		s, err1 := d.NewStream()
		e, err2 := d.NewEvent()
		p, err3 := d.AllocPinned(len(shared))
		at, size, err4 := d.Import(driver.MemoryHandle(raw))
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return err
		}
		if size != driver.ShareUnit {
			t.Errorf("the memory has %d bytes, want %d", size, driver.ShareUnit)
		}
		if err := d.Download(p, at+driver.ShareUnit-driver.Address(len(p)), s); err != nil {
			return err
		}
		if err := driver.Wait(d, s, e, driver.DefaultLimit); err != nil {
			return err
		}
		if !bytes.Equal(p, shared) {
			t.Errorf("the memory ends with %v, want %v", p, shared)
		}
		return d.FreeImport(at)
	})
	if err := errors.Join(err, c.Close()); err != nil {
		t.Error(err)
	}
}

// A library with the functions of the driver's shows what calls pass to it.
func TestDriver_OverALibraryInC(t *testing.T) {
	lib := fake(t)
	t.Run("KeepsTheContract", func(t *testing.T) { keepsTheContract(t, lib) })
	t.Run("DriversThatDoNotFit", func(t *testing.T) { driversThatDoNotFit(t, lib) })
	t.Run("PutsSignalHandlersBack", func(t *testing.T) { putsSignalHandlersBack(t, lib) })
	t.Run("SaysWhatTheCompilerSays", func(t *testing.T) { saysWhatTheCompilerSays(t, lib) })
	t.Run("OpensMemoryOfAnotherProcess", func(t *testing.T) { opensMemoryOfAnotherProcess(t, lib) })
}

func keepsTheContract(t *testing.T, lib string) {
	defer leak.Check(t)
	d, err := openNamed([]string{lib}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	drivertest.Run(t, d)
}

func TestOpen_WithoutDriver(t *testing.T) {
	_, err := openNamed([]string{"libcuda-of-nobody.so.1"}, "")
	none := (*driver.NoDriverError)(nil)
	if !errors.As(err, &none) {
		t.Fatalf("without a driver: %v", err)
	}
	if text := err.Error(); !strings.HasPrefix(text, "no NVIDIA driver: open libcuda-of-nobody.so.1: ") ||
		strings.Contains(text, "\n") {
		t.Errorf("the error is %q", text)
	}
}

func driversThatDoNotFit(t *testing.T, lib string) {
	for _, c := range []struct{ name, value, want string }{
		{"FAKE_VERSION", "11040", "the NVIDIA driver is too old: it supports CUDA 11.4, want 11.8 or newer"},
		{"FAKE_COUNT", "0", "no such device: the NVIDIA driver finds none"},
	} {
		t.Setenv(c.name, c.value)
		d, err := openNamed([]string{lib}, "")
		if err == nil {
			_, err = driver.Start(d, 0, 0)
		}
		if err == nil || err.Error() != c.want {
			t.Errorf("%s=%s: %v, want %s", c.name, c.value, err, c.want)
		}
		if err := os.Unsetenv(c.name); err != nil {
			t.Fatal(err)
		}
	}
}

// The library's initialisation replaces the handlers of two signals.
func putsSignalHandlersBack(t *testing.T, lib string) {
	var before [signals + 1]action
	for s := 1; s <= signals; s++ {
		var err error
		if before[s], err = readAction(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openNamed([]string{lib}, ""); err != nil {
		t.Fatal(err)
	}
	for s := 1; s <= signals; s++ {
		if after, err := readAction(s); err != nil || after != before[s] {
			t.Errorf("signal %v is handled as %+v, before %+v: %v", syscall.Signal(s), after, before[s], err)
		}
	}
}

func saysWhatTheCompilerSays(t *testing.T, lib string) {
	d, err := openNamed([]string{lib}, "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := driver.Start(d, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Do(func(d driver.Device) error {
		_, err := d.Load([]byte("nonsense"))
		return err
	})
	const want = "cuModuleLoadDataEx: CUDA_ERROR_218 (218): as the fake says: line 2: syntax error"
	if err == nil || err.Error() != want {
		t.Errorf("nonsense loads with %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// The last bytes of a handle name the process that made it, which the test changes to play another one.
func opensMemoryOfAnotherProcess(t *testing.T, lib string) {
	d, err := openNamed([]string{lib}, "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := driver.Start(d, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Do(func(d driver.Device) error {
		a, err := d.Alloc(driver.ShareUnit)
		if err != nil {
			return err
		}
		h, err := d.Export(a)
		if err != nil {
			return err
		}
		_, _, err = d.Import(h)
		const want = "share memory between processes: cuIpcOpenMemHandle_v2: CUDA_ERROR_201 (201): as the fake says"
		if err == nil || err.Error() != want || driver.Sticky(err) {
			t.Errorf("memory of this process opens with %v", err)
		}
		h[len(h)-1] ^= 1
		at, size, err := d.Import(h)
		if at != a || size != driver.ShareUnit || err != nil {
			t.Errorf("memory of another process is %d bytes at %#x, want %d at %#x: %v", size, at, driver.ShareUnit, a,
				err)
		}
		if err := d.FreeImport(at); err != nil {
			t.Errorf("close: %v", err)
		}
		if shared := (*driver.ShareError)(nil); !errors.As(d.FreeImport(at), &shared) {
			t.Error("what is closed is closed again")
		}
		return d.Free(a)
	})
	if err := errors.Join(err, c.Close()); err != nil {
		t.Error(err)
	}
}
