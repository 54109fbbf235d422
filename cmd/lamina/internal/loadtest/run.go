package loadtest

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Pauses of a stream of a closed loop after a request that was refused or found no server. A
// Retry-After is kept up to maxPause.
const (
	refusedPause = 100 * time.Millisecond
	maxPause     = 5 * time.Second
)

// job is a request that is due.
type job struct {
	index   int
	planned time.Time
}

// Run puts the load on the servers and returns what it measured. When ctx ends, it stops the streams
// that run and returns what it measured until then. An error means that no load could be made.
func Run(ctx context.Context, c Config) (*Report, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	client := newClient(&c)
	defer client.close()
	if c.Model == "" {
		model, err := client.firstModel(ctx, c.URLs[0])
		if err != nil {
			return nil, err
		}
		c.Model = model
	}
	calls := make([]call, len(c.Prompts))
	for i, p := range c.Prompts {
		k, err := c.newCall(i, p)
		if err != nil {
			return nil, err
		}
		calls[i] = k
	}
	r := &runner{Config: c, client: client, calls: calls, out: newCollector(c)}
	start := time.Now()
	sending := ctx
	if c.Duration > 0 {
		var cancel context.CancelFunc
		sending, cancel = context.WithDeadline(ctx, start.Add(c.Duration))
		defer cancel()
	}
	jobs := make(chan job)
	var wg sync.WaitGroup
	for range c.Streams {
		wg.Go(func() { r.work(ctx, sending, jobs) })
	}
	r.plan(sending, start, jobs)
	close(jobs)
	wg.Wait()
	return r.out.report(time.Since(start), ctx.Err() != nil), nil
}

// runner is a load that runs.
type runner struct {
	Config
	client *client
	calls  []call // of each prompt, without the server
	out    *collector
}

// plan hands out requests until enough are sent or the time is over. The jobs of an open loop carry
// the time at which they were due, however late a stream takes them.
func (r *runner) plan(sending context.Context, start time.Time, jobs chan<- job) {
	arrivals := rand.New(rand.NewPCG(uint64(r.Seed), 0))
	due := start
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; r.Requests == 0 || i < r.Requests; i++ {
		j := job{index: i}
		if r.Rate > 0 {
			due = due.Add(time.Duration(arrivals.ExpFloat64() / r.Rate * float64(time.Second)))
			j.planned = due
			timer.Reset(time.Until(due))
			select {
			case <-timer.C:
			case <-sending.Done():
				return
			}
		}
		select {
		case jobs <- j:
		case <-sending.Done():
			return
		}
	}
}

// work runs one stream after another.
func (r *runner) work(ctx, sending context.Context, jobs <-chan job) {
	for j := range jobs {
		if sending.Err() != nil {
			continue // the job was taken in the moment the time was over
		}
		s := r.one(ctx, j)
		r.out.add(s)
		if r.Rate > 0 || s.Outcome != Refused && s.Outcome != Connect {
			continue
		}
		pause := refusedPause
		if s.RetryAfter > 0 {
			pause = min(s.RetryAfter, maxPause)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-sending.Done():
		}
		timer.Stop()
	}
}

// one runs one stream to its end.
func (r *runner) one(ctx context.Context, j job) *Sample {
	at := j.index % len(r.calls)
	k := r.calls[at]
	if k.tenant == "" {
		k.tenant = r.tenant(j.index)
	}
	first := j.index % len(r.URLs)
	k.base = r.URLs[first]
	if k.resumable {
		k.id = newID()
		k.others = append(slices.Clone(r.URLs[first+1:]), r.URLs[:first+1]...)
	}
	s := &Sample{Index: j.index, Prompt: at, URL: k.base, Tenant: k.tenant, Key: k.key, Planned: j.planned}
	if s.Planned.IsZero() {
		s.Planned = time.Now()
	}
	r.client.stream(ctx, k, r.Timeout, s)
	return s
}

// tenant picks the tenant of a request by the weights. It depends on the seed and the index only.
func (r *runner) tenant(index int) string {
	total := 0
	for _, t := range r.Tenants {
		total += t.Weight
	}
	if total == 0 {
		return ""
	}
	at := rand.New(rand.NewPCG(uint64(r.Seed), uint64(index)+1)).IntN(total)
	for _, t := range r.Tenants {
		if at -= t.Weight; at < 0 {
			return t.Name
		}
	}
	return ""
}
