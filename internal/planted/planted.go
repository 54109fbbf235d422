// Package planted builds programs with bugs in them, for tests of tests: a test that has never failed proves little.
// The sources are replaced by an overlay of the go command, so that nothing of a bug is in the repository's program.
// Only tests use it.
package planted

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Overlay applies a patch to copies of sources and returns the file for the flag -overlay of the go command. root is
// the top folder of the repository. A patch is a line that says what is wrong with it, and then, for each place, a
// line with "--- " and the name of a file, and lines of that file: those that begin with "-" are replaced by those
// that begin with "+". They must occur exactly once.
func Overlay(t testing.TB, root, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	root, err = filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for i, hunk := range strings.Split(string(text), "\n--- ")[1:] {
		name, lines, _ := strings.Cut(hunk, "\n")
		source := filepath.Join(root, filepath.FromSlash(name))
		from := source
		if patched := replace[source]; patched != "" { // by an earlier hunk
			from = patched
		}
		code, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		var old, changed strings.Builder
		for _, line := range strings.Split(strings.TrimSuffix(lines, "\n"), "\n") {
			part := &old
			if line[0] == '+' {
				part = &changed
			}
			part.WriteString(line[1:] + "\n")
		}
		before := string(code)
		if n := strings.Count(before, old.String()); n != 1 {
			t.Fatalf("%s: hunk %d occurs %d times in %s", file, i+1, n, name)
		}
		replace[source] = filepath.Join(dir, fmt.Sprintf("%d.go", i))
		after := strings.Replace(before, old.String(), changed.String(), 1)
		if err := os.WriteFile(replace[source], []byte(after), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(out, config, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}
