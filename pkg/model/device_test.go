package model_test

import (
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// exportData finds what the compiler keeps of the package's imports.
func exportData(t *testing.T) importer.Lookup {
	t.Helper()
	list, err := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for line := range strings.Lines(string(list)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		files[path] = file
	}
	return func(path string) (io.ReadCloser, error) { return os.Open(files[path]) }
}

// TestPackage_NeverTouchesElementsOfBuffers checks the rule of kernel.Buffer: elements of a buffer
// belong to the set's device. The package must not index, range over, copy, clear or grow a buffer.
// It uses Memory and the operations of kernel.Set.
func TestPackage_NeverTouchesElementsOfBuffers(t *testing.T) {
	fset := token.NewFileSet()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, e.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", exportData(t))}
	if _, err := config.Check("model", fset, files, info); err != nil {
		t.Fatal(err)
	}
	buffers := 0
	isBuffer := func(e ast.Expr) bool {
		named, ok := types.Unalias(info.Types[e].Type).(*types.Named)
		return ok && info.Types[e].IsValue() && named.Obj().Name() == "Buffer" &&
			strings.HasSuffix(named.Obj().Pkg().Path(), "pkg/kernel")
	}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SliceExpr:
				if isBuffer(n.X) {
					buffers++
				}
			case *ast.IndexExpr:
				if isBuffer(n.X) {
					t.Errorf("%v: an element of a buffer is indexed", fset.Position(n.Pos()))
				}
			case *ast.RangeStmt:
				if isBuffer(n.X) {
					t.Errorf("%v: a loop over a buffer", fset.Position(n.Pos()))
				}
			case *ast.CallExpr:
				name, ok := n.Fun.(*ast.Ident)
				if !ok || name.Name != "copy" && name.Name != "clear" && name.Name != "append" {
					break
				}
				for _, arg := range n.Args {
					if isBuffer(arg) {
						t.Errorf("%v: %s of a buffer", fset.Position(n.Pos()), name.Name)
					}
				}
			}
			return true
		})
	}
	if buffers < 20 {
		t.Errorf("only %d buffers are sliced: the check misses them", buffers)
	}
}
