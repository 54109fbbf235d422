// Package deploy tests what deploy/ holds by the parsers of the tools that read it: Helm renders the chart and
// Kubernetes's types decode the result, Nomad's types name what a job may say, and systemd's units are parsed. Every
// command line must be one that the lamina binary accepts.
package deploy

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// root is the folder of the repository.
const root = "../.."

// binary is a lamina that TestMain builds, or LAMINA_BINARY.
var binary = os.Getenv("LAMINA_BINARY")

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if binary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "lamina-deploy")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "lamina")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/lamina")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build lamina: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// lamina runs the binary.
func lamina(args ...string) (string, error) {
	var out, problem bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("lamina %s: %v: %s", strings.Join(args, " "), err, problem.String())
	}
	return out.String(), nil
}

// accepts fails the test if lamina refuses a command line. It returns the configuration that the command would have.
func accepts(t *testing.T, file string, args ...string) string {
	t.Helper()
	all := []string{"config"}
	if file != "" {
		all = []string{"--config", file, "config"}
	}
	out, err := lamina(append(all, args...)...)
	if err != nil {
		t.Error(err)
	}
	return out
}

// services are the commands that deployments run.
var services = []string{"router", "tokenizer", "sampler", "shard", "trainer"}

func TestAccepts_UnknownFlag(t *testing.T) {
	if _, err := lamina("config", "shard", "--no-such-flag=1"); err == nil {
		t.Error("a command line that lamina refuses passes")
	}
}
