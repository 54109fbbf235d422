package dashboards_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// store keeps the samples of scrapes in memory for PromQL. It implements storage.Queryable.
type store struct {
	series map[string]*series
}

type series struct {
	labels  labels.Labels
	samples []chunks.Sample
}

// sample is a float at a moment.
type sample struct {
	at int64 // milliseconds
	v  float64
}

func (s sample) T() int64                      { return s.at }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.v }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

func newStore() *store { return &store{map[string]*series{}} }

// add adds a sample, with the labels that a scrape adds.
func (s *store) add(l labels.Labels, at time.Time, v float64) {
	b := labels.NewBuilder(l)
	b.Set("job", "lamina-router")
	b.Set("instance", "127.0.0.1:8080")
	l = b.Labels()
	known := s.series[l.String()]
	if known == nil {
		known = &series{labels: l}
		s.series[l.String()] = known
	}
	known.samples = append(known.samples, sample{at.UnixMilli(), v})
}

// values returns the values of a label of the series with a name.
func (s *store) values(name, label string) []string {
	var out []string
	for _, known := range s.series {
		if known.labels.Get(labels.MetricName) == name {
			out = append(out, known.labels.Get(label))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// query evaluates an expression at a moment and returns the number of values.
func (s *store) query(t *testing.T, e *promql.Engine, text string, at time.Time) int {
	t.Helper()
	q, err := e.NewInstantQuery(t.Context(), s, nil, text, at)
	if err != nil {
		t.Errorf("parse %s: %v", text, err)
		return 0
	}
	defer q.Close()
	r := q.Exec(t.Context())
	if r.Err != nil {
		t.Errorf("evaluate %s: %v", text, r.Err)
		return 0
	}
	v, err := r.Vector()
	if err != nil {
		t.Errorf("evaluate %s: %v", text, err)
	}
	return len(v)
}

// Querier implements storage.Queryable.
func (s *store) Querier(_, _ int64) (storage.Querier, error) { return querier{s}, nil }

type querier struct{ *store }

// Select returns the series that match.
func (q querier) Select(
	_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher,
) storage.SeriesSet {
	var found []storage.Series
	for _, s := range q.series {
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) }) {
			found = append(found, storage.NewListSeries(s.labels, s.samples))
		}
	}
	slices.SortFunc(found, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return &set{series: found, at: -1}
}

// set is a list of series.
type set struct {
	series []storage.Series
	at     int
}

func (s *set) Next() bool                        { s.at++; return s.at < len(s.series) }
func (s *set) At() storage.Series                { return s.series[s.at] }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }

func (querier) Close() error { return nil }

func (querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string,
	annotations.Annotations, error) {
	return nil, nil, nil
}

func (querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string,
	annotations.Annotations, error) {
	return nil, nil, nil
}

// replaced replaces the variables of Grafana in a query.
func replaced(expr string) string {
	return strings.NewReplacer("$__rate_interval", "1m", "$model", ".*", "$run", ".*").Replace(expr)
}
