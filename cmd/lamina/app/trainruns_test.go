package app_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// runsMesh is a mesh with a trainer, and a client of it.
type runsMesh struct {
	t    *testing.T
	ctx  context.Context
	mesh *app.Mesh
	trainerv1.TrainerServiceClient
}

// startRuns starts a mesh with four shards that train.
func startRuns(t *testing.T, c app.TrainerConfig) *runsMesh {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	m, err := app.Start(
		ctx,
		app.MeshConfig{Kernels: app.Kernels{Set: ref.New[float32]()}, Train: true, Trainers: 4, Runs: c},
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	conn, err := m.Trainer()
	if err != nil {
		t.Fatal(err)
	}
	return &runsMesh{t, ctx, m, trainerv1.NewTrainerServiceClient(conn)}
}

// begin starts a run and returns its name.
func (m *runsMesh) begin(raw []byte, stages, replicas uint32) string {
	m.t.Helper()
	resp, err := m.StartRun(m.ctx, &trainerv1.StartRunRequest{ManifestJson: raw, Stages: stages, Replicas: replicas})
	if err != nil {
		m.t.Fatal(err)
	}
	return resp.GetRun()
}

// await watches a run until ok holds, or until the watch ends.
func (m *runsMesh) await(run string, ok func(*trainerv1.Run) bool) *trainerv1.Run {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	watch, err := m.WatchRun(ctx, &trainerv1.WatchRunRequest{Run: run})
	if err != nil {
		m.t.Fatal(err)
	}
	var last *trainerv1.Run
	for {
		r, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			m.t.Fatal(err)
		}
		if last = r.GetRun(); ok(last) {
			return last
		}
	}
}

func stepped(n uint64) func(*trainerv1.Run) bool {
	return func(r *trainerv1.Run) bool { return r.GetStep() >= n }
}

func never(*trainerv1.Run) bool { return false }

// code returns the code of a call's error.
func code[T any](_ T, err error) fault.Code { return fault.CodeOf(rpc.FromStatus(err)) }

func TestRuns_PausedRunGoesOnWithTheSameWeights(t *testing.T) {
	raw := manifest(t, "paused", map[string]any{"steps": 250}) // it is paused while it makes the first ones
	calm := train(t, raw, 1, 1, t.TempDir(), false)
	m := startRuns(t, app.TrainerConfig{Dir: t.TempDir(), AllowPaths: []string{os.TempDir()}})
	name := m.begin(raw, 2, 2)
	watched := make(chan *trainerv1.Run, 1)
	go func() { watched <- m.await(name, never) }() // it stays open over the pauses
	for i, l := range [][2]uint32{{4, 1}, {0, 0}, {1, 4}} {
		m.await(name, stepped(uint64(5*i+3)))
		resp, err := m.PauseRun(m.ctx, &trainerv1.PauseRunRequest{Run: name})
		if err != nil {
			t.Fatal(err)
		}
		if r := resp.GetRun(); r.GetState() != trainerv1.RunState_RUN_STATE_PAUSED || r.GetStep() == 0 {
			t.Fatalf("after the pause: %v", r)
		}
		if got := code(
			m.StartRun(m.ctx, &trainerv1.StartRunRequest{ManifestJson: raw, Stages: 5}),
		); got != fault.Invalid {
			t.Errorf("a layout of 5 stages for 4 layers: %v", got)
		}
		if got := code(m.ResumeRun(m.ctx, &trainerv1.ResumeRunRequest{Run: name, Stages: 5})); got != fault.Invalid {
			t.Errorf("a resume over 5 stages for 4 layers: %v", got)
		}
		if _, err := m.ResumeRun(m.ctx,
			&trainerv1.ResumeRunRequest{Run: name, Stages: l[0], Replicas: l[1]}); err != nil {
			t.Fatal(err)
		}
		if got := code(m.ResumeRun(m.ctx, &trainerv1.ResumeRunRequest{Run: name})); got != fault.FailedPrecondition {
			t.Errorf("a resume of an active run: %v", got)
		}
	}
	last := <-watched
	if last.GetState() != trainerv1.RunState_RUN_STATE_DONE || last.GetWeightsDigest() != calm.GetWeightsDigest() {
		t.Errorf("ended as %v with weights %s, the undisturbed run has %s", last.GetState(), last.GetWeightsDigest(),
			calm.GetWeightsDigest())
	}
	if got := code(m.PauseRun(m.ctx, &trainerv1.PauseRunRequest{Run: name})); got != fault.FailedPrecondition {
		t.Errorf("a pause of a run that is done: %v", got)
	}
}

func TestRuns_OutliveTheirTrainer(t *testing.T) {
	raw := manifest(t, "outlives", map[string]any{"steps": 250}) // its trainer ends while it makes the first ones
	calm := train(t, raw, 1, 1, t.TempDir(), false)
	c := app.TrainerConfig{Dir: t.TempDir(), AllowPaths: []string{os.TempDir()}}
	m := startRuns(t, c)
	name := m.begin(raw, 2, 1)
	began := m.await(name, stepped(5)).GetStartedMs()
	if err := m.mesh.Close(); err != nil {
		t.Fatal(err)
	}
	// Files that are no records do not keep the trainer from starting.
	for dir, text := range map[string]string{"broken": "{", "empty": "", "foreign": `{"run":{"name":"x"},"folder":"/"}`} {
		if err := os.MkdirAll(filepath.Join(c.Dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(c.Dir, dir, "run.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m = startRuns(t, c)
	list, err := m.ListRuns(m.ctx, &trainerv1.ListRunsRequest{})
	if err != nil || len(list.GetRuns()) != 1 {
		t.Fatalf("list the runs: %v, %v", list, err)
	}
	if r := list.GetRuns()[0]; r.GetState() != trainerv1.RunState_RUN_STATE_INTERRUPTED || r.GetStartedMs() != began {
		t.Errorf("after a restart of the trainer: %v", r)
	}
	if _, err := m.ResumeRun(m.ctx, &trainerv1.ResumeRunRequest{Run: name, Stages: 1, Replicas: 2}); err != nil {
		t.Fatal(err)
	}
	last := m.await(name, never)
	if last.GetState() != trainerv1.RunState_RUN_STATE_DONE || last.GetWeightsDigest() != calm.GetWeightsDigest() {
		t.Errorf("ended as %v (%s) with weights %s, the undisturbed run has %s", last.GetState(), last.GetError(),
			last.GetWeightsDigest(), calm.GetWeightsDigest())
	}
}

func TestRuns_DeleteRemovesWhatTheRunWrote(t *testing.T) {
	c := app.TrainerConfig{Dir: t.TempDir(), AllowPaths: []string{os.TempDir()}}
	m := startRuns(t, c)
	name := m.begin(manifest(t, "deleted", map[string]any{"steps": 1000}), 1, 1)
	m.await(name, stepped(3))
	if got := code(m.DeleteRun(m.ctx, &trainerv1.DeleteRunRequest{Run: name})); got != fault.FailedPrecondition {
		t.Errorf("the deletion of an active run: %v", got)
	}
	if _, err := m.StopRun(m.ctx, &trainerv1.StopRunRequest{Run: name}); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(c.Dir, name, "notes.txt")
	if err := os.WriteFile(mine, []byte("notes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.DeleteRun(m.ctx, &trainerv1.DeleteRunRequest{Run: name}); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(c.Dir, name))
	if err != nil || len(left) != 1 || left[0].Name() != "notes.txt" {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
	if got := code(m.StopRun(m.ctx, &trainerv1.StopRunRequest{Run: name})); got != fault.NotFound {
		t.Errorf("a deleted run: %v", got)
	}
}

func TestRuns_ArtifactsAreTheRunsFiles(t *testing.T) {
	c := app.TrainerConfig{Dir: t.TempDir(), AllowPaths: []string{os.TempDir()}}
	m := startRuns(t, c)
	raw := manifest(t, "artifacts", nil)
	name := m.begin(raw, 2, 1)
	m.await(name, never)
	home := filepath.Join(c.Dir, name)
	if err := os.WriteFile(filepath.Join(home, "private.txt"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(home, "model", "etc")); err != nil {
		t.Fatal(err)
	}
	list, err := m.ListArtifacts(m.ctx, &trainerv1.ListArtifactsRequest{Run: name})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, a := range list.GetArtifacts() {
		names = append(names, a.GetName())
	}
	for _, want := range []string{"manifest.json", "metrics.jsonl", "model/config.json", "model/model.safetensors"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
	if slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "etc") || n == "private.txt" }) {
		t.Errorf("files of others are listed: %v", names)
	}
	fetch := func(file string, offset uint64) ([]byte, error) {
		stream, err := m.FetchArtifact(m.ctx, &trainerv1.FetchArtifactRequest{Run: name, Name: file, Offset: offset})
		if err != nil {
			return nil, err
		}
		var out []byte
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return out, nil
			}
			if err != nil {
				return out, rpc.FromStatus(err)
			}
			out = append(out, r.GetData()...)
		}
	}
	if got, err := fetch("manifest.json", 0); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("the manifest is %q, %v", got, err)
	}
	if got, err := fetch("manifest.json", 7); err != nil || !bytes.Equal(got, raw[7:]) {
		t.Errorf("the manifest from byte 7 on is %q, %v", got, err)
	}
	if got, err := fetch("manifest.json", uint64(len(raw))); err != nil || len(got) != 0 {
		t.Errorf("nothing of the manifest is %q, %v", got, err)
	}
	for file, want := range map[string]fault.Code{
		"../../etc/passwd": fault.Invalid, "/etc/passwd": fault.Invalid, "model/../private.txt": fault.Invalid,
		"": fault.Invalid, "model": fault.NotFound, "private.txt": fault.NotFound, "run.json": fault.NotFound,
		"model/etc/passwd": fault.NotFound, "model/missing": fault.NotFound, "model/\x00": fault.NotFound,
	} {
		if got, err := fetch(file, 0); fault.CodeOf(err) != want {
			t.Errorf("%q: %d bytes, %v; want %v", file, len(got), err, want)
		}
	}
	if _, err := fetch("manifest.json", uint64(len(raw))+1); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("an offset beyond the end: %v", err)
	}
}

func TestRuns_ManifestStaysInTheDataFolder(t *testing.T) {
	data := t.TempDir()
	m := startRuns(t, app.TrainerConfig{Dir: t.TempDir(), Data: data})
	raw := manifest(t, "outside", nil) // its text is in another folder
	for _, r := range []*trainerv1.StartRunRequest{
		{ManifestJson: raw},
		{ManifestJson: manifest(t, "proc", map[string]any{"data": map[string]any{"text": "/proc/self/environ"}})},
		{ManifestJson: manifest(t, "up", map[string]any{"data": map[string]any{"text": "../text.txt"}})},
		{ManifestJson: manifest(t, "none", map[string]any{"data": map[string]any{"text": "missing.txt"}})},
	} {
		_, err := m.StartRun(m.ctx, r)
		if c := fault.CodeOf(rpc.FromStatus(err)); c != fault.Invalid && c != fault.NotFound ||
			!strings.Contains(err.Error(), "data.text") {
			t.Errorf("%s: %v", r.GetManifestJson(), err)
		}
	}
	if err := os.WriteFile(
		filepath.Join(data, "text.txt"),
		[]byte(strings.Repeat("some words\n", 100)),
		0o600,
	); err != nil {
		t.Fatal(err)
	}
	raw = manifest(t, "inside", map[string]any{"data": map[string]any{"text": "text.txt"}})
	for _, out := range []string{"../other", "/tmp/lamina-other", data} {
		if got := code(
			m.StartRun(m.ctx, &trainerv1.StartRunRequest{ManifestJson: raw, Out: out}),
		); got != fault.Invalid {
			t.Errorf("the output folder %s: %v", out, got)
		}
	}
	if r := m.await(m.begin(raw, 1, 1), never); r.GetState() != trainerv1.RunState_RUN_STATE_DONE {
		t.Errorf("ended as %v: %s", r.GetState(), r.GetError())
	}
}

// Reading and writing are allowed apart, and a deletion never leaves the trainer's folder of runs.
func TestRuns_ReadingAndWritingAreTwoRules(t *testing.T) {
	texts, outs := t.TempDir(), t.TempDir()
	text := filepath.Join(texts, "text.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("one two three four five six\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	c := app.TrainerConfig{Dir: t.TempDir(), AllowPaths: []string{texts}, AllowWrite: []string{outs}}
	m := startRuns(t, c)
	raw := manifest(t, "rules", map[string]any{"steps": 2,
		"data": map[string]any{"text": text, "validation_fraction": 0.1}})
	if got := code(m.StartRun(m.ctx, &trainerv1.StartRunRequest{ManifestJson: raw,
		Out: filepath.Join(texts, "run")})); got != fault.Invalid {
		t.Errorf("a run writes into a folder to read from: %v", got)
	}
	secret := filepath.Join(outs, "text.txt")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := code(m.StartRun(m.ctx, &trainerv1.StartRunRequest{ManifestJson: manifest(t, "reads", map[string]any{
		"data": map[string]any{"text": secret}})})); got != fault.Invalid {
		t.Errorf("a run reads from a folder to write to: %v", got)
	}
	for _, out := range []string{filepath.Join(outs, "run"), filepath.Join(c.Dir, "link", "run")} {
		if err := os.Symlink(outs, filepath.Join(c.Dir, "link")); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		if strings.Contains(out, "link") {
			out = "link/run"
		}
		if _, err := m.StartRun(m.ctx, &trainerv1.StartRunRequest{ManifestJson: raw, Out: out}); err != nil {
			t.Fatal(err)
		}
		if r := m.await("rules", never); r.GetState() != trainerv1.RunState_RUN_STATE_DONE {
			t.Fatalf("ended as %v", r)
		}
		resp, err := m.DeleteRun(m.ctx, &trainerv1.DeleteRunRequest{Run: "rules"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(outs, "run", "model")); err != nil || resp.GetKept() == "" {
			t.Errorf("%s: files outside of the folder of runs are deleted: %v, kept %q", out, err, resp.GetKept())
		}
		if err := os.RemoveAll(filepath.Join(outs, "run")); err != nil {
			t.Fatal(err)
		}
	}
}
