package trainer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// pathsFixture makes a data folder with a text, and a secret beside it.
func pathsFixture(t *testing.T) (root, data string) {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data = filepath.Join(root, "data")
	for _, dir := range []string{data, filepath.Join(data, "sub"), filepath.Join(root, "data-other")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"data/text.txt", "data/sub/more.txt", "secret.txt", "data-other/secret.txt"} {
		if err := os.WriteFile(filepath.Join(root, file), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"data/inside": "sub", "data/outside": "..", "data/absolute": filepath.Join(root, "secret.txt"),
		"data/root": "/", "data/proc": "/proc", "data/loop": "loop", "data/chain": "outside/secret.txt",
		"data/nowhere": "missing", "data/twice": "sub/../../secret.txt", "data/sibling": "../data-other",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(data, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	return root, data
}

func TestPaths_NamesInsideTheDataFolder(t *testing.T) {
	root, data := pathsFixture(t)
	p, err := newPaths(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"text.txt": "text.txt", "sub/more.txt": "sub/more.txt", "./text.txt": "text.txt", "sub": "sub", ".": ".",
		"inside/more.txt": "sub/more.txt",
	} {
		if got, err := p.resolve("data.text", name); err != nil || got != filepath.Join(data, want) {
			t.Errorf("%q is %q, %v; want %q", name, got, err, want)
		}
	}
	wide, err := newPaths(data, []string{filepath.Join(root, "data-other")})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		filepath.Join(root, "data-other/secret.txt"): "data-other/secret.txt",
		"sibling/secret.txt":                         "data-other/secret.txt",
		"../data-other/secret.txt":                   "data-other/secret.txt",
		"text.txt":                                   "data/text.txt",
	} {
		if got, err := wide.resolve("data.text", name); err != nil || got != filepath.Join(root, want) {
			t.Errorf("%q is %q, %v; want %q", name, got, err, want)
		}
	}
	if _, err := wide.resolve("data.text", "../secret.txt"); err == nil {
		t.Error("a folder beside the allowed one is readable")
	}
}

// TestPaths_AServedModelByItsName is about model.from alone, and comes after the files of the data folder.
func TestPaths_AServedModelByItsName(t *testing.T) {
	_, data := pathsFixture(t)
	p, err := newPaths(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.models = map[string]string{"served": "/models/served", "sub": "/models/sub"}
	if got, err := p.resolve("model.from", "served"); err != nil || got != "/models/served" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := p.resolve("model.from", "sub"); err != nil || got != filepath.Join(data, "sub") {
		t.Errorf("a name that the data folder has, too: %q, %v", got, err)
	}
	if _, err := p.resolve("data.text", "served"); fault.CodeOf(err) != fault.NotFound ||
		!strings.Contains(err.Error(), data) {
		t.Errorf("another field: %v", err)
	}
	if _, err := p.resolve("model.from", "other"); fault.CodeOf(err) != fault.NotFound ||
		!strings.Contains(err.Error(), "served, sub") {
		t.Errorf("another name: %v", err)
	}
}

// TestPaths_RefusesWhatLeadsOut tries each way out under each way of writing a path.
func TestPaths_RefusesWhatLeadsOut(t *testing.T) {
	root, data := pathsFixture(t)
	p, err := newPaths(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	targets := []string{
		"../secret.txt", "../data-other/secret.txt", "../../../../../../etc/passwd", "..", "../", "outside/secret.txt",
		"absolute", "root/etc/passwd", "root/proc/self/environ", "proc/self/environ", "proc/self/root/etc/passwd",
		"proc/self/cwd", "proc/1/environ", "proc/self/fd/0", "chain", "twice", "loop", "nowhere", "missing.txt",
		"sibling/secret.txt", "pipe", "/etc/passwd", "/proc/self/environ", "/proc/self/mem", "/dev/zero", "/dev/stdin",
		"/", "//etc/passwd", filepath.Join(data, "text.txt"), filepath.Join(root, "secret.txt"),
		"text.txt/../../secret.txt", "text.txt/x", "\x00", "text.txt\x00.md", "", strings.Repeat("a/", 3000), strings.Repeat("x", 300),
	}
	forms := []func(string) string{
		func(s string) string { return s },
		func(s string) string { return "./" + s },
		func(s string) string { return "sub/../" + s },
		func(s string) string { return "inside/../" + s },
		func(s string) string { return "sub/./../" + s },
		func(s string) string { return strings.ReplaceAll(s, "/", "//") },
		func(s string) string { return strings.ReplaceAll(s, "/", "/./") },
		func(s string) string { return "missing/../" + s },
		func(s string) string { return data + "/../" + s },
		func(s string) string { return data + "/" + s },
		func(s string) string { return "../data/" + s },
		func(s string) string { return "outside/data/" + s },
		func(s string) string { return "root/" + root + "/data/" + s },
		func(s string) string { return "proc/self/root/" + root + "/data/" + s },
	}
	cases := 0
	for _, target := range targets {
		for i, form := range forms {
			name := form(target)
			cases++
			got, err := p.resolve("data.text", name)
			if err == nil && (i == 0 || !within(data, got)) {
				t.Errorf("%q leads to %q", name, got)
			}
			if c := fault.CodeOf(err); err != nil && c != fault.Invalid && c != fault.NotFound {
				t.Errorf("%q: %v has code %v", name, err, fault.CodeOf(err))
			}
		}
	}
	for _, name := range []string{
		"outside/missing", "root/missing", "/missing", "../missing", "nowhere/../../missing",
	} {
		if _, err := p.resolve("data.text", name); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q says whether a file exists outside of the data folder: %v", name, err)
		}
	}
	if cases < 500 {
		t.Errorf("%d cases, want 500", cases)
	}
}

func TestPaths_NewFoldersStayInside(t *testing.T) {
	root, data := pathsFixture(t)
	p, err := newPaths(data, []string{filepath.Join(root, "data-other")})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"new": "data/new", "new/deep/er": "data/new/deep/er", "sub": "data/sub", "inside/x": "data/sub/x",
		filepath.Join(root, "data-other", "x"): "data-other/x",
	} {
		if got, err := p.resolveNew("out", name); err != nil || got != filepath.Join(root, want) {
			t.Errorf("%q is %q, %v; want %q", name, got, err, want)
		}
	}
	for _, name := range []string{
		"../new", "outside/new", "nowhere/x", "loop/x", "root/tmp/x", "/tmp/x", "chain/x", "proc/self/x", "",
		filepath.Join(root, "new"), fmt.Sprintf("%s/../new", filepath.Join(root, "data-other")),
	} {
		if got, err := p.resolveNew("out", name); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}
