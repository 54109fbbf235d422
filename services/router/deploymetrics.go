package router

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/deploy"
)

// deployMetrics are what /metrics says of deployments. Versions are named by the beginning of their digests. Those that
// are gone leave the metrics, so that they do not grow.
type deployMetrics struct {
	requests  *prometheus.CounterVec
	rollbacks *prometheus.CounterVec
}

// How a request of a deployment has ended, as a label: the version is to blame for failures, and for nothing else.
const (
	endedOK     = "ok"
	endedFailed = "failed"
)

func newDeployMetrics() *deployMetrics {
	return &deployMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lamina_router_deployment_requests_total",
			Help: "Requests of deployments that have ended, by version: ok, or failed if the version or its pipelines may " +
				"be to blame.",
		}, []string{"deployment", "version", "end"}),
		rollbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lamina_router_deployment_rollbacks_total",
			Help: "Versions that were rolled back while this router ran, by whichever router.",
		}, []string{"deployment"}),
	}
}

// shortVersion names a version by its digest.
func shortVersion(digest string) string {
	digest = strings.TrimPrefix(digest, "sha256:")
	return digest[:min(len(digest), 12)]
}

// ended counts a request. Without a name it was for a model of any deployment that has the digest. One of a version
// that has left the metrics is not counted, since its series would stay.
func (m *deployMetrics) ended(state *deploy.State, name, digest string, failed bool) {
	end := endedOK
	if failed {
		end = endedFailed
	}
	of := state.Of(digest)
	if d := state.Find(name); d != nil && name != "" {
		of = []*deploy.Deployment{d}
	}
	for _, d := range of {
		if slices.Contains(loadedVersions(d), digest) {
			m.requests.WithLabelValues(d.Name, shortVersion(digest), end).Inc()
			return
		}
	}
}

// changed compares deployments with those before: it counts roll-backs, and forgets versions that are gone.
func (m *deployMetrics) changed(before, after *deploy.State) {
	for i := range after.Deployments {
		d := &after.Deployments[i]
		rollbacks := m.rollbacks.WithLabelValues(d.Name) // begins at 0, so that the first increase is seen
		was := before.Find(d.Name)
		if d.Failed != nil && before.Version > 0 && (was == nil || was.Failed == nil || *was.Failed != *d.Failed) {
			rollbacks.Inc()
		}
		for _, digest := range loadedVersions(d) {
			for _, end := range []string{endedOK, endedFailed} {
				m.requests.WithLabelValues(d.Name, shortVersion(digest), end)
			}
		}
	}
	for i := range before.Deployments {
		d := &before.Deployments[i]
		still := map[string]bool{}
		if now := after.Find(d.Name); now != nil {
			for _, digest := range loadedVersions(now) {
				still[shortVersion(digest)] = true
			}
		} else {
			m.rollbacks.DeleteLabelValues(d.Name)
		}
		for _, digest := range loadedVersions(d) {
			if v := shortVersion(digest); !still[v] {
				m.requests.DeletePartialMatch(prometheus.Labels{"deployment": d.Name, "version": v})
			}
		}
	}
}

// loadedVersions lists the versions of a deployment that may have requests.
func loadedVersions(d *deploy.Deployment) []string {
	var out []string
	for _, v := range []*deploy.Version{d.Live, d.Next} {
		if v != nil {
			out = append(out, v.Digest)
		}
	}
	for _, v := range d.Retiring {
		out = append(out, v.Digest)
	}
	return out
}

// deployCollector exports the state of the deployments as this router knows it.
type deployCollector struct {
	s            *Service
	state, share *prometheus.Desc
}

func newDeployCollector(s *Service) *deployCollector {
	return &deployCollector{
		s: s,
		state: prometheus.NewDesc("lamina_router_deployment_state",
			"Always 1. The label tells the state: loading, canary, live, dozing, asleep, failed, ending or undeployed.",
			[]string{"deployment", "state"}, nil),
		share: prometheus.NewDesc("lamina_router_deployment_share",
			"The share of its deployment's requests that a version takes. The role is live, next or retiring.",
			[]string{"deployment", "version", "model", "role"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *deployCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.state
	ch <- c.share
}

// Collect implements prometheus.Collector.
func (c *deployCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	state := c.s.deployed() // never changed in place
	for i := range state.Deployments {
		d := &state.Deployments[i]
		status, _, _ := strings.Cut(d.Status(), " ") // without the share of a canary
		gauge(c.state, 1, d.Name, status)
		next := 0.0
		if d.Next != nil && d.Next.Canary {
			next = d.Share()
		}
		seen := map[string]bool{}
		version := func(v *deploy.Version, role string, share float64) {
			if v == nil || seen[shortVersion(v.Digest)] {
				return
			}
			seen[shortVersion(v.Digest)] = true
			gauge(c.share, share, d.Name, shortVersion(v.Digest), v.Model, role)
		}
		version(d.Live, "live", 1-next)
		version(d.Next, "next", next)
		for k := range d.Retiring {
			version(&d.Retiring[k], "retiring", 0)
		}
	}
}
