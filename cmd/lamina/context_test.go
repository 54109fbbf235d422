package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// TestGenerate_ContextPolicies continues a text beyond a context length of 64 tokens.
func TestGenerate_ContextPolicies(t *testing.T) {
	model := sharedPath(t, "models/stories260K/stories260K-f32.gguf")
	long := strings.Repeat("Once upon a time there was a little girl. ", 12)
	generate := func(args ...string) (code int, stdout, stderr string) {
		var out, errs bytes.Buffer
		args = append([]string{"generate", "-m", model, "-n", "24", "--context-length", "64"}, args...)
		code = run(context.Background(), args, strings.NewReader(""), &out, &errs)
		return code, out.String(), errs.String()
	}
	for _, c := range []struct {
		args []string
		want string // on standard error
	}{
		{[]string{"-p", "Once"}, ""},
		{[]string{"-p", long[:200], "-n", "80", "--context-policy", "slide", "--context-sinks", "2",
			"--context-window", "40"}, "context policy slide: "},
		{[]string{"-p", long, "--context-policy", "truncate_middle", "--priority=-3", "--wait-for-capacity", "9"},
			"context policy truncate_middle: "},
	} {
		code, _, stderr := generate(c.args...)
		if code != 0 || (c.want == "") != (stderr == "") || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit %d, %q", c.args, code, stderr)
		}
		if c.want != "" && !strings.Contains(stderr, "the context length is 64\n") {
			t.Errorf("%v: %q does not name the context length", c.args, stderr)
		}
	}
	if code, _, stderr := generate("-p", long); code == 0 || !strings.Contains(stderr, "context length") {
		t.Errorf("without a policy: exit %d, %q", code, stderr)
	}
	if code, _, stderr := generate("-p", "x", "--priority", "200"); code != 2 || !strings.Contains(stderr, "priority") {
		t.Errorf("a priority out of range: exit %d, %q", code, stderr)
	}
	got := verbJSON[generated](t, "", "generate", "-m", model, "-p", long, "-n", "8", "--context-length", "64",
		"--context-policy", "truncate_middle", "--format", "json")
	u := got.Context
	if u == nil || u.Policy != "truncate_middle" || len(u.Dropped) != 1 || u.DroppedTokens != u.Dropped[0].Count ||
		u.DroppedTokens == 0 {
		t.Errorf("--format json says %+v", u)
	}
}
