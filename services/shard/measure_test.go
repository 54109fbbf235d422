package shard_test

import (
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/model"
)

// TestService_Measure_PassesOverAModelThatCannotBeComputed offers a broken model beside one whose context is shorter
// than the test at the start.
func TestService_Measure_PassesOverAModelThatCannotBeComputed(t *testing.T) {
	r := newAssignRig(t, 0)
	for digest, change := range map[string]func(*model.Spec){
		"sha256:broken": func(s *model.Spec) { s.Context = 0 }, // comes first
		"sha256:short":  func(s *model.Spec) { s.Context = 50; s.Layers[2].Attention.Rope.Type = "dynamic" },
	} {
		files, err := model.Open(r.files.Path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = files.Close() })
		change(&files.Spec)
		r.service.Offer(digest, digest, files)
	}
	if err := r.service.Measure(r.ctx); err == nil || !strings.Contains(err.Error(), "sha256:broken") ||
		strings.Contains(err.Error(), "sha256:short") {
		t.Errorf("measured with %v, want an error about the broken model alone", err)
	}
	if times := r.describe().GetInventory().GetTimes(); len(times) != 2 {
		t.Errorf("measured %v, want the times of two models", times)
	}
}
