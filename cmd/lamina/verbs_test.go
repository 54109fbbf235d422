package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
)

// sharedPath returns the path of a fixture, or skips the test.
func sharedPath(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

// runVerb runs a command as a user does.
func runVerb(t testing.TB, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(stdin), &out, &errs)
	return out.String(), errs.String(), code
}

// verbOK runs a command that must succeed and returns its output.
func verbOK(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, errs, code := runVerb(t, stdin, args...)
	if code != 0 {
		t.Fatalf("lamina %s: exit %d: %s", strings.Join(args, " "), code, errs)
	}
	return out
}

// verbJSON runs a command and decodes the JSON that it prints.
func verbJSON[T any](t testing.TB, stdin string, args ...string) T {
	t.Helper()
	var v T
	out := verbOK(t, stdin, args...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("lamina %s: the output is not JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
	return v
}

// verbFails runs a command and checks its exit code, and that its error contains words.
func verbFails(t testing.TB, code int, words, stdin string, args ...string) {
	t.Helper()
	out, errs, got := runVerb(t, stdin, args...)
	if got != code || !strings.Contains(errs, words) {
		t.Errorf("lamina %s: exit %d with %q (printed %q), want exit %d with %q", strings.Join(args, " "), got, errs,
			out, code, words)
	}
}

// kernelSets lists the kernel sets with which commands are tested.
func kernelSets() []string { return []string{"ref", "cpu"} }

func readJSON[T any](t testing.TB, path string) T {
	t.Helper()
	var v T
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("parse %s: %v", path, err)
	}
	return v
}
