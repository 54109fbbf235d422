package examples_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// TestExamples_RunAgainstAMesh builds the programs and runs each against services in this
// process, as a user does against `lamina up`.
func TestExamples_RunAgainstAMesh(t *testing.T) {
	if testing.Short() {
		t.Skip("builds six programs")
	}
	programs := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", programs+string(filepath.Separator),
		"./go/...").CombinedOutput(); err != nil {
		t.Fatalf("build the examples: %v\n%s", err, out)
	}
	grpc, http := start(t, filepath.Join("..", "models", "lamina-tolstoy"))
	chat := "" // of a model whose context holds tools; the bundled one's does not
	if model := chatModel(); model != "" {
		_, chat = start(t, model)
	}
	text := filepath.Join(t.TempDir(), "count.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("one two three four five six seven eight nine\n", 400)),
		0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		program string
		args    []string
		want    string // a regular expression that the whole output matches
	}{
		{"generate", []string{"-router", grpc, "-tokens", "16"},
			`^The prince looked at her and(.|\n)+\n\n\d+ prompt tokens, 16 completion tokens, FINISH_REASON_LENGTH\n$`},
		{"logprobs", []string{"-router", grpc, "-tokens", "4", "-top", "2"},
			`^(".*" +-\d+\.\d{4}( +".*" \d+\.\d %){2}\n){4}perplexity of the answer: \d+\.\d\d\n$`},
		{"watch", []string{"-router", grpc, "-changes", "1"},
			`^[0-9:]{8}  \d services, 1 pipelines\n(.|\n)+pipeline .{8}  lamina-tolstoy over 2 stages, \d running, 0 waiting\n$`},
		{"train", []string{"-trainer", grpc, "-text", text, "-steps", "5", "-stages", "2"},
			`(?s)done: loss \d+\.\d{4}, model in .+, SHA-256 of the weights [0-9a-f]{64}\n$`},
		{"structured", []string{"-base", "http://" + http + "/v1"},
			`^".{0,24}" is -?\d+ years old and \[((brave|kind|proud|clever) ?){1,3}\]\n$`},
		{"chattools", []string{"-base", "http://" + chat + "/v1"},
			`^multiply\(-?\d+, -?\d+\) = -?\d+\n(.|\n)*$`},
	} {
		t.Run(c.program, func(t *testing.T) {
			if c.program == "chattools" && chat == "" {
				t.Skip("no chat model: set LAMINA_SHARED")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, filepath.Join(programs, c.program), c.args...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, errs.String())
			}
			if !regexp.MustCompile(c.want).Match(out) {
				t.Errorf("printed\n%s\nwant a match of %s", out, c.want)
			}
		})
	}
}

// chatModel returns the path of the shared chat model, or "" where it is missing.
func chatModel() string {
	path, err := fixtures.Find("models", "smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf")
	if err != nil {
		return ""
	}
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// start serves a model over two stages and returns the addresses of both APIs.
func start(t *testing.T, model string) (grpc, http string) {
	t.Helper()
	set := cpu.New(0)
	t.Cleanup(set.Close)
	mesh, err := app.Start(context.WithoutCancel(t.Context()), app.MeshConfig{
		Kernels: app.Kernels{Set: set},
		Model:   model,
		Stages:  2,
		Train:   true,
		Runs: app.TrainerConfig{
			Dir:        t.TempDir(),
			AllowPaths: []string{os.TempDir()},
		},
		GRPC: "127.0.0.1:0",
		HTTP: "127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mesh.Close(); err != nil {
			t.Error(err)
		}
	})
	return mesh.GRPCAddr(), mesh.HTTPAddr()
}
