package router

import (
	"context"
	"errors"
	"math"
	"time"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// maxEntries bounds the entries of a batch; the stages have the same bound.
const maxEntries = 1024

// event is something that the pipeline's scheduler has to handle. A Submit comes with its sequence.
type event struct {
	sched.Event
	seq *sequence
}

// runner carries out what a pipeline's scheduler decides. One goroutine runs it. Others may ask the
// scheduler questions under the pipeline's lock.
type runner struct {
	p              *pipeline
	start          time.Time
	sequences      map[sched.ID]*sequence
	events         []sched.Event // to be handled next
	vocabularySent bool          // the sampler has the vocabulary
	fruitless      int           // how often the chain was opened again since something was computed
	spare          bool          // as the scheduler knows it
	cause          error         // why the pipeline was last opened again
	due            time.Duration // when the first batch in flight misses its deadline
	awaits         bool          // a batch is in flight
	tokens         int
	since          time.Time
	chained        uint64 // windows that were counted in metrics
	discarded      uint64
	queried, hits  uint64 // positions that were counted in metrics
}

func newRunner(p *pipeline) *runner {
	now := time.Now()
	r := &runner{p: p, start: now, since: now, sequences: map[sched.ID]*sequence{},
		fruitless: maxFruitless} // a pipeline that has computed nothing at all is not opened again
	for _, l := range leases(p.stages) {
		r.events = append(r.events, l)
	}
	return r
}

// leases returns the leases with which stages have opened.
func leases(stages []*shardv1.Held) (out []sched.Lease) {
	for _, h := range stages {
		if h.Lease != nil {
			out = append(out, sched.Lease{Lo: int(h.GetLo()), Pages: int(h.GetLease())})
		}
	}
	return out
}

// schedulerConfig describes the pipeline to its scheduler.
func (p *pipeline) schedulerConfig() sched.Config {
	c := p.service.cfg
	out := sched.Config{
		Stages: len(p.chain), Pages: math.MaxInt32, Positions: math.MaxInt32, Vocab: int(p.stages[0].GetVocab()),
		BatchRows: c.BatchRows, ChunkRows: c.ChunkRows, Entries: maxEntries, Queue: c.Queue,
		TenantQueue: c.TenantQueue, CacheIdle: c.CacheIdle, Floor: c.StepFloor, LoneFloor: c.LoneFloor,
	}
	if out.Depth = c.MicroBatches; out.Depth == 0 {
		out.Depth = depth(p.chain)
	}
	for _, h := range p.stages {
		out.Pages, out.PageLen = min(out.Pages, int(h.GetKvPages())), int(h.GetKvPageLen())
		out.Positions = min(out.Positions, int(h.GetPositions()))
	}
	return out
}

// depth returns how many batches should be in flight on a chain. Stages of one process share its
// processors, so together they compute one batch at a time: smaller batches would only read the
// weights more often. Stages of several processes each have one, and one more is on its way.
func depth(chain plan.Chain) int {
	processes, inProcess := 0, false
	for _, hop := range chain {
		if rpc.InProcess(hop.Addr) {
			inProcess = true
			continue
		}
		processes++
	}
	if inProcess {
		processes++
	}
	if processes == 1 {
		return 1
	}
	return processes + 1
}

// run handles events until the pipeline ends or one of its streams breaks.
func (r *runner) run(ctx context.Context) error {
	tick := time.NewTicker(sched.StepEvery)
	defer tick.Stop()
	due := time.NewTimer(sched.StepEvery)
	defer due.Stop()
	for {
		if err := r.p.broken(); err != nil {
			return err
		}
		if r.awaits {
			due.Reset(r.due - time.Since(r.start))
		}
		if len(r.events) == 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-r.p.chained.ctx.Done():
				continue
			case <-r.p.sampling.ctx.Done():
				continue
			case e := <-r.p.events:
				r.take(e)
			case <-tick.C:
			case <-due.C:
			}
		}
		// Handle all events that have arrived before batches are formed: the tokens of one batch arrive
		// one by one, and a batch formed after the first would hold one row.
		r.takeAll()
		if err := r.step(time.Now()); err != nil {
			return err
		}
	}
}

// takeAll takes all events that have arrived.
func (r *runner) takeAll() {
	for {
		select {
		case e := <-r.p.events:
			r.take(e)
		default:
			return
		}
	}
}

func (r *runner) take(e event) {
	if e.seq != nil {
		r.sequences[e.seq.name()] = e.seq
	}
	if _, computed := e.Event.(sched.Computed); computed {
		r.progress()
	}
	r.events = append(r.events, e.Event)
}

// progress records that something was computed.
func (r *runner) progress() {
	r.fruitless = 0
	r.p.doubtful.Store(false)
}

// step lets the scheduler decide and carries out all of its commands, even if a link breaks meanwhile: the
// scheduler does not repeat what it has told a request.
func (r *runner) step(now time.Time) error {
	if spare := r.p.spare.Load() || r.p.spareShard.Load(); spare != r.spare {
		r.spare = spare
		r.events = append(r.events, sched.Spare{Available: spare})
	}
	r.p.mu.Lock()
	commands := r.p.sched.Step(now.Sub(r.start), r.events)
	stats := r.p.sched.Stats()
	r.due, r.awaits = r.p.sched.Due()
	r.p.mu.Unlock()
	r.events = r.events[:0]
	var failed error
	for _, c := range commands {
		if err := r.carryOut(c); err != nil {
			failed = err
		}
	}
	r.p.stepped.Store(now.UnixNano())
	r.p.runningCount.Store(int64(stats.Running))
	r.p.waitingCount.Store(int64(stats.Waiting))
	r.p.stepUS.Store(stats.Step.Microseconds())
	r.p.service.m.windows.WithLabelValues("sent").Add(float64(stats.Chained - r.chained))
	r.p.service.m.windows.WithLabelValues("discarded").Add(float64(stats.Discarded - r.discarded))
	r.chained, r.discarded = stats.Chained, stats.Discarded
	if !r.p.draft {
		r.p.meters.queried.Add(float64(stats.Queried - r.queried))
		r.p.meters.hits.Add(float64(stats.Hits - r.hits))
		r.queried, r.hits = stats.Queried, stats.Hits
	}
	if span := now.Sub(r.since); span >= time.Second {
		r.p.rate.Store(uint64(float64(r.tokens) / span.Seconds() * 1000))
		r.tokens, r.since = 0, now
	}
	return failed
}

// failAll tells every sequence that the pipeline is lost, including those whose Submit was not handled
// yet.
func (r *runner) failAll() {
	cause := context.Cause(r.p.ctx)
	r.p.mu.Lock()
	blamed, others := r.p.sched.Lost(r.p.sampling.broken() != nil)
	proven := map[sched.ID]int{}
	for _, id := range others {
		proven[id] = r.p.sched.Proven(id)
	}
	r.p.mu.Unlock()
	for _, b := range blamed {
		if proven[b.ID] = b.Proven; errors.Is(cause, errLeaving) {
			continue
		}
		if seq := r.sequences[b.ID]; seq != nil {
			seq.out <- result{lost: cause, blamed: &b, proven: b.Proven}
			delete(r.sequences, b.ID)
		}
	}
	for id, seq := range r.sequences {
		seq.out <- result{lost: cause, proven: proven[id]}
	}
	for {
		select {
		case e := <-r.p.events:
			if e.seq != nil {
				e.seq.out <- result{lost: cause}
			}
		default:
			return
		}
	}
}
