package shard_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/internal/fixtures"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/services/shard"
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

// A shard with a quota of processor time says so with the times of its test, which are those of its processor time. One
// whose threads cannot use up the quota has none.
func TestService_Measure_WithAQuota(t *testing.T) {
	files, err := model.Open(fixtures.Path(t, "models/tiny/llama"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	for processors, share := range map[float64]float64{0: 0, 0.25: 0.25, 1: 0, 3: 0} {
		s := shard.New(shard.Config{Kernels: ref.New[float32](), Log: slog.New(slog.DiscardHandler), Assignable: true,
			Threads: 1, Quota: cputime.Quota{Processors: processors, Period: 100 * time.Millisecond}})
		s.Offer("a model", "sha256:a", files)
		if err := s.Measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		resp, err := s.Describe(t.Context(), &shardv1.DescribeRequest{})
		if err != nil || len(resp.GetInventory().GetTimes()) != 1 {
			t.Fatalf("%v, %v", resp, err)
		}
		got := resp.GetInventory().GetTimes()[0]
		if got.GetQuotaShare() != share || (got.GetQuotaMs() == 100) != (share > 0) || got.GetDecodeMs() <= 0 {
			t.Errorf("%v processors: the times are %v", processors, got)
		}
	}
}

// broken is a set whose products panic, as those of a device do that is out of memory.
type broken struct{ kernel.Set[float32] }

func (broken) MatMuls(kernel.Buffer[float32], int, ...kernel.Product[float32]) {
	panic("out of device memory")
}

// A device that fails while rows are computed is an error that names the model, not the end of the process.
func TestService_Measure_OnADeviceThatFails(t *testing.T) {
	files, err := model.Open(fixtures.Path(t, "models/tiny/llama"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	s := shard.New(shard.Config{Kernels: broken{ref.New[float32]()}, Log: slog.New(slog.DiscardHandler)})
	s.Offer("a model", "sha256:a", files)
	err = s.Measure(t.Context())
	if err == nil || !strings.Contains(err.Error(), "measure a layer of a model: compute rows: out of device memory") {
		t.Errorf("measured with %v", err)
	}
}
