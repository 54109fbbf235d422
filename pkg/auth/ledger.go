package auth

import (
	"crypto/sha256"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Ledger lets routers share the budgets of their callers. Each router admits requests by its own meters, without
// asking anyone, and tells the others from time to time what it has let in (Report). Read takes that from the meters
// here. So what all of them let in exceeds a budget by at most what the others have let in since their last reports,
// and that is then a debt, which all of them wait for.
//
// Reports hold running totals, so that one which is lost, late or read twice changes nothing, and no times.
//
// It is safe for concurrent use; one goroutine at a time calls Read. A nil Ledger shares nothing.
type Ledger struct {
	id  string
	now func() time.Time

	// The locks are taken in this order: reading, that of a meter, mu.
	reading sync.Mutex
	peers   map[string]*peer // by their ids
	joined  bool             // the reports of others were read once

	mu     sync.Mutex
	meters map[string]*Meter // by callerOf of their ids
	active map[uint64]*Meter // those that are not full, by their periods
	period uint64            // the last one
}

// peer is another router.
type peer struct {
	digest [sha256.Size]byte // of its last report
	seen   time.Time         // when that was read
	gone   time.Time         // when its report went away; zero if it is there
	usage  map[string]*told
}

// told is what a peer has reported last of a caller.
type told struct {
	Usage
	// What was taken from the meter here for it. Not more than that is given back, whatever the peer reports.
	taken spending
}

// NewLedger returns the ledger of a router with an id that no other process has. A nil now is time.Now.
func NewLedger(id string, now func() time.Time) *Ledger {
	if now == nil {
		now = time.Now
	}
	// A router that comes back under its id, which is not meant to happen, begins with other periods.
	return &Ledger{id: id, now: now, period: rand.Uint64N(1 << 52), meters: map[string]*Meter{},
		active: map[uint64]*Meter{}, peers: map[string]*peer{}}
}

// meter returns the meter of a caller whose budgets were full, as far as this router knows, and lacks what the others
// have reported.
func (l *Ledger) meter(id string, requests, tokens int64, now func() time.Time) *Meter {
	m := NewMeter(requests, tokens, now)
	if l == nil {
		return m
	}
	m.ledger, m.name = l, callerOf(id)
	l.reading.Lock()
	defer l.reading.Unlock()
	// Each peer's report counts what it knows of the others, so the one that lacks most is the best to go by.
	for _, p := range l.peers {
		u := p.usage[m.name]
		if u == nil {
			continue
		}
		r, t := NewBucket(requests, p.seen), NewBucket(tokens, p.seen)
		r.Give(p.seen, -u.RequestsMissing)
		t.Give(p.seen, -u.TokensMissing)
		lack := spending{requests: r.missing(l.now()), tokens: t.missing(l.now())}
		m.lack(lack)
		u.taken.requests, u.taken.tokens = min(u.taken.requests, lack.requests), min(u.taken.tokens, lack.tokens)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.meters[m.name] = m
	return m
}

// forget gives up the meter of a caller. The next report has it no more.
func (l *Ledger) forget(id string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.meters, callerOf(id))
}

// of returns the meter of a caller by its name in reports; nil if it has none here.
func (l *Ledger) of(name string) *Meter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.meters[name]
}

// begin returns the number of a meter's new period.
func (l *Ledger) begin(m *Meter) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.period++
	l.active[l.period] = m
	return l.period
}

// end ends a period.
func (l *Ledger) end(period uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.active, period)
}

// Report returns the report of this router, and how many callers have no room in it. It is nil if no caller uses its
// budgets.
func (l *Ledger) Report() (text []byte, left int, err error) {
	l.mu.Lock()
	for period, m := range l.active {
		if l.meters[m.name] != m {
			delete(l.active, period)
		}
	}
	active := maps.Clone(l.active)
	l.mu.Unlock()
	r := Report{Version: reportVersion, Router: l.id}
	// The oldest periods come first, so that a caller which is in a report is in the next ones until its period ends.
	for _, period := range slices.Sorted(maps.Keys(active)) {
		u, ok := active[period].report(period)
		if !ok {
			continue
		}
		if len(r.Callers) == maxCallers {
			left++
			continue
		}
		r.Callers = append(r.Callers, u)
	}
	if len(r.Callers) == 0 {
		return nil, 0, nil
	}
	text, err = json.Marshal(r)
	if err != nil {
		return nil, 0, fault.Wrap(fault.Internal, err, "write report")
	}
	return text, left, nil
}

// report returns the usage of a period; ok is false if it has ended.
func (m *Meter) report(period uint64) (u Usage, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.spent.period != period {
		m.ledger.end(period)
		return u, false
	}
	now := m.now()
	u = Usage{Caller: m.name, Period: period, Requests: m.spent.requests, Tokens: m.spent.tokens,
		RequestsMissing: min(m.requests.missing(now), MaxBudget), TokensMissing: min(m.tokens.missing(now), MaxBudget)}
	if m.reserved == 0 && u.RequestsMissing == 0 && u.TokensMissing == 0 {
		m.spent = spending{}
		m.ledger.end(period)
		return u, false
	}
	return u, true
}
