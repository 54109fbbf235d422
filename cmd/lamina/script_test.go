package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts_ShowTheVerbs runs the transcripts of shell sessions in testdata/script/*.txtar. lamina
// runs in this process. $MODEL is the bundled model.
func TestScripts_ShowTheVerbs(t *testing.T) {
	model, err := filepath.Abs(filepath.Join("..", "..", "models", "lamina-tolstoy"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("MODEL", model)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"lamina": lamina},
	})
}

// lamina implements the command `lamina VERB FLAGS < FILE` of the scripts. After `!` it must fail.
// Arguments that begin with ./ are files of the script.
func lamina(ts *testscript.TestScript, neg bool, args []string) {
	var stdin string
	if n := len(args); n > 1 && args[n-2] == "<" {
		stdin, args = ts.ReadFile(args[n-1]), args[:n-2]
	}
	for i, arg := range args {
		if strings.HasPrefix(arg, "./") {
			args[i] = ts.MkAbs(arg)
		}
	}
	code := run(context.Background(), args, strings.NewReader(stdin), ts.Stdout(), ts.Stderr())
	switch {
	case code != 0 && !neg:
		ts.Fatalf("lamina %s: exit %d", strings.Join(args, " "), code)
	case code == 0 && neg:
		ts.Fatalf("lamina %s: exit 0, want a failure", strings.Join(args, " "))
	}
}
