package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Options are the settings of a run that its manifest leaves open.
type Options struct {
	Binary string    // the lamina binary of the fleet
	Model  string    // used if the manifest names none
	Logs   string    // folder of the members' logs; empty for a temporary one, which a run that went well removes
	Out    io.Writer // transcript of the run
}

// These say which gaps between two tokens are stalls.
const (
	stallFactor = 4 // times the inter-token p99 of the calm phase
	stallLeast  = 100 * time.Millisecond
	stallMost   = 250 * time.Millisecond // on a busy machine the calm p99 says little
)

// Result is what a run found.
type Result struct {
	Name     string           `json:"name"`
	Pass     bool             `json:"pass"`
	Verdicts []Verdict        `json:"promises"`
	Faults   []FaultResult    `json:"faults"`
	Calm     *loadtest.Report `json:"calm"`
	Load     *loadtest.Report `json:"load"`
	Crashes  []string         `json:"crashes,omitempty"` // members that ended by themselves
	Missed   int              `json:"missed"`            // faults that were not injected before the load was over
	Logs     string           `json:"logs,omitempty"`
}

// FaultResult is a fault that was injected. Times are in seconds from the beginning of the load.
type FaultResult struct {
	Kind     Kind     `json:"kind"`
	Members  []string `json:"members"`
	Promise  Promise  `json:"promise"`
	At       float64  `json:"at_s"`
	Healed   float64  `json:"healed_s"`
	Restored float64  `json:"restored_s,omitempty"`
	DetectMS float64  `json:"detect_ms,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// Run runs a manifest. An error means that the run is invalid: it proves nothing.
func Run(ctx context.Context, m *Manifest, o Options) (result *Result, err error) {
	dir, err := newDir(o.Logs)
	if err != nil {
		return nil, err
	}
	say := sayer(o.Out)
	proxied := map[string]bool{}
	for _, f := range m.Faults {
		if f.Kind == Partition || f.Kind == Delay || f.Kind == Reset {
			for _, name := range m.Fleet.match(f.Target) {
				proxied[name] = true
			}
		}
	}
	model := m.Model
	if model == "" {
		model = o.Model
	}
	f, err := newFleet(m.Fleet, o.Binary, model, dir, proxied)
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, f.close())
		switch {
		case o.Logs == "" && err == nil && result.Pass:
			err = os.RemoveAll(dir)
		case result != nil:
			result.Logs = dir
		default:
			say("the logs of the members are in %s", dir)
		}
	}()
	begin := time.Now()
	if err := f.start(ctx); err != nil {
		return nil, err
	}
	say("%s: %s x %s of %s, ready after %.1f s", m.Name, plural.Of(m.Fleet.Stages, "stage"),
		plural.Of(m.Fleet.Replicas, "replica"), model,
		time.Since(begin).Seconds())
	say("registry at %s, %s", f.registry.Addr(), f.pids())
	return m.run(ctx, f, say)
}

// sayer returns a function that writes a line.
func sayer(out io.Writer) func(string, ...any) {
	var mu sync.Mutex
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(out, format+"\n", args...)
	}
}

// run runs the phases on a fleet that is ready.
func (m *Manifest) run(ctx context.Context, f *fleet, say func(string, ...any)) (*Result, error) {
	load := loadtest.Config{
		URLs: f.urls(), Prompts: m.Load.Prompts, Streams: m.Load.Streams, Rate: m.Load.Rate,
		MaxTokens: m.Load.MaxTokens, Timeout: m.Load.Timeout, Tenants: m.Load.Tenants, Seed: m.Seed,
		Resume: m.Fleet.Routers > 1,
	}
	if len(load.Prompts) == 0 {
		load.Prompts = mixedPrompts(!load.Resume)
	}
	calm, texts, err := m.calmPhase(ctx, load, say)
	if err != nil {
		return nil, err
	}
	e := &evidence{
		limit: m.StallLimit, calmP99: calm.All.InterToken.P99,
		stall: min(max(stallLeast, time.Duration(stallFactor*calm.All.InterToken.P99*float64(time.Millisecond))),
			stallMost),
	}
	load.Expect, load.Duration, load.Rate = texts, m.Duration, m.Load.Rate
	start := time.Now()
	load.Observe = func(s loadtest.Sample) { e.streams = append(e.streams, reduce(s, start)) }
	in := &injector{fleet: f, seed: m.Seed, start: start, say: say, dead: map[string]bool{}}
	schedule := m.schedule()
	// The faults end with the load, and not the other way round.
	loading, done := context.WithCancel(ctx)
	var injecting sync.WaitGroup
	injecting.Go(func() { in.run(loading, schedule) })
	report, err := loadtest.Run(ctx, load)
	done()
	injecting.Wait()
	if err != nil {
		return nil, err
	}
	e.faults, e.resumed = in.done, report.All.Resumed
	result := &Result{Name: m.Name, Verdicts: e.judge(), Calm: calm, Load: report, Crashes: f.crashes(),
		Missed: in.missed}
	result.Pass = len(result.Crashes) == 0
	for _, v := range result.Verdicts {
		result.Pass = result.Pass && v.Pass
	}
	for _, i := range in.done {
		result.Faults = append(result.Faults, i.result())
	}
	if ctx.Err() != nil {
		return result, fault.Wrap(fault.Canceled, ctx.Err(), "the run was stopped")
	}
	if len(schedule) > 0 && len(in.done) == 0 {
		return result, fault.New(fault.FailedPrecondition, "no fault was injected")
	}
	return result, nil
}

// calmPhase keeps the undisturbed text of each request, and proves that traffic flows.
func (m *Manifest) calmPhase(ctx context.Context, load loadtest.Config, say func(string, ...any)) (*loadtest.Report,
	*loadtest.Texts, error) {
	record := load
	record.Requests, record.Rate, record.Record = len(load.Prompts), 0, true
	first, err := loadtest.Run(ctx, record)
	if err != nil {
		return nil, nil, err
	}
	if n := first.All.OK; n != len(load.Prompts) {
		return nil, nil, fault.New(fault.FailedPrecondition,
			"record the undisturbed texts: %d of %d requests ended well%s", n,
			len(load.Prompts), firstError(first))
	}
	load.Expect, load.Duration = first.Texts, m.Calm
	calm, err := loadtest.Run(ctx, load)
	if err != nil {
		return nil, nil, err
	}
	say("calm for %.1f s: %.0f tokens/s, inter-token p50 %.1f ms, p99 %.1f ms, %d of %d answers identical, %d failed",
		calm.ElapsedS, calm.All.Goodput, calm.All.InterToken.P50, calm.All.InterToken.P99, calm.All.Identity.Identical,
		calm.All.Identity.Compared, calm.All.Failed+calm.All.Refused)
	switch id := calm.All.Identity; {
	case ctx.Err() != nil:
		return nil, nil, fault.Wrap(fault.Canceled, ctx.Err(), "the run was stopped")
	case calm.All.Failed+calm.All.Refused > 0:
		return nil, nil, fault.New(fault.FailedPrecondition,
			"the run is invalid: %d requests failed and %d were refused "+
				"before any fault%s", calm.All.Failed, calm.All.Refused, firstError(calm))
	case id.Identical != id.Compared:
		return nil, nil, fault.New(fault.FailedPrecondition,
			"the run is invalid: %d of %d answers differ before any fault",
			id.Compared-id.Identical, id.Compared)
	case calm.All.Goodput < m.LeastTokens:
		return nil, nil, fault.New(fault.FailedPrecondition,
			"the run is invalid: %.0f tokens/s flow before the faults, want "+
				"at least %.0f", calm.All.Goodput, m.LeastTokens)
	}
	return calm, first.Texts, nil
}

func firstError(r *loadtest.Report) string {
	if len(r.All.Errors) == 0 {
		return ""
	}
	return fmt.Sprintf(": %s: %s", r.All.Errors[0].Class, r.All.Errors[0].Message)
}

// reduce keeps what the judge needs of a stream.
func reduce(s loadtest.Sample, start time.Time) stream {
	out := stream{
		sent: s.Planned.Sub(start), end: s.End.Sub(start), outcome: s.Outcome, compared: s.Compared,
		identical: s.Identical,
		message:   s.Message, pieces: s.Pieces,
	}
	for _, g := range s.Gaps {
		out.gaps = append(out.gaps, gap{g.From.Sub(start), g.To.Sub(start), g.First})
	}
	return out
}

func (i injected) result() FaultResult {
	out := FaultResult{
		Kind: i.spec.Kind, Members: i.members, Promise: i.spec.Promise, At: seconds(i.at), Healed: seconds(i.healed),
		Restored: seconds(i.back),
	}
	if i.detected > 0 {
		out.DetectMS = millis(i.detected - i.at)
	}
	if i.err != nil {
		out.Error = i.err.Error()
	}
	return out
}

func seconds(d time.Duration) float64 { return millis(d) / 1000 }
