//go:build cuda && linux && (amd64 || arm64)

package libcuda

import (
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
}

// A library with the functions of the driver's shows what calls pass to it.
func TestDriver_OverALibraryInC(t *testing.T) {
	lib := fake(t)
	t.Run("KeepsTheContract", func(t *testing.T) { keepsTheContract(t, lib) })
	t.Run("DriversThatDoNotFit", func(t *testing.T) { driversThatDoNotFit(t, lib) })
	t.Run("PutsSignalHandlersBack", func(t *testing.T) { putsSignalHandlersBack(t, lib) })
	t.Run("SaysWhatTheCompilerSays", func(t *testing.T) { saysWhatTheCompilerSays(t, lib) })
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
