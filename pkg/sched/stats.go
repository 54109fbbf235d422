package sched

import "time"

// Stats counts what a scheduler has done and holds.
type Stats struct {
	Running, Waiting int
	Pages            int // that the leases allow
	Held, Cached     int // pages that hold something, and those among them that no sequence holds
	Evicted          uint64
	Replayed         uint64 // rows that were computed again for a stage in the place of a lost one
	Preemptions      uint64
	Steps, Tokens    uint64
	// Chained counts windows of draft tokens that were sent behind others, and Discarded those of which no
	// row counted.
	Chained, Discarded uint64
	// Queried counts the positions of admitted logs that were looked up in the prefix cache, and Hits those that were
	// there.
	Queried, Hits uint64
	// Step is the moving average time of a decode step without draft tokens, Slow the 99th percentile.
	Step, Slow time.Duration
	// Single is the moving average time of a decode step of a lone sequence without draft tokens, from sending the row
	// to its token, and Singles the number of these steps since the stages were warm.
	Single  time.Duration
	Singles int
	// Bubble is the share of stages without a batch while sequences ran, since the beginning.
	Bubble float64
}

// counts are the counters behind Stats.
type counts struct {
	steps, tokens, preemptions, queried, hits, replayed, chained, discarded uint64

	active, filled time.Duration // of all stages together, while sequences ran; and with a batch in flight
}

// account adds the time since the last Step to the counts of filled stages.
func (s *Scheduler) account(passed time.Duration) {
	if len(s.running) > 0 && passed > 0 {
		busy := min(s.cfg.Stages, s.depth()) // how many can compute at once
		s.stats.active += passed * time.Duration(busy)
		s.stats.filled += passed * time.Duration(min(len(s.flights), busy))
	}
}

// Stats returns the current counts.
func (s *Scheduler) Stats() Stats {
	bubble := 0.0
	if s.stats.active > 0 {
		bubble = 1 - float64(s.stats.filled)/float64(s.stats.active)
	}
	return Stats{
		Bubble:  bubble,
		Running: len(s.running), Waiting: len(s.waiting), Pages: s.granted(), Held: s.pool.held(),
		Cached: s.pool.cached, Evicted: s.pool.evicted, Preemptions: s.stats.preemptions, Steps: s.stats.steps,
		Replayed: s.stats.replayed, Tokens: s.stats.tokens, Chained: s.stats.chained, Discarded: s.stats.discarded,
		Queried: s.stats.queried, Hits: s.stats.hits, Step: s.timing.plain,
		Slow:   time.Duration(s.timing.slow * float64(time.Second)),
		Single: time.Duration(s.timing.single * float64(time.Second)), Singles: s.timing.singles,
	}
}

// Service returns the weighted tokens that each tenant with work or pages has received.
func (s *Scheduler) Service() map[string]float64 {
	out := map[string]float64{}
	for _, t := range s.tenants.list {
		out[t.name] = t.service
	}
	return out
}
