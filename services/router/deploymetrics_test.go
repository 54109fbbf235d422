package router

// This test is internal because it shows deployments to the metrics without a mesh.

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// exported returns the series of deployments as lines.
func exported(t *testing.T, r prometheus.Gatherer) string {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, f := range families {
		name, of := strings.CutPrefix(f.GetName(), "lamina_router_deployment_")
		for _, m := range f.GetMetric() {
			if !of {
				continue
			}
			fmt.Fprint(&out, name)
			for _, l := range m.GetLabel() {
				fmt.Fprintf(&out, " %s", l.GetValue())
			}
			fmt.Fprintf(&out, " = %.3g\n", m.GetGauge().GetValue()+m.GetCounter().GetValue())
		}
	}
	return out.String()
}

// TestDeployMetrics_FollowTheVersions leads a deployment through canaries that are rolled back.
func TestDeployMetrics_FollowTheVersions(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	s := New(Config{Metrics: registry})
	state := &deploy.State{}
	change := func(f func(*deploy.State)) {
		state = state.Clone()
		state.Version++
		f(state)
		s.takeDeployments(state, state.Version)
	}
	check := func(what string, want ...string) {
		t.Helper()
		if got := strings.TrimSpace(exported(t, registry)); got != strings.Join(want, "\n") {
			t.Errorf("%s:\n%s\nwant\n%s", what, got, strings.Join(want, "\n"))
		}
	}
	deployed := func(digest string) func(*deploy.State) {
		return func(n *deploy.State) {
			if err := n.Deploy("chat", deploy.Spec{Canary: 0.25}, deploy.Version{Digest: digest, Model: "m"},
				&deploy.Version{Digest: "sha256:0123456789abcdef", Model: "m"}); err != nil {
				t.Error(err)
			}
		}
	}
	canary := func(n *deploy.State) { n.Deployments[0].Next.Canary = true }
	change(deployed("b"))
	change(canary)
	s.judge(t.Context(), "chat", "b", errNoPlacer, 0)
	s.judge(t.Context(), "chat", "b", errStopping, 0)
	s.judge(t.Context(), "chat", "b", fault.New(fault.Internal, "run a stage: it computes nothing"), 0)
	s.judge(t.Context(), "", "sha256:0123456789abcdef", nil, 0)
	s.judge(t.Context(), "", "of no deployment", nil, 0)
	check("a canary",
		"requests_total chat failed 0123456789ab = 0", "requests_total chat failed b = 1",
		"requests_total chat ok 0123456789ab = 1", "requests_total chat ok b = 2",
		"rollbacks_total chat = 0",
		"share chat m live 0123456789ab = 0.75", "share chat m next b = 0.25", "state chat canary = 1")
	change(func(n *deploy.State) { n.RollBack("chat", "b", 0, "it is slow") })
	change(func(n *deploy.State) { n.Deployments[0].Retiring = nil })
	s.judge(t.Context(), "chat", "b", nil, 0) // the last request of a version that is gone
	check("rolled back",
		"requests_total chat failed 0123456789ab = 0", "requests_total chat ok 0123456789ab = 1",
		"rollbacks_total chat = 1",
		"share chat m live 0123456789ab = 1", "state chat live = 1")
	change(deployed("b"))
	change(func(n *deploy.State) { n.RollBack("chat", "b", 0, "it is slow") }) // the same again
	if got := exported(t, registry); !strings.Contains(got, "rollbacks_total chat = 2\n") {
		t.Errorf("after a second roll-back for the same reason:\n%s", got)
	}
	s.takeDeployments(&deploy.State{Version: state.Version + 1}, state.Version+1)
	check("none", "")
}
