package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
)

// writeCheckpoint writes a checkpoint of one tensor.
func writeCheckpoint(t *testing.T, run string, step uint64) {
	t.Helper()
	s := checkpoint.New(checkpoint.Dir(run), checkpoint.Name)
	if err := s.Begin(step); err != nil {
		t.Fatal(err)
	}
	p, err := s.Create(step, "weight.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	e, err := checkpoint.NewEncoder(p, step, "weight.safetensors", checkpoint.Weight,
		[]checkpoint.Tensor{{Name: "norm", Shape: []int{2}}, {Name: "out", Shape: []int{3}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Write(make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	f, err := e.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(
		checkpoint.Manifest{Step: step, Run: strings.Repeat("0", 64), Stages: 1, Replicas: 2, Loss: 1.25,
			Files: []checkpoint.File{f}},
	); err != nil {
		t.Fatal(err)
	}
}

func TestInspect_VerifyNamesWhatIsDamaged(t *testing.T) {
	run := t.TempDir()
	writeCheckpoint(t, run, 5)
	writeCheckpoint(t, run, 10)
	if out := verbOK(
		t,
		"",
		"inspect",
		run,
		"--verify",
	); strings.Count(out, "whole") != 2 ||
		!strings.Contains(out, "1.2500") {
		t.Errorf("whole checkpoints are shown as\n%s", out)
	}
	path := filepath.Join(run, checkpoint.Name, "step-00000010", "weight.safetensors")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := verbOK(t, "", "inspect", run); !strings.Contains(out, "not verified") {
		t.Errorf("without --verify: %s", out)
	}
	verbFails(t, 1, "1 of 2 checkpoints", "", "inspect", run, "--verify")
}
