package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// TestAdapters_FromARunToARouterAndBack tunes adapters by the command and publishes them: as a run ends, from the
// folder, and from the trainer of a mesh. Then a name is rolled back and removed.
func TestAdapters_FromARunToARouterAndBack(t *testing.T) {
	base, err := filepath.Abs(sharedPath(t, "models/tiny/llama"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var rows []string
	for i := range 24 {
		rows = append(rows, fmt.Sprintf(`{"ids": [%d, 7, %d, 9, 11, %d], "trained_from": 3}`, 3+i, 20+i, 40+i))
	}
	data := filepath.Join(dir, "rows.jsonl")
	if err := os.WriteFile(data, []byte(strings.Join(rows, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	m, err := app.Start(ctx, app.MeshConfig{Model: base, Stages: 2, GRPC: "127.0.0.1:0",
		AdapterDir: filepath.Join(dir, "kept"),
		Train:      true, Runs: app.TrainerConfig{Dir: filepath.Join(dir, "runs"), AllowPaths: []string{"/"}},
		Kernels: app.Kernels{Set: set, Threads: 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	addr := m.GRPCAddr()
	tune := func(out, seed string, more ...string) string {
		t.Helper()
		return verbOK(t, "", append([]string{"tune", "--model", base, "--data", data, "--out", filepath.Join(dir, out),
			"--rank", "2", "--steps", "2", "--batch", "2", "--sequence-len", "32", "--seed", seed, "--show", "0"}, more...)...)
	}
	list := func() (digest string, earlier int) {
		t.Helper()
		resp := verbJSON[struct {
			Adapters []struct {
				Name, Digest, Base string
				ModelDigest        string `json:"model_digest"`
				Earlier            []string
			}
		}](t, "", "adapters", "list", "--router", addr, "--format", "json")
		for _, a := range resp.Adapters {
			if a.Name == "x" {
				if a.Base == "" || a.Base != a.ModelDigest {
					t.Errorf("the base is %q of %q", a.Base, a.ModelDigest)
				}
				return a.Digest, len(a.Earlier)
			}
		}
		return "", 0
	}
	if out := tune("one", "1", "--publish", addr, "--publish-as", "x"); !strings.Contains(out, "llama:x is sha256:") {
		t.Errorf("tune prints %q", out)
	}
	first, _ := list()
	tune("two", "2")
	out := verbOK(t, "", "adapters", "load", "x="+filepath.Join(dir, "two", "adapter"), "--router", addr)
	second, earlier := list()
	if first == "" || second == first || earlier != 1 || !strings.Contains(out, "lamina adapters rollback x goes back") {
		t.Errorf("first %q, second %q after %q", first, second, out)
	}
	verbOK(t, "", "adapters", "rollback", "x", "--router", addr)
	if now, _ := list(); now != first {
		t.Errorf("after the roll back it is %q, want %q", now, first)
	}
	// The manifest that tune prints publishes as tune does. It is the same run, so the adapter is the same.
	verbOK(t, "", "adapters", "rollback", "x", "--router", addr)
	if now, _ := list(); now != second {
		t.Errorf("after two roll backs it is %q, want %q", now, second)
	}
	repeat := []string{"train", "--manifest", filepath.Join(dir, "one", "manifest.json"),
		"--out", filepath.Join(dir, "repeat")}
	if out := verbOK(t, "", repeat...); !strings.Contains(out, "llama:x is "+first) {
		t.Errorf("train prints %q", out)
	}
	if now, _ := list(); now != first {
		t.Errorf("after the run of the manifest it is %q, want %q", now, first)
	}
	// As JSON, standard output is one object, which says what has become of the publication.
	publishedAs := func(stdout string) (state, digest, failure string) {
		t.Helper()
		var last struct {
			State     string
			Published []struct{ Router, Name, Model, Digest, Error string }
		}
		d := json.NewDecoder(strings.NewReader(stdout))
		if err := d.Decode(&last); err != nil {
			t.Fatalf("%v: %s", err, stdout)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) || len(last.Published) != 1 || last.Published[0].Name != "x" {
			t.Fatalf("standard output is %s", stdout)
		}
		return last.State, last.Published[0].Digest, last.Published[0].Error
	}
	for name, stdout := range map[string]string{
		"train": verbOK(t, "", append(repeat, "--format", "json")...),
		"tune":  tune("again", "1", "--publish", addr, "--publish-as", "x", "--format", "json"),
	} {
		state, digest, failure := publishedAs(stdout)
		if state != "RUN_STATE_DONE" || digest != first || failure != "" {
			t.Errorf("%s prints %s", name, stdout)
		}
	}
	// A router that cannot be reached costs the publication, and the run is done.
	stdout, stderr, code := runVerb(t, "", "tune", "--model", base, "--data", data,
		"--out", filepath.Join(dir, "alone"), "--rank", "2", "--steps", "1", "--batch", "2", "--sequence-len", "32",
		"--show", "0", "--format", "json", "--publish", "127.0.0.1:1", "--publish-as", "x")
	if state, digest, failure := publishedAs(stdout); code == 0 || state != "RUN_STATE_DONE" || digest != "" ||
		failure == "" || !strings.Contains(stderr, "127.0.0.1:1") {
		t.Errorf("exit %d, %s: %s", code, stderr, stdout)
	}
	// A run of the mesh's own trainer.
	manifest := readJSON[map[string]any](t, filepath.Join(dir, "two", "manifest.json"))
	manifest["name"], manifest["seed"] = "third", 3
	text, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "third.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	verbOK(t, "", "train", "--manifest", file, "--trainer", addr, "--detach")
	verbOK(t, "", "adapters", "publish", "third", "--trainer", addr, "--router", addr, "--as", "llama:x")
	if now, earlier := list(); now == first || now == second || earlier != 2 {
		t.Errorf("after the publication it is %q, with %d earlier ones", now, earlier)
	}
	for _, verb := range []string{"status", "models"} {
		if out := verbOK(t, "", verb, "--router", addr); !strings.Contains(out, "llama:x ") {
			t.Errorf("lamina %s prints %q", verb, out)
		}
	}
	if out := verbOK(t, "", "adapters", "list", "--router", addr); !strings.Contains(out, "this") {
		t.Errorf("the list is %q", out)
	}
	verbFails(t, 1, "unknown run", "", "adapters", "publish", "none", "--trainer", addr, "--router", addr)
	verbOK(t, "", "adapters", "unload", "llama:x", "--router", addr)
	verbFails(t, 1, `has none of this name`, "", "adapters", "unload", "x", "--router", addr)
	verbFails(t, 1, "the name has had no other adapter", "", "adapters", "rollback", "x", "--router", addr)
}
