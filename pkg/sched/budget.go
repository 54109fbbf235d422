package sched

import "time"

// Budget bounds the positions that are computed again after losses to a share of the work. It is a
// token bucket that work fills: every position of work adds Share, up to Burst. It also fills by itself once
// in every Refill, because without work nothing else would. A replay of any size is allowed while something
// is left, and may leave a debt. So in any span of time at most
// Share * work + Burst * (1 + span/Refill) positions are computed again, and the size of one replay more.
type Budget struct {
	Share  float64
	Burst  int
	Refill time.Duration

	level  float64
	at     time.Duration
	filled bool
}

// Level returns how many positions may be computed again at a time. It never decreases by itself.
func (b *Budget) Level(now time.Duration) float64 {
	if !b.filled {
		b.filled, b.level, b.at = true, float64(b.Burst), now
	}
	if now > b.at {
		b.add(float64(b.Burst) * float64(now-b.at) / float64(b.Refill))
		b.at = now
	}
	return b.level
}

func (b *Budget) add(n float64) { b.level = min(float64(b.Burst), b.level+n) }

// Earn adds the share of some positions of work.
func (b *Budget) Earn(now time.Duration, positions int) {
	b.Level(now)
	b.add(b.Share * float64(positions))
}

// Take spends positions if something is left. Otherwise it returns how long it takes at most until there is.
func (b *Budget) Take(now time.Duration, positions int) (wait time.Duration, ok bool) {
	level := b.Level(now)
	if level <= 0 {
		return time.Duration((1 - level) / float64(b.Burst) * float64(b.Refill)), false
	}
	b.level -= float64(positions)
	return 0, true
}
