package trainer

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

func TestCollector_ExportsActiveRuns(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	s := New(Config{Dir: t.TempDir(), Metrics: registry})
	for _, name := range []string{"a", "b"} {
		r := &run{name: name, state: &trainerv1.Run{Name: name, Step: 7, Loss: 2.5}, changed: make(chan struct{})}
		if name == "a" {
			r.active = &activity{}
		}
		s.runs[name] = r
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != len(gauges()) {
		t.Errorf("%d metrics, want %d", len(families), len(gauges()))
	}
	for _, f := range families {
		if len(f.GetMetric()) != 1 || f.GetMetric()[0].GetLabel()[0].GetValue() != "a" {
			t.Errorf("%s: %v, want the active run alone", f.GetName(), f.GetMetric())
		}
		if v := f.GetMetric()[0].GetGauge().GetValue(); f.GetName() == "lamina_trainer_loss" && v != 2.5 {
			t.Errorf("the loss is %v", v)
		}
	}
}
