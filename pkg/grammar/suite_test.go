package grammar_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// suiteDir returns the checkout of the JSON Schema Test Suite that LAMINA_JSON_SCHEMA_SUITE
// names.
func suiteDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("LAMINA_JSON_SCHEMA_SUITE")
	if dir == "" {
		t.Skip("skip: LAMINA_JSON_SCHEMA_SUITE names no checkout of the JSON Schema Test Suite")
	}
	return dir
}

// suiteGroup is a schema of the suite with its instances.
type suiteGroup struct {
	Description string
	Schema      json.RawMessage
	Tests       []struct {
		Description string
		Data        json.RawMessage
		Valid       bool
	}
}

// verdicts counts the instances of one file of the suite.
type verdicts struct{ right, refused, wrong, asserted int }

func (v *verdicts) add(o verdicts) {
	v.right += o.right
	v.refused += o.refused
	v.wrong += o.wrong
	v.asserted += o.asserted
}

// suiteRemotes reads the documents that the suite's references name.
func suiteRemotes(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	root := filepath.Join(dir, "remotes")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".json" {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		out["http://localhost:1234/"+filepath.ToSlash(rel)], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatalf("read the suite's remotes: %v", err)
	}
	return out
}

// TestSchema_Suite runs the JSON Schema Test Suite for draft 2020-12 and prints the table that
// docs/json-schema.md holds. It fails if an instance gets the wrong verdict, unless a format is
// the reason, and if more schemas are refused than before.
func TestSchema_Suite(t *testing.T) {
	dir := suiteDir(t)
	remotes := suiteRemotes(t, dir)
	var files []string
	for _, sub := range []string{"", "optional", "optional/format"} {
		found, err := filepath.Glob(filepath.Join(dir, "tests/draft2020-12", sub, "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		t.Fatalf("find tests/draft2020-12/*.json in %s: there are none", dir)
	}
	var total verdicts
	var table strings.Builder
	reasons := map[string]int{}
	for _, file := range files {
		rel, err := filepath.Rel(filepath.Join(dir, "tests/draft2020-12"), file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.ToSlash(rel), ".json")
		var v verdicts
		for _, group := range readJSON[[]suiteGroup](t, file) {
			v.add(runGroup(t, name, group, remotes, reasons))
		}
		total.add(v)
		fmt.Fprintf(&table, "| %s | %d | %d | %d | %d |\n", name, v.right, v.refused, v.asserted, v.wrong)
	}
	fmt.Fprintf(&table, "| **all** | %d | %d | %d | %d |\n", total.right, total.refused, total.asserted, total.wrong)
	var why []string
	for reason, n := range reasons {
		why = append(why, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(why)
	t.Logf("| keyword | right | refused | format | wrong |\n|---|---|---|---|---|\n%s\nrefused:\n%s", table.String(),
		strings.Join(why, "\n"))
	if total.wrong > 0 {
		t.Errorf("%d verdicts are wrong", total.wrong)
	}
	const mayRefuse = 60
	if total.refused > mayRefuse {
		t.Errorf("%d verdicts are refused, want at most %d", total.refused, mayRefuse)
	}
}

// runGroup compares the verdicts on one schema with the suite's.
func runGroup(t *testing.T, file string, group suiteGroup, remotes map[string][]byte,
	reasons map[string]int) (v verdicts) {
	name := file + ": " + group.Description
	format := strings.HasPrefix(file, "optional/format/") || file == "format"
	g, err := grammar.SchemaWith(group.Schema, grammar.SchemaOptions{Documents: remotes})
	var c *grammar.Compiled
	if err == nil {
		c, err = grammar.Compile(g, nil)
	}
	var unsupported *grammar.UnsupportedError
	var limit *grammar.LimitError
	switch {
	case errors.As(err, &unsupported) && unsupported.Feature == "an empty language": // no instance is valid
	case errors.As(err, &unsupported), errors.As(err, &limit):
		t.Logf("%s: %d verdicts: %v", name, len(group.Tests), err)
		reason := err.Error()
		if unsupported != nil {
			reason, _, _ = strings.Cut(unsupported.Feature, " ")
		}
		reasons[reason] += len(group.Tests)
		v.refused += len(group.Tests)
		return v
	case err != nil:
		t.Errorf("%s: %v", name, err)
		v.wrong += len(group.Tests)
		return v
	}
	for _, test := range group.Tests {
		text := pythonJSON(t, test.Data)
		got := c != nil && accepts(c, text)
		switch {
		case got == test.Valid:
			v.right++
		case format && !got: // the language of a format is a subset on purpose
			v.asserted++
			t.Logf("%s: %s: format refuses %s", name, test.Description, text)
		default:
			v.wrong++
			t.Logf("%s: %s: accepts %v, want %v: %s", name, test.Description, got, test.Valid, text)
		}
	}
	return v
}

// pythonJSON writes data as Python's json.dumps does, its order kept. Whole numbers are written out.
func pythonJSON(t *testing.T, data json.RawMessage) string {
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	var b strings.Builder
	var value func()
	token := func() json.Token {
		tok, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	value = func() {
		tok := token()
		delim, ok := tok.(json.Delim)
		if n, isNumber := tok.(json.Number); isNumber && strings.ContainsAny(n.String(), "eE") {
			if r, ok := new(big.Rat).SetString(n.String()); ok && r.IsInt() {
				b.WriteString(r.Num().String())
				return
			}
		}
		if !ok {
			b.WriteString(pythonString(t, tok))
			return
		}
		b.WriteString(delim.String())
		for i := 0; d.More(); i++ {
			if i > 0 {
				b.WriteString(", ")
			}
			if delim == '{' {
				b.WriteString(pythonString(t, token()))
				b.WriteString(": ")
			}
			value()
		}
		b.WriteString(token().(json.Delim).String())
	}
	value()
	return b.String()
}

// pythonString returns a scalar as JSON, without the escapes that only HTML needs.
func pythonString(t *testing.T, scalar any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(scalar); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
