package auth

import (
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// maxMeters bounds how many callers have budgets at a time.
const maxMeters = 1 << 16

// Meters holds the budgets of callers by their ids. It keeps those that are not full: a full one can be made again
// as it was. It is safe for concurrent use.
type Meters struct {
	now    func() time.Time
	ledger *Ledger // nil if no other router shares the budgets

	mu   sync.Mutex
	byID map[string]*Meter
}

// NewMeters returns budgets without callers. A nil now is time.Now.
func NewMeters(now func() time.Time) *Meters {
	if now == nil {
		now = time.Now
	}
	return &Meters{now: now, byID: map[string]*Meter{}}
}

// Share shares the budgets with other routers. It is called before the first use.
func (m *Meters) Share(l *Ledger) { m.ledger = l }

// Of returns the meter of a caller, with the limits that it has now. It is nil for a caller without limits. It fails
// if too many other callers use their budgets.
func (m *Meters) Of(id string, requests, tokens int64) (*Meter, error) {
	if requests == 0 && tokens == 0 {
		return nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if known := m.byID[id]; known != nil {
		known.limit(requests, tokens)
		return known, nil
	}
	if len(m.byID) >= maxMeters {
		for other, meter := range m.byID {
			if meter.full() {
				delete(m.byID, other)
				m.ledger.forget(other)
			}
		}
	}
	if len(m.byID) >= maxMeters {
		return nil, fault.New(fault.Exhausted, "run request: %d callers use their budgets", maxMeters).
			After(time.Minute).Because("RATE_LIMIT_EXCEEDED")
	}
	meter := m.ledger.meter(id, requests, tokens, m.now)
	m.byID[id] = meter
	return meter, nil
}
