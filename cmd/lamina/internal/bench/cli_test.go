package bench

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"

	"github.com/alecthomas/kong"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// sharedPath returns the path of a fixture, or skips the test.
func sharedPath(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

// kernelSets lists the kernel sets with which commands are tested.
func kernelSets() []string { return []string{"ref", "cpu"} }

// run parses and runs a command in the same way as lamina.
func run(t testing.TB, stdin string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	var cli struct {
		Bench Group `cmd:""`
	}
	parser, err := kong.New(&cli, kong.Writers(io.Discard, io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "parse")
	}
	err = parsed.Run(&verb.Env{
		Ctx: t.Context(), Log: slog.New(slog.DiscardHandler), Stdin: strings.NewReader(stdin), Stdout: &out,
		Stderr: io.Discard,
	})
	return out.String(), err
}

// verbJSON runs a command and decodes what it prints.
func verbJSON[T any](t testing.TB, stdin string, args ...string) T {
	t.Helper()
	var v T
	out, err := run(t, stdin, args...)
	if err != nil {
		t.Fatalf("lamina %s: %v", strings.Join(args, " "), err)
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("lamina %s: the output is not JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
	return v
}

// verbFails checks that a command fails with an error that contains words; with code 2 the error must
// be Invalid.
func verbFails(t testing.TB, code int, words, stdin string, args ...string) {
	t.Helper()
	out, err := run(t, stdin, args...)
	if code == 2 && fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), words) {
		t.Errorf("lamina %s: %v (printed %q), want %q", strings.Join(args, " "), err, out, words)
	}
}
