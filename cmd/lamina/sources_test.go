package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pull"
)

func TestSourceFlags_RevisionsAndTokens(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secret, []byte("hf_secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := sourceFlags{Source: []string{"owner/name", "owner/other@v1.2"}, Revision: "stable", TokenFile: secret,
		Include: []string{"*Q4*"}, Endpoint: "https://hub.example.org"}
	sources, done, err := c.sources()
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	for i, want := range []struct{ name, repository, revision string }{
		{"owner/name", "owner/name", "stable"}, {"owner/other@v1.2", "owner/other", "v1.2"},
	} {
		hub, ok := sources[i].Source.(*pull.Hub)
		if !ok || sources[i].Name != want.name || hub.Repository != want.repository || hub.Revision != want.revision ||
			hub.Endpoint != "https://hub.example.org" || len(hub.Include) != 1 || hub.Client == nil {
			t.Errorf("source %d: %+v, want %+v", i, sources[i], want)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		field string
		flags sourceFlags
	}{
		{"source", sourceFlags{Revision: "main"}}, {"source", sourceFlags{TokenFile: secret}},
		{"source", sourceFlags{Source: []string{"owner/name@"}}},
		{"source-token-file", sourceFlags{Source: []string{"owner/name"}, TokenFile: empty}},
		{"source-token-file", sourceFlags{Source: []string{"owner/name", "https://example.org/m"}, TokenFile: secret}},
		{"include", sourceFlags{Source: []string{"https://example.org/m"}, Include: []string{"*"}}},
	} {
		sources, _, err := c.flags.sources()
		var f *fault.Error
		if !errors.As(err, &f) || f.Field != c.field || len(sources) > 0 {
			t.Errorf("%+v: %v, %v, want an error of %s", c.flags, sources, err, c.field)
		}
	}
	verbFails(t, 2, "auto", "", "shard", "--source-revision", "main")
}
