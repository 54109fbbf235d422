package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestGenerate_HeldToAGrammar(t *testing.T) {
	model := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	gbnf := filepath.Join(t.TempDir(), "g")
	if err := os.WriteFile(gbnf, []byte("root ::= \" \" [a-z]+ \" and \" [a-z]+ \".\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ flag, value, want string }{
		{"--regex", ` [a-z]{3,5}( [a-z]{2}){2}!`, `^ [a-z]{3,5}( [a-z]{2}){2}!$`},
		{"--gbnf", gbnf, `^ [a-z]+ and [a-z]+\.$`},
	} {
		got := strings.TrimSuffix(verbOK(t, "", "generate", "-m", model, "-p", "Lily had a", c.flag, c.value, "-n", "60"), "\n")
		if !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("%s: %q is not %s", c.flag, got, c.want)
		}
	}
	verbFails(t, 2, "grammar.source", "", "generate", "-m", model, "-p", "x", "--regex", "(")
}
