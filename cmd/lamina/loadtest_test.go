package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// TestLoadtest_MeshAnswersTheSameUnderAnyLoad records texts with one stream and expects them from a
// closed loop of many and from an open loop.
func TestLoadtest_MeshAnswersTheSameUnderAnyLoad(t *testing.T) {
	set := cpu.New(1)
	defer set.Close()
	mesh, err := app.Start(t.Context(), app.MeshConfig{
		Kernels: app.Kernels{Set: set, Threads: 1}, Model: bundled, Stages: 2, Replicas: 2, HTTP: "127.0.0.1:0",
		Runs: app.TrainerConfig{Dir: t.TempDir()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer mesh.Close()
	dir := t.TempDir()
	prompts, texts := filepath.Join(dir, "prompts.jsonl"), filepath.Join(dir, "texts.jsonl")
	file := "The prince\n" +
		`{"prompt":"Natasha","temperature":0,"tenant":"c"}` + "\n" +
		`{"messages":[{"role":"user","content":"Who is Pierre?"}],"temperature":0.8,"n":2}` + "\n"
	if err := os.WriteFile(prompts, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--streams", "1", "--requests", "3", "--record", texts},
		{"--streams", "6", "--requests", "24", "--expect", texts},
		{"--rate", "20", "--requests", "18", "--expect", texts, "--tenants", "a=2,b=1"},
	} {
		out, stderr, code := runVerb(t, "",
			append([]string{"loadtest", "--url", "http://" + mesh.HTTPAddr(), "--prompts",
				prompts, "--max-tokens", "16", "--format", "json"}, args...)...)
		var got loadtest.Report
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
			t.Fatalf("%v: exit %d, %v: %s%s", args, code, err, out, stderr)
		}
		g := got.All
		if g.Failed+g.Refused > 0 || g.OK != g.Requests || g.Tokens == 0 ||
			g.Identity.Identical != g.Identity.Compared {
			t.Errorf("%v: got %s", args, out)
		}
		if args[0] != "--streams" && (got.Tenants["c"].Requests != 6 || g.Identity.Compared != 18) {
			t.Errorf("%v: compared %d, tenant c has %d requests", args, g.Identity.Compared, got.Tenants["c"].Requests)
		}
	}
}
