// Package dashboards_test evaluates the queries of the dashboards and alerts over the metrics of a live fleet, with
// Prometheus's own parser and engine. It is a module of its own, so that Lamina does not depend on Prometheus's server.
package dashboards_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	prom "github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// dashboard is what the test reads of a dashboard.
type dashboard struct {
	UID        string
	Title      string
	Templating struct {
		List []struct{ Name, Type, Query string }
	}
	Panels []struct {
		ID          int
		Title, Type string
		Targets     []struct{ RefID, Expr string }
	}
}

func textFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "text.txt")
	text := strings.Repeat("one two three four five six seven eight nine ten\n", 60)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestFleet_FillsEveryPanelAndAlert(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	f := start(t, ctx)
	f.train(t, ctx)
	f.deploy(t, ctx)
	s, begin := newStore(), time.Now().Truncate(time.Second)
	f.load(t, ctx)
	f.scrape(t, ctx, s, begin)
	f.load(t, ctx)
	f.scrape(t, ctx, s, begin.Add(15*time.Second))
	f.load(t, ctx)
	at := begin.Add(30 * time.Second)
	f.scrape(t, ctx, s, at)
	e := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute})
	t.Run("dashboards", func(t *testing.T) { checkDashboards(t, s, e, at) })
	t.Run("alerts", func(t *testing.T) { checkAlerts(t, s, e, at) })
	t.Run("a query of nothing is seen", func(t *testing.T) {
		if n := s.query(t, e, `rate(lamina_router_no_such_total[1m])`, at); n != 0 {
			t.Errorf("%d values", n)
		}
	})
}

func checkDashboards(t *testing.T, s *store, e *promql.Engine, at time.Time) {
	files, err := filepath.Glob("../../deploy/grafana/*.json")
	if err != nil || len(files) != 3 {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if d.UID+".json" != filepath.Base(file) {
			t.Errorf("%s has the uid %s", file, d.UID)
		}
		for _, v := range d.Templating.List {
			args, isValues := strings.CutPrefix(v.Query, "label_values(")
			if !isValues {
				continue
			}
			name, label, _ := strings.Cut(strings.TrimSuffix(args, ")"), ", ")
			if values := s.values(name, label); len(values) == 0 || values[0] == "" {
				t.Errorf("%s: the variable %s has no values by %s", d.Title, v.Name, v.Query)
			}
		}
		panels, seen := 0, map[int]bool{}
		for _, p := range d.Panels {
			if seen[p.ID] {
				t.Errorf("%s: two panels have the id %d", d.Title, p.ID)
			}
			seen[p.ID] = true
			if p.Type == "row" {
				continue
			}
			panels++
			if len(p.Targets) == 0 {
				t.Errorf("%s: %s has no query", d.Title, p.Title)
			}
			for _, target := range p.Targets {
				if n := s.query(t, e, replaced(target.Expr), at); n == 0 {
					t.Errorf("%s: %s is empty: %s", d.Title, p.Title, target.Expr)
				}
			}
		}
		t.Logf("%s: %d panels", d.Title, panels)
	}
}

// checkAlerts checks that every alert reads series that exist. Their conditions do not hold in a calm fleet, so each
// selector is evaluated by itself.
func checkAlerts(t *testing.T, s *store, e *promql.Engine, at time.Time) {
	groups, errs := rulefmt.ParseFile("../../deploy/prometheus/alerts.yaml", false, prom.UTF8Validation,
		parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Fatal(err)
	}
	n := 0
	for _, g := range groups.Groups {
		for _, rule := range g.Rules {
			n++
			expr, err := parser.NewParser(parser.Options{}).ParseExpr(rule.Expr)
			if err != nil {
				t.Errorf("%s: %v", rule.Alert, err)
				continue
			}
			parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
				if v, ok := node.(*parser.VectorSelector); ok {
					if s.query(t, e, v.String(), at) == 0 {
						t.Errorf("%s reads nothing: %s", rule.Alert, v)
					}
				}
				return nil
			})
			s.query(t, e, rule.Expr, at) // it can be evaluated
		}
	}
	t.Logf("%d alerts", n)
}
