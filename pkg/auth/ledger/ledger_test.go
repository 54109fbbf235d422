package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/ledger"
	"github.com/lamina-mesh/lamina/pkg/discovery"
)

func TestMain(m *testing.M) { leak.Main(m) }

// board is a registry that may be out of reach for writers, and that counts what is written.
type board struct {
	*discovery.Memory
	mu     sync.Mutex
	broken bool
	writes int
}

func (b *board) Post(ctx context.Context, key string, value []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.writes++; b.broken {
		return errors.New("out of reach")
	}
	return b.Memory.Post(ctx, key, value)
}

func (b *board) written() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.writes
}

func (b *board) set(broken bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = broken
}

// router is a router with a ledger whose reports are written when the test says so.
type router struct {
	t       *testing.T
	meter   *auth.Meter
	ticks   chan time.Time
	metrics *prometheus.Registry
	log     safeBuffer
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

const limit = 100 // requests a minute

// start runs the exchange of a router until the returned function is called.
func start(t *testing.T, id string, b discovery.Board) (*router, func()) {
	t.Helper()
	at := time.Unix(0, 0)
	now := func() time.Time { return at }
	l, meters := auth.NewLedger(id, now), auth.NewMeters(now)
	meters.Share(l)
	m, err := meters.Of("ada", limit, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := &router{t: t, meter: m, ticks: make(chan time.Time), metrics: prometheus.NewRegistry()}
	e := ledger.New(id, l, b, ledger.Options{Log: slog.New(slog.NewTextHandler(&r.log, nil)), Metrics: r.metrics,
		Ticks: r.ticks})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return r, stop
}

func (r *router) use(n int) {
	r.t.Helper()
	for range n {
		if err := r.meter.Begin(); err != nil {
			r.t.Fatal(err)
		}
	}
}

// report writes a report, and returns when it is written.
func (r *router) report() {
	r.ticks <- time.Time{}
	r.ticks <- time.Time{} // is taken after the first one is done
}

// await waits until a number of requests remains.
func (r *router) await(want int64) {
	r.t.Helper()
	r.until(func() bool {
		requests, _ := r.meter.State()
		return requests.Remaining == want
	})
}

func (r *router) until(ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.After(2 * time.Minute); !ok(); {
		select {
		case <-tick.C:
		case <-limit:
			requests, _ := r.meter.State()
			r.t.Fatalf("waited in vain: %+v, log %s", requests, &r.log)
		}
	}
}

func (r *router) value(name string) float64 {
	r.t.Helper()
	all, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	r.t.Fatalf("no metric %s", name)
	return 0
}

func TestExchange_RoutersShareBudgets(t *testing.T) {
	b := &board{Memory: discovery.NewMemory()}
	one, stopOne := start(t, "one", b)
	two, _ := start(t, "two", b)
	one.report()
	if b.written() > 0 {
		t.Error("a report although nobody has used anything")
	}
	one.use(10)
	two.use(5)
	one.report()
	two.report()
	one.await(limit - 15)
	two.await(limit - 15)
	if n := two.value("lamina_budget_routers"); n != 1 {
		t.Errorf("%v other routers", n)
	}
	b.set(true)
	one.use(7)
	one.report() // fails, and the requests were let in
	if n := one.value("lamina_budget_report_failures_total"); n < 1 || !strings.Contains(one.log.String(), "reach") {
		t.Errorf("%v failures, log %s", n, &one.log)
	}
	two.await(limit - 15)
	b.set(false)
	one.report()
	two.await(limit - 22)
	three, _ := start(t, "three", b)
	three.await(limit - 22)
	stopOne()
	two.until(func() bool { return two.value("lamina_budget_routers") == 0 })
	two.await(limit - 22) // what it has let in stays let in
	if n := two.value("lamina_budget_callers_left_out"); n != 0 {
		t.Errorf("%v callers have no room", n)
	}
}

func TestExchange_RefusesABadReportByName(t *testing.T) {
	b := &board{Memory: discovery.NewMemory()}
	one, _ := start(t, "one", b)
	two, _ := start(t, "two", b)
	for _, text := range []string{"nonsense", `{"version":1,"router":"one","callers":[]}`, "nonsense"} {
		if err := b.Post(t.Context(), "budgets/mallory", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	two.use(3)
	two.report()
	one.await(limit - 3)
	one.until(func() bool { return strings.Contains(one.log.String(), "router=mallory") })
	if n := one.value("lamina_budget_reports_refused_total"); n < 1 {
		t.Errorf("%v refused", n)
	}
	if err := b.Withdraw(t.Context(), "budgets/mallory"); err != nil {
		t.Fatal(err)
	}
	two.use(1)
	two.report()
	one.await(limit - 4)
}

func TestNewID_IsAnotherOneEachTime(t *testing.T) {
	one, two := ledger.NewID(), ledger.NewID()
	text, err := json.Marshal(auth.Report{Version: 1, Router: one, Callers: []auth.Usage{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := auth.ParseReport(text); err != nil || one == two {
		t.Errorf("%q, %q, %v", one, two, err)
	}
	if err := discovery.CheckEntry("budgets/"+one, nil); err != nil {
		t.Error(err)
	}
}

func TestExchange_LargeReportsAreWrittenLessOften(t *testing.T) {
	if d := ledger.Pause(100 << 10); d != time.Second {
		t.Errorf("after 100 KiB: %v", d)
	}
	// The longest one must still be written before the registry forgets its router.
	if d := ledger.Pause(auth.MaxReport); d <= time.Second || d > discovery.PostEvery {
		t.Errorf("after the longest report: %v", d)
	}
}
