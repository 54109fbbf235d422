package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
	"github.com/lamina-mesh/lamina/internal/plural"
)

// Promise is the name of a promise of Lamina.
type Promise string

// promises are the promises that faults can test. The texts are those users are given.
func promises() map[Promise]string {
	return map[Promise]string{
		"S1":  "a shard dies: its streams go on with the same text",
		"S2":  "a shard freezes or its link goes silent: the same",
		"S3":  "the sampler dies: sampled and constrained streams go on with the same text",
		"S4":  "a stage is lost for good: no cut answer looks finished",
		"S10": "a slow reader harms only itself",
		"S11": "restarts lose nothing",
		"S12": "the registry fails: answers go on",
		"S13": "a router dies: streams are resumed from another one",
	}
}

func promiseNames() []string {
	var out []string
	for p := range promises() {
		out = append(out, string(p))
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	return out
}

// promise returns the promise that a fault tests.
func (f FleetSpec) promise(fault FaultSpec, names []string) Promise {
	service := fault.reach()
	lost := fault.Pick == "all" && f.total(names) || service == shard && f.Replicas == 1
	switch {
	case fault.Kind == SlowRead:
		return "S10"
	case fault.Kind == Restart:
		return "S11"
	case service == registry:
		return "S12"
	case service == router:
		return "S13"
	case lost:
		return "S4"
	case service == sampler:
		return "S3"
	case fault.Kind == Kill || fault.Kind == Reset:
		return "S1"
	}
	return "S2"
}

// Limits of promises.
const (
	toldLimit     = 5 * time.Second  // S4: from the fault to the error event, or to the next token
	drainLimit    = 30 * time.Second // S11
	slowdown      = 1.2              // S10: inter-token p99 against calm
	slowdownSlack = 5                // milliseconds of it that are noise
	settle        = 10 * time.Second // S10: until the buffers of the kernel are full
)

// injected is a fault that happened. Times count from the beginning of the load with faults.
type injected struct {
	spec    FaultSpec
	members []string
	at      time.Duration
	healed  time.Duration // when its cause was gone
	back    time.Duration // when the fleet was whole again; 0 if it was not
	// detected is when the first stream was moved after the fault, as a router's metrics say; 0 if
	// none was.
	detected time.Duration
	drains   []time.Duration // from SIGTERM to the exit
	readers  *readers
	err      error
}

// readers is what became of slow readers.
type readers struct {
	count, cut int
	bytesEach  float64 // growth of the router's memory
}

// stream is what the judge needs of a stream. Times count from the beginning of the load with faults.
type stream struct {
	sent, end           time.Duration
	outcome             loadtest.Outcome
	pieces              int
	gaps                []gap // the longest ones
	compared, identical bool
	message             string
}

type gap struct {
	from, to time.Duration
	first    bool
}

// Verdict says whether a promise held.
type Verdict struct {
	Promise Promise  `json:"promise"`
	Title   string   `json:"title"`
	Faults  int      `json:"faults"`
	Pass    bool     `json:"pass"`
	Why     []string `json:"why,omitempty"` // it did not hold

	Running   int       `json:"running"` // streams that ran when a fault came
	Streams   int       `json:"streams"` // that ended under the faults
	Failed    int       `json:"failed"`
	Refused   int       `json:"refused"`
	Compared  int       `json:"compared"`
	Identical int       `json:"identical"`
	Diverged  int       `json:"diverged"` // failed streams whose text is not the beginning of the right one
	Stalled   int       `json:"stalled"`  // streams with a gap above the threshold
	StallMS   Quantiles `json:"stall_ms"` // the longest gap of each such stream
	DetectMS  Quantiles `json:"detect_ms"`
	Notes     []string  `json:"notes,omitempty"`
}

// Quantiles sums up durations in milliseconds, by nearest rank.
type Quantiles struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

func quantiles(d []time.Duration) Quantiles {
	if len(d) == 0 {
		return Quantiles{}
	}
	d = slices.Clone(d)
	slices.Sort(d)
	at := func(q float64) float64 {
		return millis(d[max(int(math.Ceil(q*float64(len(d)))), 1)-1])
	}
	return Quantiles{Count: len(d), P50: at(0.5), P99: at(0.99), Max: millis(d[len(d)-1])}
}

func millis(d time.Duration) float64 { return math.Round(float64(d)/1e4) / 100 }

// evidence is all that happened in the load with faults.
type evidence struct {
	faults  []injected // in the order of at
	streams []stream
	stall   time.Duration // gaps above it are stalls
	limit   time.Duration // of the p99 of stalls
	calmP99 float64       // inter-token, milliseconds
	resumed int           // streams that a router lost and another one went on with
}

// active returns the index of the last fault that came at or before t, or -1.
func (e *evidence) active(t time.Duration) int {
	at := -1
	for i, f := range e.faults {
		if f.at <= t {
			at = i
		}
	}
	return at
}

// causing returns the fault of a gap: the first that came within it, or else the last before it.
func (e *evidence) causing(g gap) int {
	for i, f := range e.faults {
		if f.at >= g.from && f.at <= g.to {
			return i
		}
	}
	return e.active(g.from)
}

// judge returns a verdict for each promise that the faults tested, in the order of their names.
func (e *evidence) judge() []Verdict {
	verdicts := map[Promise]*Verdict{}
	stalls := map[Promise][]time.Duration{}
	detects := map[Promise][]time.Duration{}
	for i, f := range e.faults {
		p := f.spec.Promise
		v := verdicts[p]
		if v == nil {
			v = &Verdict{Promise: p, Title: promises()[p]}
			verdicts[p] = v
		}
		v.Faults++
		if f.err != nil {
			v.Why = append(v.Why, fmt.Sprintf("the fault at %.1f s could not be injected: %v", f.at.Seconds(), f.err))
		}
		if f.detected > 0 {
			detects[p] = append(detects[p], f.detected-f.at)
		}
		for _, s := range e.streams {
			if s.sent < f.at && s.end > f.at {
				v.Running++
			}
			if longest := e.longestGap(s, i); longest > e.stall {
				stalls[p] = append(stalls[p], longest)
			}
		}
	}
	for _, s := range e.streams {
		at := e.active(s.end)
		if at < 0 {
			continue
		}
		v := verdicts[e.faults[at].spec.Promise]
		v.Streams++
		switch {
		case s.outcome == loadtest.OK && s.compared:
			v.Compared++
			if s.identical {
				v.Identical++
			}
		case s.outcome.Failed():
			v.Failed++
			if s.compared && !s.identical {
				v.Diverged++
			}
		case s.outcome == loadtest.Refused:
			v.Refused++
		}
	}
	out := []Verdict{}
	for _, p := range slices.SortedFunc(maps.Keys(verdicts), func(a, b Promise) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	}) {
		v := verdicts[p]
		v.Stalled, v.StallMS, v.DetectMS = len(stalls[p]), quantiles(stalls[p]), quantiles(detects[p])
		e.rule(v)
		v.Pass = len(v.Why) == 0
		out = append(out, *v)
	}
	return out
}

// longestGap returns the longest gap of a stream that fault number i caused. The time to the first
// token counts for streams that were waiting when the fault came.
func (e *evidence) longestGap(s stream, i int) time.Duration {
	var longest time.Duration
	for _, g := range s.gaps {
		if g.first && g.from > e.faults[i].at || e.causing(g) != i {
			continue
		}
		longest = max(longest, g.to-g.from)
	}
	return longest
}

// rule adds to Why what the pass rule of the promise finds.
func (e *evidence) rule(v *Verdict) {
	why := func(format string, args ...any) { v.Why = append(v.Why, fmt.Sprintf(format, args...)) }
	if v.Running == 0 {
		why("no stream ran when a fault came")
	}
	if v.Identical != v.Compared {
		why("%d of %d answers differ from the undisturbed ones", v.Compared-v.Identical, v.Compared)
	}
	if v.Diverged > 0 {
		why("%d failed streams had begun with another text", v.Diverged)
	}
	if v.Promise == "S4" {
		e.ruleLost(v)
		return
	}
	if n := v.Failed + v.Refused; n > 0 {
		why("%s failed, %d refused: %s", plural.Of(v.Failed, "stream"), v.Refused, e.firstFailure(v.Promise))
	}
	if v.Compared == 0 {
		why("no answer was compared with its undisturbed text")
	}
	if v.Promise == "S13" {
		v.Notes = append(v.Notes, "resumed "+plural.Of(e.resumed, "stream"))
		if e.resumed == 0 {
			why("no stream had to be resumed")
		}
	}
	limit := millis(e.limit)
	switch v.Promise {
	case "S10":
		e.ruleReaders(v)
	case "S11":
		var drains []time.Duration
		for _, f := range e.faults {
			if f.spec.Promise == v.Promise {
				drains = append(drains, f.drains...)
			}
		}
		q := quantiles(drains)
		v.Notes = append(v.Notes, fmt.Sprintf("%s, drained in %.0f ms at most", plural.Of(q.Count, "restart"), q.Max))
		if q.Max > millis(drainLimit) {
			why("a drain took %.1f s, more than %v", q.Max/1000, drainLimit)
		}
	default:
		if v.StallMS.P99 > limit {
			why("the p99 of stalls is %.0f ms, more than %.0f ms", v.StallMS.P99, limit)
		}
	}
}

// ruleLost is the rule of S4: streams end with an error event in time, and none hangs or looks finished.
// Answers that look finished but are not are found by their text.
func (e *evidence) ruleLost(v *Verdict) {
	told := []time.Duration{}
	bad := map[loadtest.Outcome]int{}
	for _, s := range e.streams {
		at := e.active(s.end)
		if at < 0 || e.faults[at].spec.Promise != v.Promise || !s.outcome.Failed() {
			continue
		}
		switch s.outcome {
		case loadtest.ErrorEvent, loadtest.Status:
			told = append(told, s.end-max(s.sent, e.faults[at].at))
		default:
			bad[s.outcome]++
		}
	}
	for _, o := range slices.Sorted(maps.Keys(bad)) {
		v.Why = append(v.Why, fmt.Sprintf("%s ended without an error event: %s", plural.Of(bad[o], "stream"), o))
	}
	q := quantiles(told)
	v.Notes = append(v.Notes, fmt.Sprintf("told %s in %.0f ms at most", plural.Of(q.Count, "stream"), q.Max))
	if q.Max > millis(toldLimit) {
		v.Why = append(v.Why, fmt.Sprintf("a stream was told after %.1f s, more than %v", q.Max/1000, toldLimit))
	}
	if v.StallMS.Max > millis(toldLimit) {
		v.Why = append(v.Why, fmt.Sprintf("a stream waited %.1f s and was not told within %v", v.StallMS.Max/1000,
			toldLimit))
	}
}

// ruleReaders is the rule of S10.
func (e *evidence) ruleReaders(v *Verdict) {
	for _, f := range e.faults {
		if f.readers == nil {
			continue
		}
		v.Notes = append(v.Notes,
			fmt.Sprintf("%d of %d readers were cut within %v, the router grew by %.0f KiB for each",
				f.readers.cut, f.readers.count, f.spec.For, f.readers.bytesEach/1024))
		if f.readers.cut < f.readers.count {
			v.Why = append(v.Why, fmt.Sprintf("%d readers were not cut within %v", f.readers.count-f.readers.cut,
				f.spec.For))
		}
	}
	for _, f := range e.faults {
		if f.readers == nil {
			continue
		}
		p99, n := e.interTokenP99(f.at+settle, f.healed)
		if n == 0 {
			v.Why = append(v.Why, fmt.Sprintf("no stream ran from %v after the readers came until they went", settle))
			continue
		}
		v.Notes = append(v.Notes,
			fmt.Sprintf("inter-token p99 of %d other streams %.1f ms, calm %.1f ms", n, p99, e.calmP99))
		if p99 > slowdown*e.calmP99+slowdownSlack {
			v.Why = append(v.Why, fmt.Sprintf("the inter-token p99 of others is %.1f ms, more than %g x %.1f ms", p99,
				slowdown,
				e.calmP99))
		}
	}
}

// interTokenP99 returns the p99 of the gaps of streams within a time, in milliseconds, and the number
// of the streams. A stream keeps its longest gaps, which are those that a p99 depends on.
func (e *evidence) interTokenP99(from, to time.Duration) (p99 float64, streams int) {
	var longest []time.Duration
	total := 0
	for _, s := range e.streams {
		if s.sent < from || s.end > to || s.pieces < 2 {
			continue
		}
		streams++
		total += s.pieces - 1
		for _, g := range s.gaps {
			if !g.first {
				longest = append(longest, g.to-g.from)
			}
		}
	}
	if streams == 0 {
		return 0, 0
	}
	slices.SortFunc(longest, func(a, b time.Duration) int { return cmp.Compare(b, a) })
	above := total - int(math.Ceil(0.99*float64(total)))
	return millis(longest[min(above, len(longest)-1)]), streams
}

// firstFailure returns the message of the first stream that failed or was refused under a promise.
func (e *evidence) firstFailure(p Promise) string {
	for _, s := range e.streams {
		at := e.active(s.end)
		if at >= 0 && e.faults[at].spec.Promise == p && (s.outcome.Failed() || s.outcome == loadtest.Refused) {
			return fmt.Sprintf("%s: %s", s.outcome, s.message)
		}
	}
	return ""
}
