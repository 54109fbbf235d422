// Package ledger exchanges between routers what each has let in of the budgets of its callers, over the board of the
// service registry. It carries the reports of auth.Ledger and decides how often: no request waits for it or fails by
// it. While the registry cannot be reached, each router limits callers by what it knows.
//
// A router posts one document, at most every Interval and for large documents less often, while any caller uses its
// budgets. The document goes away with the router.
package ledger

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	prefix = "budgets/" // of the keys of reports
	// interval is the time between two reports.
	interval = time.Second
	// bytesPerSecond bounds what a router writes on the average, since the registry replicates each report. The longest
	// report is written every discovery.PostEvery.
	bytesPerSecond = 128 << 10
	withdrawTime   = 2 * time.Second
)

// NewID returns an id for a ledger.
func NewID() string { return strings.ToLower(rand.Text()) }

// Options are the options of an exchange.
type Options struct {
	Log     *slog.Logger          // nil logs nothing
	Metrics prometheus.Registerer // nil for none
	// Ticks replaces the clock: a report is written for each value, which is sent when the one before is written. nil
	// is a clock.
	Ticks <-chan time.Time
}

// Exchange exchanges the reports of a ledger.
type Exchange struct {
	ledger *auth.Ledger
	board  discovery.Board
	key    string
	log    *slog.Logger
	ticks  <-chan time.Time

	refused, failed prometheus.Counter
	left            prometheus.Gauge
}

// New returns an exchange of the ledger of the router with an id.
func New(id string, l *auth.Ledger, b discovery.Board, o Options) *Exchange {
	e := &Exchange{ledger: l, board: b, key: prefix + id, log: o.Log, ticks: o.Ticks,
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "lamina_budget_reports_refused_total",
			Help: "Reports of other routers on the use of budgets that could not be read."}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{Name: "lamina_budget_report_failures_total",
			Help: "Reports on the use of budgets that could not be written to the registry."}),
		left: prometheus.NewGauge(prometheus.GaugeOpts{Name: "lamina_budget_callers_left_out",
			Help: "Callers whose use of their budgets had no room in the last report."}),
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(e.refused, e.failed, e.left, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "lamina_budget_routers", Help: "Other routers that report the use of budgets."},
			func() float64 { return float64(l.Routers()) }))
	}
	return e
}

// Run exchanges reports until ctx ends, and then withdraws its own.
func (e *Exchange) Run(ctx context.Context) error {
	posts, err := e.board.Posts(ctx, prefix)
	if err != nil {
		return err
	}
	first, read := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		e.read(posts, sync.OnceFunc(func() { close(first) }))
	}()
	select {
	case <-first:
		e.write(ctx)
	case <-ctx.Done():
	}
	<-read
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	if err := e.board.Withdraw(ctx, e.key); err != nil {
		e.log.Debug("withdraw the report of budgets: it goes away by itself", "error", err)
	}
	return nil
}

// read reads the reports of others until the channel is closed, and calls done after each time. A report that is
// refused is logged once.
func (e *Exchange) read(posts <-chan map[string][]byte, done func()) {
	logged := map[string]string{} // what was logged, by router
	for docs := range posts {
		reports := make(map[string][]byte, len(docs))
		for key, text := range docs {
			reports[strings.TrimPrefix(key, prefix)] = text
		}
		refused := e.ledger.Read(reports)
		for id, err := range refused {
			e.refused.Inc()
			if logged[id] != err.Error() {
				logged[id] = err.Error()
				e.log.Warn("refuse the report of a router on the use of budgets: the one from before counts",
					"router", id, "error", err)
			}
		}
		for id := range logged {
			if refused[id] == nil {
				delete(logged, id)
			}
		}
		done()
	}
}

// write writes reports until ctx ends.
func (e *Exchange) write(ctx context.Context) {
	ticks, posted, failing := e.ticks, false, false
	timer := time.NewTimer(interval)
	defer timer.Stop()
	if ticks == nil {
		ticks = timer.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
		size, err := e.post(ctx, &posted)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			e.failed.Inc()
			if !failing {
				e.log.Warn("write the report on the use of budgets: until that works, the other routers do not count "+
					"what is let in here", "error", err)
			}
		case failing:
			e.log.Info("the other routers count again what is let in here")
		}
		failing = err != nil
		timer.Reset(pause(size))
	}
}

// pause returns the time until the next report.
func pause(size int) time.Duration {
	return max(interval, time.Duration(size)*time.Second/bytesPerSecond)
}

// post writes a report, or withdraws the last one if nobody uses a budget. It returns the report's size.
func (e *Exchange) post(ctx context.Context, posted *bool) (int, error) {
	text, left, err := e.ledger.Report()
	e.left.Set(float64(left))
	switch {
	case err != nil:
		return 0, err
	case text == nil && !*posted:
		return 0, nil
	case text == nil:
		if err = e.board.Withdraw(ctx, e.key); err == nil {
			*posted = false
		}
		return 0, err
	}
	*posted = true
	err = e.board.Post(ctx, e.key, text)
	if fault.CodeOf(err) == fault.Aborted {
		err = fault.Wrap(fault.Aborted, err, "another router has the id of this one: restart it")
	}
	return len(text), err
}
