package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	slowPeriod   = 40 * time.Millisecond // of a slow member's running and stopping
	watchEvery   = 15 * time.Millisecond // between two looks at a router's metrics
	restoreLimit = time.Minute           // for the fleet to be whole again
	readLimit    = 20 * time.Second      // for the rest of a stream that was not read
	movesMetric  = "lamina_router_moves_total"
	memoryMetric = "process_resident_memory_bytes"
)

// planned is a fault of the schedule with its time.
type planned struct {
	spec FaultSpec
	at   time.Duration
}

// schedule returns the faults with their repetitions, in the order of their times.
func (m *Manifest) schedule() []planned {
	var out []planned
	for _, f := range m.Faults {
		for i := range f.Times {
			out = append(out, planned{f, f.At + time.Duration(i)*f.Every})
		}
	}
	slices.SortStableFunc(out, func(a, b planned) int { return int(a.at - b.at) })
	return out
}

// injector injects the faults of a run, one after another: a fault comes at its time, but not before
// the fleet has recovered from the last one, so that each gap of a stream has one cause.
type injector struct {
	fleet *fleet
	seed  int64
	start time.Time
	say   func(format string, args ...any)
	dead  map[string]bool // members that nothing starts again

	done   []injected
	missed int // faults of the schedule that were not injected
}

// run injects faults until all are done or ctx ends.
func (in *injector) run(ctx context.Context, schedule []planned) {
	for i, p := range schedule {
		if !sleep(ctx, time.Until(in.start.Add(p.at))) {
			in.missed = len(schedule) - i
			return
		}
		for _, members := range in.pick(i, p.spec) {
			if ctx.Err() != nil {
				in.missed = len(schedule) - i
				return
			}
			in.done = append(in.done, in.inject(ctx, p.spec, members))
		}
	}
}

// pick returns the groups of members that a fault hits, one group after another. A random member is
// one that still runs, and whose stage has another replica that runs.
func (in *injector) pick(index int, f FaultSpec) [][]string {
	names := slices.DeleteFunc(in.fleet.spec.match(f.Target), func(name string) bool { return in.dead[name] })
	switch f.Pick {
	case "all":
		return [][]string{names}
	case "each":
		var out [][]string
		for _, name := range names {
			out = append(out, []string{name})
		}
		return out
	}
	spare := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !in.hasSpare(name) })
	if len(spare) > 0 {
		names = spare
	}
	if len(names) == 0 {
		return [][]string{nil}
	}
	random := rand.New(rand.NewPCG(uint64(in.seed), uint64(index)))
	return [][]string{{names[random.IntN(len(names))]}}
}

// hasSpare reports whether another replica of a shard's stage runs. Other members count as having one.
func (in *injector) hasSpare(name string) bool {
	parts := strings.Split(name, "-")
	if parts[0] != shard {
		return true
	}
	return slices.ContainsFunc(in.fleet.spec.match(shard+"-*-"+parts[2]), func(other string) bool {
		return other != name && !in.dead[other]
	})
}

// inject injects one fault, ends it, and waits until the fleet is whole again.
func (in *injector) inject(ctx context.Context, f FaultSpec, members []string) injected {
	out := injected{spec: f, members: members}
	if len(members) == 0 {
		out.at = time.Since(in.start)
		out.err = fault.New(fault.FailedPrecondition, "no member that %q matches runs", f.Target)
		return out
	}
	watched, stop := context.WithCancel(ctx)
	moved := in.watchMoves(watched)
	out.at = time.Since(in.start)
	in.say("%6.2f s  %s %s%s", out.at.Seconds(), f.Kind, strings.Join(members, ", "), in.details(f, members))
	out.err = in.act(ctx, f, members, &out)
	out.healed = time.Since(in.start)
	if out.err == nil && f.Kind != SlowRead {
		if err := in.restore(ctx, f, members); err == nil {
			out.back = time.Since(in.start)
		} else if ctx.Err() == nil {
			out.err = err
		}
	}
	stop()
	if at, ok := <-moved; ok {
		out.detected = at.Sub(in.start)
	}
	text := fmt.Sprintf("the fleet is whole after %.2f s", (out.back - out.at).Seconds())
	switch {
	case out.err != nil:
		text = out.err.Error()
	case f.Kind == SlowRead:
		text = fmt.Sprintf("%d of %d readers were cut", out.readers.cut, out.readers.count)
	case out.back == 0:
		text = "the load is over"
	}
	if out.detected > 0 {
		text = fmt.Sprintf("streams move after %.0f ms, %s", millis(out.detected-out.at), text)
	}
	in.say("%6.2f s    %s", time.Since(in.start).Seconds(), text)
	return out
}

// details describes a fault for the transcript.
func (in *injector) details(f FaultSpec, members []string) string {
	var parts []string
	if p := in.fleet.processes[members[0]]; p != nil && len(members) == 1 {
		parts = append(parts, fmt.Sprintf("pid %d", p.pid()))
	}
	switch f.Kind {
	case Kill:
		if f.RestartAfter > 0 {
			parts = append(parts, fmt.Sprintf("restart after %v", f.RestartAfter))
		}
	case Restart:
	case Slow:
		parts = append(parts, fmt.Sprintf("%g times slower for %v", f.Factor, f.For))
	case Delay:
		parts = append(parts, fmt.Sprintf("%v each way for %v", f.Delay, f.For))
	case Partition:
		parts = append(parts, fmt.Sprintf("%s for %v", f.Direction, f.For))
	case SlowRead:
		parts = append(parts, fmt.Sprintf("%d clients for %v", f.Count, f.For))
	default:
		parts = append(parts, fmt.Sprintf("for %v", f.For))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// act makes the fault happen and takes it back. It returns when its cause is gone.
func (in *injector) act(ctx context.Context, f FaultSpec, members []string, out *injected) error {
	if members[0] == registry {
		return in.stopRegistry(ctx, f)
	}
	if f.Kind == SlowRead {
		got, err := in.slowReaders(ctx, f, in.fleet.processes[members[0]])
		out.readers = got
		return err
	}
	var mu sync.Mutex
	return in.each(members, func(p *process) error {
		switch f.Kind {
		case Kill:
			if f.RestartAfter == 0 {
				mu.Lock()
				in.dead[p.name] = true
				mu.Unlock()
			}
			if err := p.kill(); err != nil || f.RestartAfter == 0 {
				return err
			}
			sleep(ctx, f.RestartAfter)
			return p.start(context.WithoutCancel(ctx))
		case Restart:
			took, err := p.stop()
			mu.Lock()
			out.drains = append(out.drains, took)
			mu.Unlock()
			return errors.Join(err, p.start(context.WithoutCancel(ctx)))
		case Pause:
			if err := p.pause(); err != nil {
				return err
			}
			sleep(ctx, f.For)
			return p.resume()
		case Slow:
			return slow(ctx, p, f)
		}
		return disturb(ctx, p.proxy, f)
	})
}

// each calls do for all members at the same time.
func (in *injector) each(members []string, do func(*process) error) error {
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, name := range members {
		wg.Go(func() { errs[i] = do(in.fleet.processes[name]) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// slow lets a process run for a part of each period only.
func slow(ctx context.Context, p *process, f FaultSpec) error {
	ctx, cancel := context.WithTimeout(ctx, f.For)
	defer cancel()
	run := time.Duration(float64(slowPeriod) / f.Factor)
	for ctx.Err() == nil {
		if err := p.pause(); err != nil {
			return err
		}
		sleep(ctx, slowPeriod-run)
		if err := p.resume(); err != nil {
			return err
		}
		sleep(ctx, run)
	}
	return nil
}

// disturb disturbs the network in front of a member.
func disturb(ctx context.Context, p *proxy, f FaultSpec) error {
	switch f.Kind {
	case Partition:
		p.hold(f.Direction != "out", f.Direction != "in")
		defer p.hold(false, false)
	case Delay:
		p.setDelay(f.Delay)
		defer p.setDelay(0)
	case Reset:
		p.setRefuse(true)
		defer p.setRefuse(false)
	default:
		return fault.New(fault.Internal, "inject %s: it has no effect on a network", f.Kind)
	}
	sleep(ctx, f.For)
	return nil
}

func (in *injector) stopRegistry(ctx context.Context, f FaultSpec) error {
	if err := in.fleet.registry.Stop(); err != nil {
		return err
	}
	wait := f.For
	if f.RestartAfter > 0 {
		wait = f.RestartAfter
	}
	sleep(ctx, wait)
	return in.fleet.registry.Start()
}

// restore waits until the members of a fault are registered again and all pipelines are open.
func (in *injector) restore(ctx context.Context, f FaultSpec, members []string) error {
	ctx, cancel := context.WithTimeout(ctx, restoreLimit)
	defer cancel()
	if members[0] == registry {
		members = in.fleet.spec.names()[1:]
	}
	for _, name := range members {
		if in.dead[name] {
			continue
		}
		if err := in.fleet.restored(ctx, in.fleet.processes[name]); err != nil {
			return err
		}
	}
	return nil
}

// watchMoves returns a channel that receives when a router first moved a stream. It is closed when ctx
// ends.
func (in *injector) watchMoves(ctx context.Context) <-chan time.Time {
	out := make(chan time.Time, 1)
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{}}
	before := in.sum(client, movesMetric)
	go func() {
		defer close(out)
		defer client.CloseIdleConnections()
		for sleep(ctx, watchEvery) {
			if in.sum(client, movesMetric) > before {
				out <- time.Now()
				return
			}
		}
	}()
	return out
}

// sum returns the sum of a metric over all routers that answer.
func (in *injector) sum(client *http.Client, name string) float64 {
	total := 0.
	for _, url := range in.fleet.urls() {
		resp, err := client.Get(url + "/metrics")
		if err != nil {
			continue
		}
		total += readMetric(resp.Body, name)
		_ = resp.Body.Close() // it was only read
	}
	return total
}

// readMetric returns the value of a metric without labels in the text format of Prometheus.
func readMetric(r io.Reader, name string) float64 {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			v, err := strconv.ParseFloat(rest, 64)
			if err == nil {
				return v
			}
		}
	}
	return 0
}

// slowReaders opens streams and does not read them. When the time is over it reads what is left, and
// counts those that the router has cut.
func (in *injector) slowReaders(ctx context.Context, f FaultSpec, p *process) (*readers, error) {
	addr := p.address("http")
	client := &http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	before := in.sum(client, memoryMetric)
	// Much text for each token, so that the buffers of the kernel do not hold an answer.
	body := `{"prompt":"The prince","max_tokens":200,"stream":true,"n":4,"logprobs":20,"seed":1}`
	request := fmt.Sprintf("POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\n\r\n%s", addr, len(body), body)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range f.Count {
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "open a slow reader")
		}
		conns = append(conns, c)
		if tcp, ok := c.(*net.TCPConn); ok {
			err = tcp.SetReadBuffer(4 << 10)
		}
		if err == nil {
			_, err = io.WriteString(c, request)
		}
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "open a slow reader")
		}
	}
	sleep(ctx, f.For/2)
	during := in.sum(client, memoryMetric)
	sleep(ctx, f.For/2)
	out := &readers{count: f.Count, bytesEach: max(during-before, 0) / float64(f.Count)}
	cut := make([]bool, len(conns))
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() { cut[i] = wasCut(c) })
	}
	wg.Wait()
	for _, c := range cut {
		if c {
			out.cut++
		}
	}
	return out, nil
}

// wasCut reads what is left of a stream and reports whether the router has closed the connection
// before the end of the answer. The end of the connection waits behind the bytes that the kernel holds.
func wasCut(c net.Conn) bool {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(1 << 20) // a small window would let the bytes through in driblets
	}
	if err := c.SetReadDeadline(time.Now().Add(readLimit)); err != nil {
		return true
	}
	text, err := io.ReadAll(c)
	var timeout net.Error
	late := errors.As(err, &timeout) && timeout.Timeout()
	return !late && !strings.Contains(string(text), "data: [DONE]")
}
