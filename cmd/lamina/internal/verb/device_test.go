//go:build !cuda && linux && (amd64 || arm64)

package verb_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
)

// asksForDevice makes this test's program open device cuda:0 and print the error, in place of running tests.
const asksForDevice = "LAMINA_TEST_DEVICE"

func TestMain(m *testing.M) {
	if device := os.Getenv(asksForDevice); device != "" {
		_, _, err := (&verb.KernelFlags{Device: device}).KernelSet()
		_, _ = os.Stdout.WriteString(err.Error())
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// program copies this test's program to a folder of its own and runs it there.
func program(t *testing.T, dir, device string, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	path := filepath.Join(dir, "lamina")
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), asksForDevice+"="+device)
	out, _ := cmd.CombinedOutput() // whether it fails shows in what it prints
	return string(out)
}

func TestKernelSet_StartsLaminaCUDA(t *testing.T) {
	dir := t.TempDir()
	const text = "device: cuda:0 needs lamina-cuda, which does not lie in "
	if out := program(t, dir, "cuda:0"); !strings.HasPrefix(out, text) || strings.Contains(out, "\n") {
		t.Errorf("without lamina-cuda: %q", out)
	}
	beside := filepath.Join(dir, "lamina-cuda")
	if err := os.WriteFile(beside, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out := program(t, dir, "cuda:0"); !strings.Contains(out, "lamina-cuda: exec format error") {
		t.Errorf("with a file that is no program: %q", out)
	}
	if err := os.WriteFile(beside, []byte("#!/bin/sh\necho started with \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out := program(t, dir, "cuda:0", "shard", "--device", "cuda:0"); out != "started with shard --device cuda:0\n" {
		t.Errorf("with lamina-cuda beside: %q", out)
	}
}

func TestKernelSet_DevicesThatDoNotFit(t *testing.T) {
	for _, c := range []struct {
		flags verb.KernelFlags
		want  string
	}{
		{verb.KernelFlags{Device: "gpu"}, `device: unknown device "gpu": want cpu, or cuda: and a number from 0 to 255`},
		{verb.KernelFlags{Device: "cuda:-1"}, `device: unknown device "cuda:-1"`},
		{verb.KernelFlags{Device: "cuda:0", Kernels: "ref"}, "kernels: the ref kernel set computes on the processor"},
		{verb.KernelFlags{Device: "cuda:1", Instructions: "avx2"}, "instructions: cuda:1 has no choice of instructions"},
	} {
		_, _, err := c.flags.KernelSet()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", c.flags, err, c.want)
		}
	}
}
