package trainer

import (
	"github.com/prometheus/client_golang/prometheus"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// collector exports the runs that are active, under their names. A run that has ended leaves the metrics, so
// that they do not grow with every run.
type collector struct{ service *Service }

// gauge is an exported value of a run.
type gauge struct {
	desc  *prometheus.Desc
	value func(*trainerv1.Run) float64
}

// gauges lists what is exported.
func gauges() []gauge {
	g := func(name, help string, value func(*trainerv1.Run) float64) gauge {
		return gauge{prometheus.NewDesc("lamina_trainer_"+name, help, []string{"run"}, nil), value}
	}
	return []gauge{
		g("step", "Optimizer steps taken.", func(r *trainerv1.Run) float64 { return float64(r.GetStep()) }),
		g("steps", "Optimizer steps of the whole run.",
			func(r *trainerv1.Run) float64 { return float64(r.GetSteps()) }),
		g("loss", "Training loss of the last step, nats a token.", (*trainerv1.Run).GetLoss),
		g("validation_loss", "Last validation loss, nats a token; 0 before the first.",
			(*trainerv1.Run).GetValidationLoss),
		g("gradient_norm", "Norm of the last step's gradient before clipping.", (*trainerv1.Run).GetGradientNorm),
		g("learning_rate", "Learning rate of the last step.", (*trainerv1.Run).GetLearningRate),
		g("tokens_per_second", "Tokens trained on a second.", (*trainerv1.Run).GetTokensPerSecond),
		g("step_seconds", "Duration of the last step.", func(r *trainerv1.Run) float64 { return r.GetStepMs() / 1000 }),
		g("flops", "Floating-point operations a second of the last step.", (*trainerv1.Run).GetFlops),
		g("peak_flops", "Floating-point operations a second that the machines reach in large matrix products.",
			(*trainerv1.Run).GetPeakFlops),
		g("bubble", "Share of the stages' time that they waited in the last step.", (*trainerv1.Run).GetBubble),
		g("members", "Replicas that took part in the last step.",
			func(r *trainerv1.Run) float64 { return float64(r.GetMembers()) }),
		g("replicas_lost", "Replicas lost since the run was started or resumed.",
			func(r *trainerv1.Run) float64 { return float64(r.GetLost()) }),
		g("attempts_aborted", "Attempts at steps that were repeated since the run was started or resumed.",
			func(r *trainerv1.Run) float64 { return float64(r.GetAborted()) }),
		g("quarantined", "Replicas in quarantine.",
			func(r *trainerv1.Run) float64 { return float64(len(r.GetQuarantined())) }),
		g("spikes", "Steps that were skipped or rolled back.",
			func(r *trainerv1.Run) float64 { return float64(len(r.GetSpikes())) }),
		g("gradient_bytes", "Bytes of gradients published since the run was started or resumed.",
			func(r *trainerv1.Run) float64 { return float64(r.GetGradientBytes()) }),
	}
}

// Describe sends nothing: the metrics depend on the runs.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the values of the active runs.
func (c collector) Collect(out chan<- prometheus.Metric) {
	c.service.mu.Lock()
	var active []*trainerv1.Run
	for _, r := range c.service.runs {
		if r.isActive() {
			now, _ := r.snapshot()
			active = append(active, now)
		}
	}
	c.service.mu.Unlock()
	for _, g := range gauges() {
		for _, r := range active {
			out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(r), r.GetName())
		}
	}
}
