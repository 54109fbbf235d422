package auth

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	maxRouters = 128              // whose reports are read
	keepGone   = 10 * time.Minute // for which a report that went away is remembered
	// staleAfter is the time after which a router that reports on has been out of reach: while a caller's budgets are
	// not full, its report changes every second.
	staleAfter = 10 * time.Second
	// freshGain is how long a bucket gains between two reports of a router that is in reach.
	freshGain = 2 * time.Second
)

// Routers returns how many other routers have reports.
func (l *Ledger) Routers() int {
	l.reading.Lock()
	defer l.reading.Unlock()
	n := 0
	for _, p := range l.peers {
		if p.gone.IsZero() {
			n++
		}
	}
	return n
}

// Read takes what other routers report, given the reports of all of them by their ids. A router reads them before it
// reports itself, so that what they lack is not its own use. It returns why reports are
// refused, by their ids; what these routers have reported before stays.
func (l *Ledger) Read(reports map[string][]byte) (refused map[string]error) {
	refused = map[string]error{}
	parsed, digests := map[string]*Report{}, map[string][sha256.Size]byte{}
	for id, text := range reports { // before the lock, for which new callers wait
		digest := sha256.Sum256(text)
		if id == l.id || l.known(id, digest) {
			continue
		}
		r, err := ParseReport(text)
		if err == nil && r.Router != id {
			err = fault.Field("router", "the report is that of %q", r.Router)
		}
		if err != nil {
			refused[id] = err
			continue
		}
		parsed[id], digests[id] = r, digest
	}
	l.reading.Lock()
	defer l.reading.Unlock()
	now := l.now()
	for id, p := range l.peers {
		if _, there := reports[id]; there {
			p.gone = time.Time{}
		} else if p.gone.IsZero() {
			p.gone = now
		}
		if !p.gone.IsZero() && now.Sub(p.gone) > keepGone {
			delete(l.peers, id)
		}
	}
	stale := map[string]staleUse{}
	for _, id := range slices.Sorted(maps.Keys(parsed)) { // in order, so that the same ones are refused each time
		p := l.peers[id]
		if p == nil {
			if len(l.peers) >= maxRouters && !l.evict() {
				refused[id] = fault.New(fault.Exhausted, "read report: %d other routers report already", maxRouters)
				continue
			}
			p = &peer{usage: map[string]*told{}}
			l.peers[id] = p
		}
		usage := make(map[string]*told, len(parsed[id].Callers))
		for _, u := range parsed[id].Callers {
			usage[u.Caller] = l.take(p, u, now, stale)
		}
		p.digest, p.seen, p.usage = digests[id], now, usage
	}
	for _, s := range stale {
		s.told.taken.add(s.meter.take(s.spending, spending{requests: MaxBudget, tokens: MaxBudget}))
	}
	l.joined = true
	return refused
}

// known reports whether a report is the last one of its router.
func (l *Ledger) known(id string, digest [sha256.Size]byte) bool {
	l.reading.Lock()
	defer l.reading.Unlock()
	p := l.peers[id]
	return p != nil && p.digest == digest
}

// evict forgets the router whose report has been away longest, if there is one.
func (l *Ledger) evict() bool {
	oldest := ""
	for id, p := range l.peers {
		if !p.gone.IsZero() &&
			(oldest == "" || cmp.Or(p.gone.Compare(l.peers[oldest].gone), cmp.Compare(id, oldest)) < 0) {
			oldest = id
		}
	}
	delete(l.peers, oldest)
	return oldest != ""
}

// staleUse is what one of the routers that were out of reach has used: the one that lacks most.
type staleUse struct {
	spending
	told  *told
	meter *Meter
}

// take takes what a router has let in of a caller since its last report. It returns what is known of them now. The
// caller holds reading.
func (l *Ledger) take(p *peer, u Usage, now time.Time, stale map[string]staleUse) *told {
	next := &told{Usage: u}
	missing := spending{requests: u.RequestsMissing, tokens: u.TokensMissing}
	m := l.of(u.Caller)
	before := p.usage[u.Caller]
	if before == nil || before.Period != u.Period {
		before = &told{}
	}
	next.taken = before.taken
	used := spending{requests: max(u.Requests-before.Requests, -before.taken.requests),
		tokens: max(u.Tokens-before.Tokens, -before.taken.tokens)}
	if !l.joined {
		used = missing // the totals say nothing of how long ago that was
	}
	switch {
	case m == nil:
		next.taken.add(used.atMost(missing))
	case !l.joined || before.Period != 0 && now.Sub(p.seen) > staleAfter:
		// It has been out of reach. Its bucket has gained meanwhile, and so has the one here, so what it lacks now is
		// all that counts. Others that were out of reach with it have counted the same in what they lack.
		used = used.atMost(missing)
		if s, ok := stale[u.Caller]; !ok || used.requests > s.requests || used.tokens > s.tokens {
			stale[u.Caller] = staleUse{spending: used, told: next, meter: m}
		}
	default:
		next.taken.add(m.take(used, missing))
	}
	return next
}

func (s spending) atMost(o spending) spending {
	return spending{requests: min(s.requests, o.requests), tokens: min(s.tokens, o.tokens)}
}

// add adds what was taken, or given back.
func (s *spending) add(o spending) {
	s.requests = min(s.requests+o.requests, maxSpent)
	s.tokens = min(s.tokens+o.tokens, maxSpent)
}

// take takes what another router has let in, even if that leads into debt, or gives it back. It returns what it has
// taken, or -n for n that were given back. What another bucket gained while it was full counts nowhere, so not more is
// taken than what is missing there, and what it may have gained in the time between two reports.
func (m *Meter) take(used, missing spending) (taken spending) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	return spending{requests: m.requests.charge(now, used.requests, missing.requests),
		tokens: m.tokens.charge(now, used.tokens, missing.tokens)}
}

func (b *Bucket) charge(now time.Time, used, missing int64) (taken int64) {
	used = min(used, missing+ceil(b.limit*int64(freshGain), unit))
	before := b.missing(now)
	b.Give(now, -used)
	if used <= 0 {
		return used
	}
	return b.missing(now) - before // less than used at the end of all debts
}

// lack lets at least the given part of the budgets be missing.
func (m *Meter) lack(s spending) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	m.requests.Give(now, min(0, m.requests.missing(now)-s.requests))
	m.tokens.Give(now, min(0, m.tokens.missing(now)-s.tokens))
}
