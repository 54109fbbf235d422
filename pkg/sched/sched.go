package sched

import (
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/session"
)

// Config describes a pipeline.
type Config struct {
	Stages    int
	Pages     int // KV pages of the smallest stage
	PageLen   int // positions in a page
	Positions int // the longest log that the stages compute
	Vocab     int
	// Depth is how many batches may be in flight; 0 means one more than there are stages, or one for a
	// single stage.
	Depth int
	// BatchRows is the maximum number of rows in a batch, ChunkRows that of one prompt in it, and
	// Entries the maximum number of sequences in it.
	BatchRows, ChunkRows, Entries int
	// Queue is how many sequences may wait; TenantQueue is how many of one tenant, if it has a name.
	Queue, TenantQueue int
	// CacheIdle is how long an unused page of a prefix stays in the cache; 0 turns the prefix cache off.
	CacheIdle time.Duration
	// Floor is the shortest step deadline while a spare pipeline exists, and LoneFloor without one; 0
	// means 250 ms and 2 s.
	Floor, LoneFloor time.Duration
}

// Scheduler decides what a pipeline computes next.
type Scheduler struct {
	cfg     Config
	now     time.Duration
	out     []Command
	byID    map[ID]*sequence
	waiting []*sequence // in order of arrival
	running []*sequence // in order of admission
	pool    *pool
	tenants *tenants
	order   uint64

	replayUntil int                  // the layer at which replays end; 0 if no stage was ever replaced
	replayed    bool                 // the last batch was a replay
	builders    map[uint32]*sequence // of the missing pages that are being replayed

	inFlight map[uint64]*flight
	flights  []*flight        // in the order of their steps
	unproven []*flight        // flights that are done and whose chunks of prompts are not known to be computed
	fronts   map[uint64]front // by the hash of the page
	step     uint64
	strays   strays    // rows in flight that the sampler will drop
	forming  *flight   // the batch that is being formed
	best     int       // the best priority of all sequences
	turn     bool      // it is a suspect's turn to be the next batch
	suspect  *sequence // the suspect that is on probation
	released []ID
	stale    []uint32 // pages that are free once the batch being formed has been sent

	leases []Lease // of the stages, in the order in which they were first heard of
	acks   []Lease // smaller leases to be acknowledged once they are kept

	timing  timing
	habit   habit         // what recent sequences have shown about speculation
	swept   time.Duration // when unused pages were last looked for
	stuck   time.Duration // since when the first sequence of the queue cannot be admitted; 0 if it can
	spacing float64       // moving average of seconds between ends of sequences
	ended   time.Duration
	stats   counts
}

// New returns a scheduler of an idle pipeline.
func New(c Config) *Scheduler {
	p := newPool(c.Pages, c.PageLen)
	return &Scheduler{
		cfg: c, byID: map[ID]*sequence{}, builders: map[uint32]*sequence{}, pool: p, tenants: newTenants(p),
		inFlight: map[uint64]*flight{}, fronts: map[uint64]front{}, timing: newTiming(c.Floor, c.LoneFloor),
	}
}

// Step handles events in order and returns what to do. now never decreases. The commands are valid
// until the next call.
func (s *Scheduler) Step(now time.Duration, events []Event) []Command {
	s.account(now - s.now)
	s.forgive(now - s.now)
	s.now, s.out = max(s.now, now), s.out[:0]
	for _, e := range events {
		s.handle(e)
	}
	if late := s.overdue(); late != nil {
		s.do(*late)
		return s.out
	}
	s.findBest()
	s.share()
	s.fitLease()
	s.admit()
	s.startProbation()
	for s.busy() < s.depth() {
		b := s.next()
		if b == nil {
			break
		}
		s.send(b)
	}
	for len(s.flights) < s.depth() {
		b := s.formChained()
		if b == nil {
			break
		}
		s.send(b)
	}
	s.sendRelease()
	s.sweep()
	return s.out
}

func (s *Scheduler) send(b *Batch) {
	s.sendRelease()
	s.do(*b)
	s.dropStale(s.stale)
	s.stale = s.stale[:0]
}

// StepEvery is the longest time between two calls of Step that a caller plans with.
const StepEvery = 100 * time.Millisecond

// forgive extends the deadlines of the batches in flight if the last Step is longer ago than planned:
// the process did not run for that time, because it was paused or the machine is overloaded, and so it
// could not have seen an answer.
func (s *Scheduler) forgive(gap time.Duration) {
	if late := gap - StepEvery - StepEvery/4; late > 0 {
		for _, f := range s.flights {
			f.limit += late
		}
	}
}

func (s *Scheduler) do(c Command) { s.out = append(s.out, c) }

func (s *Scheduler) handle(e Event) {
	switch e := e.(type) {
	case Submit:
		s.submit(e)
	case Cancel:
		if q := s.byID[e.ID]; q != nil {
			s.remove(q)
		}
	case Accepted:
		if q := s.byID[e.ID]; q != nil && !q.accepted && e.Epoch == q.Epoch {
			q.accepted = true
			if !q.started {
				q.started = true
				s.do(Started{q.ID})
			}
		}
	case Picked:
		s.picked(e)
	case Scored:
		s.scored(e)
	case Refused:
		s.refused(e)
	case Computed:
		s.computed(e)
	case Pause:
		if q := s.byID[e.ID]; q != nil {
			q.paused = true
		}
	case Resume:
		if q := s.byID[e.ID]; q != nil {
			q.paused, q.spec.last = false, s.now
		}
	case Proceed:
		if q := s.byID[e.ID]; q != nil {
			q.blamed, q.Suspect = false, e.Suspect
		}
	case Lease:
		s.lease(e)
	case Spare:
		s.timing.spare = e.Available
	case Warm:
		s.timing.warm()
	case Reopened:
		s.reopened(e)
	case DraftReady:
		if q := s.byID[e.ID]; q != nil && len(q.spec.proposers) > 0 {
			q.spec.ready = e.Ready
			if e.Ready { // a better proposer is asked after the n-grams
				q.spec.proposers[0].restBelow = restBelowNext
			}
		}
	case Drafted:
		s.drafted(e)
	case Round:
		s.startRound(e)
	}
}

func (s *Scheduler) submit(e Submit) {
	need := s.pool.pagesFor(e.MaxLen)
	have := min(s.pool.total(), s.granted())
	if need > have {
		s.do(TurnAway{ID: e.ID, Reason: TooLong, Have: have, Need: need})
		return
	}
	tenant := s.tenants.get(e.Tenant, e.Weight)
	if e.Epoch <= 1 && s.full(e.Tenant) > 0 { // later epochs have been admitted before
		// Sequences that have arrived together with this one may run at once and leave the queue.
		s.findBest()
		s.admit()
		if t, full := s.Full(e.Tenant); full {
			t.ID = e.ID
			s.do(t)
			return
		}
	}
	s.order++
	q := &sequence{
		Submit: e, feed: session.New(e.Log), tenant: tenant, space: s.pool.spaceOf(e.Tenant, e.Namespace),
		order: s.order, arrived: s.now, asked: s.now, spec: newSpeculation(e, s.habit),
		private: e.Private || e.Draft || s.cfg.CacheIdle == 0, moved: e.Epoch > 1 && !e.Draft,
	}
	q.draft.picked = none
	if e.Draft {
		q.draft.end = len(e.Log) + 1
	}
	s.byID[e.ID] = q
	s.waiting = append(s.waiting, q)
	tenant.waiting++
	if !e.Suspect { // a suspect is added when its probation begins
		s.addToSampler(q)
	}
}

func (s *Scheduler) addToSampler(q *sequence) {
	q.added, q.asked = true, s.now
	s.do(Add{q.ID, q.Epoch})
}

// full returns why there is no place in the queue for a new sequence of a tenant, or 0. The tenant's own
// quota comes first: it holds whatever the others do.
func (s *Scheduler) full(tenant string) Reason {
	t := s.tenants.byName[tenant]
	switch {
	case tenant != "" && s.cfg.TenantQueue > 0 && t != nil && t.waiting >= s.cfg.TenantQueue:
		return QuotaUsed
	case len(s.waiting) >= s.cfg.Queue:
		return QueueFull
	}
	return 0
}

// Full returns how a new sequence of a tenant would be turned away now, and whether it would.
func (s *Scheduler) Full(tenant string) (TurnAway, bool) {
	t := TurnAway{
		Reason: s.full(tenant), Have: len(s.waiting), Need: s.cfg.Queue, RetryAfter: s.retryAfter(),
	}
	if t.Reason == QuotaUsed {
		t.Have, t.Need = s.tenants.byName[tenant].waiting, s.cfg.TenantQueue
	}
	return t, t.Reason > 0
}

// findBest finds the best priority of all sequences.
func (s *Scheduler) findBest() {
	s.best = 0
	for i, list := range [][]*sequence{s.running, s.waiting} {
		for j, q := range list {
			if i+j == 0 || q.Priority < s.best {
				s.best = q.Priority
			}
		}
	}
}

// retryAfter estimates when a place in the queue will be free: when as many sequences as wait have
// ended.
func (s *Scheduler) retryAfter() time.Duration {
	d := time.Duration(s.spacing * float64(len(s.waiting)) * float64(time.Second))
	return min(max(d, time.Second), time.Minute)
}

// remove ends a sequence here, at the sampler and on every stage.
func (s *Scheduler) remove(q *sequence) {
	delete(s.byID, q.ID)
	q.feed.End()
	s.abandon(q)
	if q.running {
		s.stop(q)
		s.running = slices.DeleteFunc(s.running, func(o *sequence) bool { return o == q })
	} else {
		s.waiting = slices.DeleteFunc(s.waiting, func(o *sequence) bool { return o == q })
		q.tenant.waiting--
	}
	s.do(Remove{q.ID})
	if s.ended > 0 {
		s.spacing += 0.1 * ((s.now - s.ended).Seconds() - s.spacing)
	}
	s.ended = s.now
}

// stop takes a sequence's pages and its place among the running ones.
func (s *Scheduler) stop(q *sequence) {
	s.index(q)
	s.stopReplay(q)
	for i := len(q.table) - 1; i >= 0; i-- { // children before parents
		s.pool.release(q.table[i], s.now)
	}
	s.dropStale(q.stale)
	s.dropStale(q.spare)
	q.stale, q.spare, q.following = nil, nil, false
	q.proven = max(q.proven, q.done)
	q.table, q.known, q.told, q.indexed, q.done, q.scoring = nil, 0, 0, 0, 0, 0
	q.running, q.yield = false, false
	if s.suspect == q {
		s.suspect = nil
	}
	q.tenant.running--
	s.released = append(s.released, q.ID)
}

// maxRetries bounds how often a sequence that was refused for lack of pages waits again.
const maxRetries = 16

// refused handles the refusal of a sequence by the sampler or a stage.
func (s *Scheduler) refused(e Refused) {
	q := s.byID[e.ID]
	if q == nil || e.Epoch != 0 && e.Epoch < q.Epoch || e.Step > 0 && e.Step <= q.since {
		return
	}
	if e.Retry && !q.Draft && q.retries < maxRetries {
		q.retries++
		// Another pipeline holds the pages that this one counted on. The sequence waits until there are
		// enough. Rows of it that are still in flight are refused as well or computed in vain, and what is
		// said about them no longer matters. Windows that were sent before may still give tokens. Those prove
		// nothing about the pages that the sequence gets next, so it goes on under the next epoch.
		before := slices.ContainsFunc(q.windows, func(w window) bool { return w.step < e.Step })
		s.abandon(q) // this preempts it, if it was to yield
		if q.running {
			s.preempt(q)
		}
		if before {
			s.addAgain(q)
		}
		return
	}
	s.do(End{q.ID, e.Data})
	s.remove(q)
}

// sendRelease tells the stages which sessions and pages are free.
func (s *Scheduler) sendRelease() {
	r := Release{Sessions: s.released, Pages: s.pool.freed}
	if s.pool.held() <= s.pool.limit {
		r.Leases, s.acks = s.acks, nil
	}
	if len(r.Sessions)+len(r.Pages)+len(r.Leases) > 0 {
		s.do(r)
		s.released, s.pool.freed = nil, nil
	}
}

// sweepEvery is how often unused pages and tenants are looked for.
const sweepEvery = time.Second

func (s *Scheduler) sweep() {
	if s.now-s.swept < sweepEvery {
		return
	}
	s.swept = s.now
	if s.cfg.CacheIdle > 0 && s.now > s.cfg.CacheIdle {
		s.pool.expire(s.tenants, s.now-s.cfg.CacheIdle)
	}
	s.tenants.prune()
}

// Lost returns the sequences of a pipeline that has died. Blamed ones had rows in flight that had never been
// computed before: one of them may be the cause. What is computed once more harms nobody, because the same
// rows did no harm before. Those that were being added to the sampler are blamed as well if its stream has
// broken, if it takes too long, or if nothing was in flight. Of the suspects only the one on probation is
// blamed.
func (s *Scheduler) Lost(sampler bool) (blamed []Blame, others []ID) {
	ends := map[ID]int{}
	for _, f := range s.flights {
		for _, e := range f.entries {
			if e.awaited || e.chunk > 0 {
				ends[e.id] = max(ends[e.id], e.end)
			}
		}
	}
	for _, list := range [][]*sequence{s.running, s.waiting} {
		for _, q := range list {
			adding := q.added && !q.accepted && (!q.Suspect || q == s.suspect)
			b := Blame{ID: q.ID, Proven: q.tried(), UpTo: ends[q.ID]}
			switch {
			case adding && (sampler || len(s.flights) == 0 || s.now-q.asked > acceptLimit):
				b.UpTo = 0
				blamed = append(blamed, b)
			case b.UpTo > b.Proven:
				blamed = append(blamed, b)
			default:
				others = append(others, q.ID)
			}
		}
	}
	return blamed, others
}

// Proven returns how many positions of a sequence's log stages have computed, here or before.
func (s *Scheduler) Proven(id ID) int {
	if q := s.byID[id]; q != nil {
		return q.tried()
	}
	return 0
}
