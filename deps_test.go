package lamina_test

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/lamina-mesh/lamina/"

// pkg holds what the rules below check about a package.
type pkg struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func (p pkg) path() string { return strings.TrimPrefix(p.ImportPath, module) }

// load lists every package of the module.
func load(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports",
		"./...").Output()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("decode the package list: %v", err)
		}
		all = append(all, p)
	}
}

// under reports whether path is one of the prefixes or is below one of them.
func under(path string, prefixes ...string) bool {
	for _, prefix := range prefixes {
		if path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/") {
			return true
		}
	}
	return false
}

// rule forbids the packages in from, except some, to import those in to, except what
// allow lists. All are prefixes of import paths; those of this module are relative to it.
type rule struct {
	from, except []string
	to, allow    []string
	reason       string
}

var compute = []string{"pkg/tensor", "pkg/kernel", "pkg/kvcache", "pkg/model", "pkg/optim", "pkg/weights", "pkg/export"}

var pure = []string{
	"pkg/plan",
	"pkg/deploy",
	"pkg/session",
	"pkg/sched",
	"pkg/schedule",
	"pkg/sample",
	"pkg/grammar",
	"pkg/vocab",
	"pkg/template",
	"pkg/compress",
	"pkg/quant",
	"pkg/eval",
	"pkg/reward",
	"pkg/toolcall",
	"pkg/toolloop",
	"pkg/batch",
}

var rules = []rule{
	{
		from: []string{"pkg/tensor"}, to: []string{"pkg"}, allow: []string{"pkg/tensor"},
		reason: "tensor is the lowest layer: it imports only the standard library",
	},
	{
		from: []string{"pkg/kernel"}, to: []string{"pkg"}, allow: []string{"pkg/tensor", "pkg/kernel"},
		reason: "files, caches and models build on kernels, not the other way round",
	},
	{
		from: compute, to: []string{"pkg/gen", "google.golang.org", "github.com/hashicorp", "github.com/nats-io", "log",
			"log/slog", "pkg/rpc", "pkg/obs"},
		reason: "compute packages do not know about gRPC, vendors or logs",
	},
	{
		from: pure, to: []string{"pkg", "google.golang.org", "github.com/hashicorp", "github.com/nats-io", "net",
			"log/slog", "time/rate"},
		allow:  append([]string{"pkg/tensor", "pkg/fault", "pkg/pyjson", "net/url"}, pure...),
		reason: "logic that is hard to get right stays pure, so that tests can cover it",
	},
	{
		from:   []string{"pkg/plan", "pkg/deploy", "pkg/session", "pkg/sched", "pkg/schedule", "pkg/sample"},
		to:     []string{"os", "time", "sync", "net"},
		allow:  []string{"time"},
		reason: "decisions use no clock, no I/O and no goroutines (time.Duration as a value is fine)",
	},
	{
		from:   []string{"pkg/grammar/charset", "pkg/grammar/ast", "pkg/grammar/regex"},
		to:     []string{"pkg/grammar"},
		allow:  []string{"pkg/grammar/charset", "pkg/grammar/ast"},
		reason: "character sets, expressions and the parser of regular expressions know no automaton; vocabularies use them",
	},
	{
		from:   []string{"pkg/grammar/spelling", "pkg/grammar/automaton", "pkg/grammar/mask"},
		to:     []string{"pkg/grammar/gbnf", "pkg/grammar/jsonschema", "pkg/grammar/language", "pkg/grammar/tags"},
		reason: "automata and masks run rules, whatever notation they were written in",
	},
	{
		from:   []string{"pkg/grammar/gbnf", "pkg/grammar/jsonschema", "pkg/grammar/language", "pkg/grammar/tags"},
		to:     []string{"pkg/grammar/mask"},
		reason: "a notation knows no tokens",
	},
	{
		from: []string{"pkg"}, to: []string{"services", "cmd", "tests"},
		reason: "packages do not know who uses them",
	},
	{
		from: []string{"services"},
		to: []string{"cmd", "tests", "pkg/discovery/consul", "pkg/gradbus/nats", "pkg/journal/nats",
			"pkg/kernel/cuda"},
		reason: "vendor adapters are wired only in cmd/lamina and the test harness",
	},
	{
		from: []string{"pkg", "services", "tests"}, except: []string{"tests/integration"},
		to:     []string{"flag", "github.com/alecthomas/kong"},
		reason: "flags exist only in cmd",
	},
}

func TestImports_FollowTheArchitecture(t *testing.T) {
	for _, p := range load(t) {
		for _, r := range rules {
			if !under(p.path(), r.from...) || under(p.path(), r.except...) {
				continue
			}
			for _, imported := range p.Imports {
				local := strings.TrimPrefix(imported, module)
				if under(local, r.to...) && !under(local, r.allow...) {
					t.Errorf("%s imports %s: %s", p.path(), local, r.reason)
				}
			}
		}
	}
}

func TestServices_ShareOnlyProtocols(t *testing.T) {
	for _, p := range load(t) {
		if !under(p.path(), "services") {
			continue
		}
		own := strings.Join(strings.Split(p.path(), "/")[:2], "/")
		for _, imported := range append(append(p.Imports, p.TestImports...), p.XTestImports...) {
			if local := strings.TrimPrefix(imported, module); under(local, "services") && !under(local, own) {
				t.Errorf("%s imports %s: services share protocols only", p.path(), local)
			}
		}
	}
}

func TestWire_IsTheOnlyImporterOfTensorAndGen(t *testing.T) {
	for _, p := range load(t) {
		if !under(p.path(), "pkg") || p.path() == "pkg/wire" {
			continue
		}
		var tensor, gen bool
		for _, imported := range p.Imports {
			tensor = tensor || imported == module+"pkg/tensor"
			gen = gen || strings.HasPrefix(imported, module+"pkg/gen/")
		}
		if tensor && gen {
			t.Errorf("%s imports tensor and gen: within pkg only wire converts between them", p.path())
		}
	}
}

func TestPrograms_AreLaminaAndExamples(t *testing.T) {
	for _, p := range load(t) {
		if len(p.GoFiles) > 0 {
			file := p.GoFiles[0]
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil,
				parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Name.Name == "main" && p.path() != "cmd/lamina" && !under(p.path(), "examples") &&
				!under(p.path(), "tests") {
				t.Errorf("%s is package main: want cmd/lamina, an example or what a test builds", p.path())
			}
		}
	}
}

func TestPackages_HaveAComment(t *testing.T) {
	for _, p := range load(t) {
		if under(p.path(), "pkg/gen") {
			continue
		}
		documented := len(p.GoFiles) == 0
		for _, file := range p.GoFiles {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil,
				parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			documented = documented || parsed.Doc != nil
		}
		if !documented {
			t.Errorf("%s has no package comment: readers should learn in a minute what the package is for", p.path())
		}
	}
}

func TestFiles_StayReadable(t *testing.T) {
	const hard = 800
	for _, p := range load(t) {
		if under(p.path(), "pkg/gen") {
			continue
		}
		files, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(string(text), "// Code generated ") {
				continue // nobody reads it: its generator is read
			}
			if lines := strings.Count(string(text), "\n"); lines > hard {
				t.Errorf("%s has %d lines, more than %d: split it by purpose", file, lines, hard)
			}
		}
	}
}

func TestPackages_HaveNoInit(t *testing.T) {
	for _, p := range load(t) {
		if under(p.path(), "pkg/gen") {
			continue
		}
		for _, file := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "\nfunc init()") {
				t.Errorf("%s/%s has an init function: all wiring is in cmd/lamina", p.path(), file)
			}
		}
	}
}

func TestArchitecture_StaysShort(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "\n"); lines > 150 {
		t.Errorf("ARCHITECTURE.md has %d lines, more than 150", lines)
	}
}
