package chaos

import (
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
)

// Fault, Stream and Gap let tests give evidence to the judge.
type (
	Fault struct {
		Spec     FaultSpec
		At       time.Duration
		Healed   time.Duration
		Detected time.Duration
		Drains   []time.Duration
		Cut      int // slow readers that were cut
		Err      error
	}
	Stream struct {
		Sent, End           time.Duration
		Outcome             loadtest.Outcome
		Gaps                []Gap
		Compared, Identical bool
	}
	Gap struct {
		From, To time.Duration
		First    bool
	}
)

// Judge returns the verdicts on faults and streams. Gaps above 100 ms are stalls, their p99 may be 1 s,
// the calm inter-token p99 is 10 ms, and some streams were resumed.
func Judge(faults []Fault, streams []Stream, resumed int) []Verdict {
	e := &evidence{stall: stallLeast, limit: time.Second, calmP99: 10, resumed: resumed}
	for _, f := range faults {
		in := injected{spec: f.Spec, members: []string{"m"}, at: f.At, healed: f.Healed, detected: f.Detected,
			drains: f.Drains,
			err:    f.Err}
		if f.Spec.Kind == SlowRead {
			in.readers = &readers{count: f.Spec.Count, cut: f.Cut}
		}
		e.faults = append(e.faults, in)
	}
	for _, s := range streams {
		out := stream{sent: s.Sent, end: s.End, outcome: s.Outcome, compared: s.Compared, identical: s.Identical,
			pieces: 20}
		for _, g := range s.Gaps {
			out.gaps = append(out.gaps, gap{g.From, g.To, g.First})
		}
		e.streams = append(e.streams, out)
	}
	return e.judge()
}

// Proxy lets tests disturb a connection.
type Proxy struct{ p *proxy }

// NewProxy returns a proxy in front of an address.
func NewProxy(target string) (*Proxy, error) {
	p, err := newProxy()
	if err != nil {
		return nil, err
	}
	p.setTarget(target)
	return &Proxy{p}, nil
}

func (p *Proxy) Addr() string             { return p.p.addr() }
func (p *Proxy) Hold(in, out bool)        { p.p.hold(in, out) }
func (p *Proxy) SetDelay(d time.Duration) { p.p.setDelay(d) }
func (p *Proxy) SetRefuse(refuse bool)    { p.p.setRefuse(refuse) }
func (p *Proxy) Close()                   { p.p.close() }
func Schedule(m *Manifest) (at []time.Duration) {
	for _, p := range m.schedule() {
		at = append(at, p.at)
	}
	return at
}
