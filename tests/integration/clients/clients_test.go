package clients_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/fixtures"
)

const (
	prompt    = "The prince looked at her and"
	maxTokens = "24"
)

// answer is the output of every client.
type answer struct {
	Text     string   `json:"text"`
	TokenIDs []uint32 `json:"token_ids"`
}

func TestClients_AgreeWithTheCommandLine(t *testing.T) {
	if os.Getenv("LAMINA_CLIENTS") == "" {
		t.Skip("clients in other languages install packages: run `make clients-test`")
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if kept := os.Getenv("LAMINA_CLIENTS_CACHE"); kept != "" {
		work = kept
	}
	grpc, http := up(t, root, "")
	var want answer
	out := command(t, root, nil, filepath.Join(root, "bin/lamina"), "generate", "--router", grpc, "-p", prompt, "-n",
		maxTokens, "--format", "json")
	decode(t, out, &want)
	if want.Text == "" || len(want.TokenIDs) != 24 {
		t.Fatalf("lamina generate printed %q with %d ids", want.Text, len(want.TokenIDs))
	}
	check := func(t *testing.T, out string) {
		t.Helper()
		var got answer
		decode(t, out, &got)
		if got.Text != want.Text || !slices.Equal(got.TokenIDs, want.TokenIDs) {
			t.Errorf("got %q %v, want %q %v", got.Text, got.TokenIDs, want.Text, want.TokenIDs)
		}
	}
	clients := filepath.Join(root, "tests/integration/clients")

	t.Run("Python", func(t *testing.T) {
		python := venv(t, work, filepath.Join(clients, "python/requirements.txt"))
		stubs := pythonStubs(t, root, work, python)
		check(t, command(t, root, nil, python, filepath.Join(clients, "python/generate.py"), stubs, grpc, prompt,
			maxTokens))
	})
	t.Run("OpenAI", func(t *testing.T) {
		python := venv(t, work, filepath.Join(clients, "python/requirements.txt"))
		var got struct {
			Text   string `json:"text"`
			Reason string `json:"finish_reason"`
		}
		decode(t, command(t, root, nil, python, filepath.Join(clients, "python/chat.py"), http+"/v1", prompt,
			maxTokens), &got)
		if got.Text == "" || got.Reason == "" {
			t.Errorf("chat.py printed %+v", got)
		}
	})
	t.Run("OpenAIBatch", func(t *testing.T) {
		python := venv(t, work, filepath.Join(clients, "python/requirements.txt"))
		var got struct {
			Status         string
			Counts         []int
			Text           string
			Failed         map[string]int
			Embedded       int
			Wrong          []any
			Cancelled      string
			Batches, Files int
			Errors         []int
		}
		decode(t, command(t, root, nil, python, filepath.Join(clients, "python/openai_batch.py"), http+"/v1", prompt,
			maxTokens), &got)
		if got.Status != "completed" || !slices.Equal(got.Counts, []int{3, 2, 1}) || got.Text == "" ||
			!maps.Equal(got.Failed, map[string]int{"c": 400}) || got.Embedded != 1 ||
			!reflect.DeepEqual(got.Wrong, []any{"failed", []any{2.0, 3.0}}) || got.Cancelled != "cancelled" ||
			got.Batches != 4 || got.Files != 0 || !slices.Equal(got.Errors, []int{404, 404, 400}) {
			t.Errorf("openai_batch.py printed %+v", got)
		}
	})
	t.Run("PythonExamples", func(t *testing.T) {
		pythonExamples(t, root, work, grpc, http)
	})
	t.Run("APIs", func(t *testing.T) { otherAPIs(t, root, work, clients) })
	t.Run("TypeScript", func(t *testing.T) {
		dir := filepath.Join(work, "typescript")
		copyDir(t, filepath.Join(clients, "typescript"), dir)
		command(t, dir, nil, "npm", "install", "--no-package-lock", "--loglevel=error")
		command(t, root, nil, "go", "build", "-modfile=tools/go.mod", "-o", filepath.Join(work, "buf"),
			"github.com/bufbuild/buf/cmd/buf")
		command(t, dir, nil, filepath.Join(work, "buf"), "generate", "--template", "buf.gen.yaml",
			filepath.Join(root, "proto"))
		command(t, dir, nil, "npx", "tsc")
		check(t, command(t, dir, nil, "node", "dist/generate.js", grpc, prompt, maxTokens))
	})
	t.Run("Java", func(t *testing.T) {
		build := filepath.Join(work, "java")
		command(t, filepath.Join(clients, "java"), nil, "mvn", "-q", "-B", "package", "-Dbuild.root="+build)
		check(t, command(t, build, nil, "java", "-cp", "client-1.jar:lib/*", "mesh.lamina.client.Generate", grpc,
			prompt, maxTokens))
	})
}

// up starts `lamina up` on free ports, with the bundled model unless another is named, and
// returns its addresses.
func up(t *testing.T, root, model string) (grpc, http string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(root, "bin/lamina"), "up", "--grpc=127.0.0.1:0", "--http=127.0.0.1:0",
		"--runs="+t.TempDir(), "--batch-dir="+t.TempDir(), "--allow-path="+os.TempDir())
	if model != "" {
		cmd.Args = append(cmd.Args, "--model="+model)
	}
	cmd.Dir, cmd.Stderr = root, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start lamina (make build): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("lamina up ended with %v", err)
		}
	})
	lines := bufio.NewScanner(out)
	for (grpc == "" || http == "") && lines.Scan() {
		switch name, value, _ := strings.Cut(lines.Text(), " "); name {
		case "grpc":
			grpc = strings.TrimSpace(value)
		case "console":
			http = strings.TrimSpace(value)
		}
	}
	if grpc == "" || http == "" {
		t.Fatal("lamina up printed no addresses")
	}
	go io.Copy(io.Discard, out)
	return grpc, http
}

// command runs a program and returns its standard output.
func command(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, log.String())
	}
	return string(out)
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
}

// pythonStubs generates stubs from proto/ and returns their folder.
func pythonStubs(t *testing.T, root, work, python string) string {
	t.Helper()
	stubs := filepath.Join(work, "python-stubs")
	mkdir(t, stubs)
	args := []string{
		"-m", "grpc_tools.protoc", "-I", filepath.Join(root, "proto"),
		"--python_out=" + stubs, "--grpc_python_out=" + stubs,
	}
	command(t, root, nil, python, append(args, protos(t, root)...)...)
	return stubs
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

// pythonExamples runs every program of examples/python, and fails for one that it does not know.
func pythonExamples(t *testing.T, root, work, grpc, http string) {
	t.Helper()
	dir := filepath.Join(root, "examples/python")
	python := venv(t, work, filepath.Join(dir, "requirements.txt"))
	env := []string{"PYTHONPATH=" + pythonStubs(t, root, work, python), "PYTHONDONTWRITEBYTECODE=1"}
	text := filepath.Join(t.TempDir(), "count.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("one two three four five six seven eight nine\n", 400)),
		0o644); err != nil {
		t.Fatal(err)
	}
	chat := "" // of a model whose context holds tools; the bundled one's does not
	if model := chatModel(); model != "" {
		_, chat = up(t, root, model)
	}
	examples := map[string]struct {
		args []string
		want string // a regular expression that the whole output matches
	}{
		"generate.py": {[]string{"--router", grpc, "--tokens", "16"},
			`^The prince looked at her and(.|\n)+\n\d+ prompt tokens, 16 completion tokens\n$`},
		"logprobs.py": {[]string{"--router", grpc, "--tokens", "4"},
			`(?s)^(.+ %\n){4}perplexity of the answer: \d+\.\d\d\n$`},
		"watch.py": {[]string{"--router", grpc, "--changes", "1"},
			`(?s)^\d services, 1 pipelines\n.+ over 2 stages, .+\n$`},
		"train.py": {[]string{"--trainer", grpc, "--text", text, "--steps", "5"},
			`(?s)done: loss \d+\.\d{4}, model in .+, SHA-256 of the weights [0-9a-f]{64}\n$`},
		"structured.py": {[]string{"--base", http + "/v1"},
			`^.+ is -?\d+ years old and ((brave|kind|proud|clever)(, )?){1,3}\n$`},
		"chat_tools.py": {[]string{"--base", chat + "/v1"}, `(?s)^multiply\(-?\d+, -?\d+\) = -?\d+\n.*\n$`},
	}
	programs, err := filepath.Glob(filepath.Join(dir, "*.py"))
	if err != nil || len(programs) != len(examples) {
		t.Fatalf("want %d programs in %s, got %v (%v)", len(examples), dir, programs, err)
	}
	for _, program := range programs {
		example, ok := examples[filepath.Base(program)]
		if !ok {
			t.Fatalf("%s is not tested", program)
		}
		if filepath.Base(program) == "chat_tools.py" && chat == "" {
			t.Log("chat_tools.py is left out: no chat model, set LAMINA_SHARED")
			continue
		}
		out := command(t, root, env, python, append([]string{program}, example.args...)...)
		if !regexp.MustCompile(example.want).MatchString(out) {
			t.Errorf("%s printed\n%s\nwant a match of %s", filepath.Base(program), out, example.want)
		}
	}
}

// venv creates a Python environment with the requirements and returns its interpreter.
func venv(t *testing.T, work, requirements string) string {
	t.Helper()
	dir := filepath.Join(work, "venv")
	python := filepath.Join(dir, "bin/python")
	if _, err := os.Stat(python); err != nil {
		command(t, work, nil, "python3", "-m", "venv", dir)
	}
	command(t, work, nil, python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements)
	return python
}

func protos(t *testing.T, root string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "proto/lamina/*/v1/*.proto"))
	if err != nil || len(files) == 0 {
		t.Fatalf("find protos: %v", err)
	}
	return files
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// copyDir copies a folder, so that nothing is built inside the repository.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
}
