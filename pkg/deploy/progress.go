package deploy

import "time"

// Bounds of Progress.
const (
	retryLeast = time.Second
	retryMost  = time.Minute
	reportGap  = 2 * retryMost // between two reports of the same load at most
)

// Progress measures how fast a model is loaded, by reports of how much of it is there. A part may have been there
// before the first report, so what counts is what was loaded since. The zero value is ready.
type Progress struct {
	begun       bool
	first, last report
	total       uint64
}

// report is how many bytes there are at a time.
type report struct {
	done uint64
	at   time.Time
}

// Report takes the bytes that are there and those of the whole model. Fewer than before, or a report after a long time,
// begin another load.
func (p *Progress) Report(done, total uint64, at time.Time) {
	now := report{done, at}
	if !p.begun || done < p.last.done || total != p.total || at.Sub(p.last.at) > reportGap {
		p.begun, p.first = true, now
	}
	p.last, p.total = now, total
}

// Rest returns after which time to ask again for the model: when the rest is loaded, if that goes on as since the first
// report, but within a second and a minute. If nothing was loaded since then, it takes at least that long again.
func (p *Progress) Rest() time.Duration {
	took, loaded := p.last.at.Sub(p.first.at), p.last.done-p.first.done
	switch {
	case p.last.done >= p.total:
		return retryLeast
	case loaded == 0:
		return min(max(retryLeast, took), retryMost)
	}
	rest := float64(p.total-p.last.done) / float64(loaded) * float64(took)
	return max(retryLeast, time.Duration(min(rest, float64(retryMost))))
}
