//go:build cuda && linux && (amd64 || arm64)

package verb_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
)

// asksForDevice makes this test's program open a device and print the error, in place of running tests.
const asksForDevice = "LAMINA_TEST_DEVICE"

func TestMain(m *testing.M) {
	if device := os.Getenv(asksForDevice); device != "" {
		_, end, err := (&verb.KernelFlags{Device: device}).KernelSet()
		if err != nil {
			_, _ = os.Stdout.WriteString(err.Error())
			os.Exit(3)
		}
		end()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// lamina-cuda says in one line what is missing. The driver's library is one of the tests, in C, or none.
func TestKernelSet_OfGPUsSaysWhatIsMissing(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(device string, env ...string) string {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), append(env, asksForDevice+"="+device, "HOME="+t.TempDir())...)
		out, _ := cmd.CombinedOutput() // whether it fails shows in what it prints
		return string(out)
	}
	dir := t.TempDir()
	nothing := "LD_LIBRARY_PATH=" + dir
	if out := run("cuda:0", nothing); strings.Contains(out, "no NVIDIA driver: open libcuda.so.1: ") {
		if strings.Contains(out, "\n") {
			t.Errorf("without a driver: %q", out)
		}
	} else {
		t.Logf("this machine has a driver: %q", out)
	}
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is missing: it compiles a library in place of the driver's")
	}
	source := filepath.Join("..", "..", "..", "..", "pkg", "kernel", "cuda", "driver", "libcuda", "testdata", "fake.c")
	out, err := exec.Command(cc, "-shared", "-fPIC", "-o", filepath.Join(dir, "libcuda.so.1"), source).CombinedOutput()
	if err != nil {
		t.Fatalf("compile: %v\n%s", err, out)
	}
	for _, c := range []struct{ device, env, want string }{
		{"cuda:0", "FAKE_VERSION=11040",
			"device: cuda:0: the NVIDIA driver is too old: it supports CUDA 11.4, want 11.8 or newer"},
		{"cuda:0", "FAKE_COUNT=0", "device: cuda:0: no such device: the NVIDIA driver finds none"},
		{"cuda:7", "FAKE_COUNT=2", "device: cuda:7: no such device: there are cuda:0 to cuda:1"},
	} {
		if out := run(c.device, nothing, c.env); out != c.want {
			t.Errorf("%s with %s: %q, want %q", c.device, c.env, out, c.want)
		}
	}
}
