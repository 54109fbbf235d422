package batches

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/batch"
)

// metrics count what has happened to batches and their requests since the start of the process. No label names a tenant
// or a batch.
type metrics struct {
	lines   *prometheus.CounterVec // requests that have ended
	retries prometheus.Counter
	ended   *prometheus.CounterVec // batches
}

// The ways in which a request of a batch ends, in metrics.
const (
	endOK     = "ok"
	endFailed = "failed"
	endNotRun = "not_run"
)

func newMetrics() *metrics {
	m := &metrics{
		lines: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lamina_batch_lines_total",
			Help: "Requests of batches that have ended: ok, failed, or not_run since their batch was cancelled or expired.",
		}, []string{"end"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lamina_batch_retries_total",
			Help: "How often a request of a batch was refused for now, by a budget or a full router, and had to wait.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lamina_batch_batches_total", Help: "Batches that have ended, by their last status.",
		}, []string{"status"}),
	}
	for _, end := range []string{endOK, endFailed, endNotRun} {
		m.lines.WithLabelValues(end)
	}
	for _, status := range []batch.Status{batch.Completed, batch.Failed, batch.Cancelled, batch.Expired} {
		m.ended.WithLabelValues(string(status))
	}
	return m
}

// collector exports what batches are at the moment.
type collector struct {
	s                                   *Service
	lines, batches, slots, bytes, limit *prometheus.Desc
}

// observe exports the metrics.
func (s *Service) observe(r prometheus.Registerer) {
	if r == nil {
		return
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("lamina_batch_"+name, help, labels, nil)
	}
	r.MustRegister(s.lines, s.retries, s.ended, &collector{s: s,
		lines: desc("lines", "Requests without a result of the batches that have not ended: waiting or running.",
			"state"),
		batches: desc("batches", "Batches that have not ended, by their status.", "status"),
		slots:   desc("slots", "How many requests of batches may run at a time."),
		bytes:   desc("file_bytes", "What the files of batches take."),
		limit:   desc("file_limit_bytes", "What the files of batches may take."),
	})
}

// Describe sends the descriptions.
func (c *collector) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, to) }

// Collect sends the values.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	byStatus := map[batch.Status]int{batch.Validating: 0, batch.InProgress: 0, batch.Finalizing: 0, batch.Cancelling: 0}
	waiting, running := 0, 0
	for _, j := range c.s.store.openJobs() {
		r, n := j.now(), int(j.running.Load())
		byStatus[r.Batch.Status]++
		running += n
		if counts := r.Batch.Counts; r.Batch.Status == batch.InProgress {
			waiting += max(0, counts.Total-counts.Completed-counts.Failed-n)
		}
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for status, n := range byStatus {
		gauge(c.batches, float64(n), string(status))
	}
	gauge(c.lines, float64(waiting), "waiting")
	gauge(c.lines, float64(running), "running")
	gauge(c.slots, float64(c.s.Limits.Requests))
	gauge(c.bytes, float64(c.s.store.bytes()))
	gauge(c.limit, float64(c.s.Limits.Disk))
}
