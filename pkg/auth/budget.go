package auth

import (
	"fmt"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// unit is one request or token in the units of a bucket's level: in a nanosecond a bucket with a limit of n a minute
// gains n units. With integers a wait is exact.
const unit = int64(time.Minute)

// Bucket is a token bucket with a limit a minute, which is also its size. Its level may fall below zero: then it is
// in debt, and gives nothing until the debt is paid. A bucket with the limit 0 has no limit.
type Bucket struct {
	limit int64
	level int64 // in units
	at    time.Time
}

// NewBucket returns a full bucket. limit is at most MaxBudget.
func NewBucket(limit int64, now time.Time) Bucket {
	return Bucket{limit: limit, level: limit * unit, at: now}
}

// advance adds what was gained since the last call. A clock that goes back gains nothing.
func (b *Bucket) advance(now time.Time) {
	passed := int64(now.Sub(b.at))
	if passed <= 0 || b.limit == 0 {
		return
	}
	b.at = now
	if missing := b.limit*unit - b.level; passed >= ceil(missing, b.limit) {
		b.level = b.limit * unit
	} else {
		b.level += passed * b.limit
	}
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

// Take takes n, or returns how long to wait until it can be taken if nothing else is. n is at most the limit.
func (b *Bucket) Take(now time.Time, n int64) (wait time.Duration) {
	b.advance(now)
	if b.limit == 0 {
		return 0
	}
	if missing := n*unit - b.level; missing > 0 {
		return time.Duration(ceil(missing, b.limit))
	}
	b.level -= n * unit
	return 0
}

// Give gives n back, or takes -n even if that leads into debt.
func (b *Bucket) Give(now time.Time, n int64) {
	b.advance(now)
	if b.limit == 0 {
		return
	}
	n = max(-MaxBudget, min(n, MaxBudget))
	if full := b.limit * unit; n*unit > full-b.level {
		b.level = full
	} else {
		b.level = max(b.level+n*unit, -MaxBudget/2*unit) // far from an overflow
	}
}

// Remaining returns how much can be taken now, and how long it takes until the bucket is full.
func (b *Bucket) Remaining(now time.Time) (n int64, full time.Duration) {
	b.advance(now)
	if b.limit == 0 {
		return 0, 0
	}
	return max(0, b.level/unit), time.Duration(ceil(b.limit*unit-b.level, b.limit))
}

// missing returns how much a bucket lacks to be full, rounded up.
func (b *Bucket) missing(now time.Time) int64 {
	b.advance(now)
	return ceil(b.limit*unit-b.level, unit)
}

// change sets another limit. What was used stays used.
func (b *Bucket) change(now time.Time, limit int64) {
	b.advance(now)
	if b.limit == limit {
		return
	}
	used := b.limit*unit - b.level
	*b = Bucket{limit: limit, level: max(limit*unit-used, -MaxBudget/2*unit), at: now}
}

// Budget is the state of one budget.
type Budget struct {
	Limit     int64 // 0 for no limit
	Remaining int64
	Reset     time.Duration // until all of it can be used again
}

// Meter holds the budgets of a key in requests and tokens a minute. It is safe for concurrent use. A nil meter has
// no limits.
type Meter struct {
	now    func() time.Time
	ledger *Ledger // of the routers that share the budgets; nil for none
	name   string  // of the caller in reports

	mu               sync.Mutex
	requests, tokens Bucket
	reserved         int // requests that have reserved tokens and have not settled
	spent            spending
}

// spending is what a router has let in of a caller since the period began in which the caller's budgets were not full.
type spending struct {
	period           uint64 // 0 while nothing is used
	requests, tokens int64
}

// NewMeter returns a meter with full budgets; 0 means no limit.
func NewMeter(requests, tokens int64, now func() time.Time) *Meter {
	return &Meter{now: now, requests: NewBucket(requests, now()), tokens: NewBucket(tokens, now())}
}

func (m *Meter) limit(requests, tokens int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests.change(m.now(), requests)
	m.tokens.change(m.now(), tokens)
}

// full reports whether nothing of the budgets is used and nothing is reserved.
func (m *Meter) full() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	return m.reserved == 0 && m.requests.missing(now) == 0 && m.tokens.missing(now) == 0
}

// Charge takes n tokens for a request that was let in elsewhere, even if that leads into debt.
func (m *Meter) Charge(n int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens.Give(m.now(), -n)
	m.spend(0, n)
}

// spend notes for the other routers what was taken, or given back. The caller holds mu.
func (m *Meter) spend(requests, tokens int64) {
	if m.ledger == nil {
		return
	}
	if m.requests.limit == 0 {
		requests = 0
	}
	if m.tokens.limit == 0 {
		tokens = 0
	}
	if m.spent.period == 0 && (requests > 0 || tokens > 0) {
		m.spent = spending{period: m.ledger.begin(m)}
	}
	if m.spent.period != 0 {
		m.spent.requests = min(m.spent.requests+requests, maxSpent)
		m.spent.tokens = max(0, min(m.spent.tokens+tokens, maxSpent))
	}
}

// Begin takes one request. It also refuses a request while the budget of tokens is used up.
func (m *Meter) Begin() error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if wait := m.tokens.Take(now, 1); wait > 0 {
		return exhausted("token", m.tokens.limit, wait)
	}
	m.tokens.Give(now, 1)
	if wait := m.requests.Take(now, 1); wait > 0 {
		return exhausted("request", m.requests.limit, wait)
	}
	m.spend(1, 0)
	return nil
}

func exhausted(what string, limit int64, wait time.Duration) error {
	return &fault.Error{Code: fault.Exhausted, Reason: "RATE_LIMIT_EXCEEDED", RetryAfter: wait,
		Msg: fmt.Sprintf("run request: the caller has used its budget of %s a minute", plural.Of(limit, what))}
}

// Reserve takes n tokens for a request before it runs, but at most the whole budget. The caller calls the returned
// function once, with the tokens that the request has used: less is given back, and more becomes a debt.
func (m *Meter) Reserve(n int64) (settle func(used int64), err error) {
	if m == nil {
		return func(int64) {}, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tokens.limit > 0 {
		n = min(n, m.tokens.limit)
	}
	if wait := m.tokens.Take(m.now(), n); wait > 0 {
		return nil, exhausted("token", m.tokens.limit, wait)
	}
	m.reserved++
	m.spend(0, n)
	return func(used int64) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.reserved--
		m.tokens.Give(m.now(), n-used)
		m.spend(0, used-n)
	}, nil
}

// Limits returns the budgets a minute; 0 for no limit.
func (m *Meter) Limits() (requests, tokens int64) {
	if m == nil {
		return 0, 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests.limit, m.tokens.limit
}

// State returns both budgets.
func (m *Meter) State() (requests, tokens Budget) {
	if m == nil {
		return Budget{}, Budget{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	requests.Limit, tokens.Limit = m.requests.limit, m.tokens.limit
	requests.Remaining, requests.Reset = m.requests.Remaining(now)
	tokens.Remaining, tokens.Reset = m.tokens.Remaining(now)
	return requests, tokens
}
