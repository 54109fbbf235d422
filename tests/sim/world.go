package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// draftDigest names the draft model.
const draftDigest = "sha256:draft"

// Scenario is all that a run depends on.
type Scenario struct {
	Seed uint64

	// Each element of Replicas is a chain of shards; it has one element for each: the layer after its
	// last. Draft is the number of shards that hold the draft model, and Spares are further shards, each of
	// which holds the same layers as that one of the first chain.
	Replicas [][]int
	Spares   []int
	Draft    int
	Routers  int
	Samplers int

	Pages, PageLen                int
	Depth                         int // of the pipelines; 0 for the default
	BatchRows, ChunkRows, Entries int
	Queue, TenantQueue            int
	CacheIdle                     time.Duration

	Hop                time.Duration // one-way time of a frame
	BatchTime, RowTime time.Duration // of a stage
	Jitter             float64       // probability that a frame takes much longer
	Loss, Repeat       float64       // probability that a frame is lost, or comes twice
	Refuse             float64       // probability that a stage refuses an entry for lack of memory
	Compile            float64       // probability that the sampler takes long to accept a session

	// Hedge is after how long a request without a token is submitted to another pipeline too; 0 for never.
	Hedge time.Duration

	Load   Load
	Faults []Fault
	// Fair says that the bound on the difference of the service of tenants is checked.
	Fair bool
	// Limit is the virtual time after which no request may still be running.
	Limit time.Duration
}

// Report says what happened in a run.
type Report struct {
	Ends                                                   map[string]int // requests by how they ended
	Tokens, Accepted, Preempted, Moved, Failed             int
	Hedged, HedgesWon                                      int
	Reopened, Rebuilt                                      int
	Innocent                                               int      // harmless requests that were set aside
	Blamed                                                 []string // why
	Cached, Shared, Steps, Events, Evicted, LateAcks, Lost int
	// Chained counts windows of draft tokens that were sent behind others, and Discarded those of which no
	// row counted, on the pipelines that are open at the end.
	Chained, Discarded int
	Virtual            time.Duration
	FirstToken         []time.Duration
	// FairChecks counts how often the service of tenants was compared, and Unfair is the largest
	// difference as a part of the bound.
	FairChecks int
	Unfair     float64
}

// world is the whole fleet.
type world struct {
	engine
	sc       Scenario
	nodes    []*node
	shards   []*shard
	samplers []*sampler
	routers  []*router
	streams  []*stream
	cuts     map[[2]int]bool
	onHeal   []func()

	owner    map[sched.ID]*request // nil for sessions that draft or probe
	roots    map[sched.ID]state
	poisoned map[sched.ID]int // by sequence: the position whose row ends the process that computes it
	requests []*request
	bySpan   map[plan.Span]*shard
	settling bool // all requests have ended, and no more faults occur
	left     int  // requests that have not ended
	ticket   uint64
	lost     int
	steps    int
	report   Report
}

// Run runs a scenario and returns the first violation, if any. With trace, it writes a transcript.
func Run(sc Scenario, trace io.Writer) (Report, error) {
	w := &world{sc: sc, cuts: map[[2]int]bool{}, owner: map[sched.ID]*request{}, roots: map[sched.ID]state{},
		poisoned: map[sched.ID]int{}, bySpan: map[plan.Span]*shard{}, report: Report{Ends: map[string]int{}}}
	w.rnd, w.trace = rand.New(rand.NewPCG(sc.Seed, 0x5eed)), trace
	w.build()
	w.load()
	w.planFaults()
	for w.left > 0 && w.err == nil {
		if w.now > sc.Limit {
			w.stuck()
			break
		}
		if !w.step() {
			w.violate("nothing is planned and %d requests have not ended", w.left)
		}
	}
	w.report.Virtual = w.now
	if w.err == nil {
		w.settle()
	}
	w.report.Steps, w.report.Events = w.steps, int(w.seq)
	return w.report, w.err
}

func (w *world) node(name string) *node {
	n := &node{w: w, name: name, index: len(w.nodes), slow: 1}
	w.nodes = append(w.nodes, n)
	return n
}

// build starts the fleet.
func (w *world) build() {
	add := func(name, digest string, lo, hi, layers int) {
		n := w.node(name)
		s := &shard{node: n, span: plan.Span{Shard: name, Addr: name, Digest: digest, Class: "sim/1", Lo: lo, Hi: hi,
			Layers: layers}}
		w.shards = append(w.shards, s)
		w.bySpan[s.span] = s
		w.startShard(s)
	}
	for i, cuts := range w.sc.Replicas {
		lo := 0
		for j, hi := range cuts {
			add(fmt.Sprintf("s%d.%d", i, j), "sha256:model", lo, hi, cuts[len(cuts)-1])
			lo = hi
		}
	}
	for i, j := range w.sc.Spares {
		cuts := w.sc.Replicas[0]
		lo := 0
		if j > 0 {
			lo = cuts[j-1]
		}
		add(fmt.Sprintf("spare%d", i), "sha256:model", lo, cuts[j], cuts[len(cuts)-1])
	}
	for i := range w.sc.Draft {
		add(fmt.Sprintf("draft%d", i), draftDigest, 0, 2, 2)
	}
	for i := range w.sc.Samplers {
		w.samplers = append(w.samplers, &sampler{node: w.node(fmt.Sprintf("sampler%d", i)),
			pipes: map[*pipe]map[sched.ID]*picker{}})
	}
	for i := range w.sc.Routers {
		r := &router{node: w.node(fmt.Sprintf("r%d", i))}
		w.routers = append(w.routers, r)
		w.startRouter(r)
	}
}

func (w *world) shardOf(span plan.Span) *shard { return w.bySpan[span] }

// probe runs a few tokens through a new pipeline, once its lease has room for them. Then it is listed.
func (w *world) probe(p *pipe) {
	if p.dead {
		return
	}
	if w.now-p.opened > probeLimit {
		p.fail("probe: no lease")
		return
	}
	if p.sched.ContextLength() < min(probePrompt+probeTokens, w.sc.Pages/w.sc.Routers*w.sc.PageLen) {
		p.router.after(10*time.Millisecond, func() { w.probe(p) })
		return
	}
	w.probeRound(p, 1)
	p.router.after(probeLimit, func() {
		if !p.dead && !p.listed {
			p.fail("probe: no answer")
		}
	})
}

// probeRound runs the first or the second sequence of a probe. The times of the first one do not count.
func (w *world) probeRound(p *pipe, round int) {
	id := sched.ID(fmt.Sprintf("probe-%s-%d", p.name, round))
	capacity := p.sched.ContextLength()
	prompt := min(probePrompt, max(1, capacity-probeTokens))
	q := &request{w: w, router: p.router, digest: p.chain.Digest(), namespace: p.name,
		maxTokens: min(probeTokens, capacity-prompt)}
	for i := range prompt {
		q.prompt = append(q.prompt, int32((i+1)%vocab))
	}
	w.roots[id], w.owner[id] = root(q.digest, "", q.namespace), q
	seq := &sequence{id: id, log: q.prompt}
	n := 0
	seq.reader = func() {
		for ; len(seq.out) > 0; seq.out = seq.out[1:] {
			switch r := seq.out[0]; {
			case r.lost != "":
				if !p.dead {
					p.fail("probe: " + r.lost)
				}
				return
			case r.err != "", r.struck != "":
				p.fail("probe: " + r.err + r.struck)
				return
			case r.token != nil:
				n++
			}
		}
		switch {
		case n < q.maxTokens:
		case round < probeRounds:
			p.checks.warm = p.checks.last
			p.tell(sched.Warm{})
			w.probeRound(p, round+1)
		default:
			p.router.list(p)
		}
	}
	p.submit(seq, sched.Submit{ID: id, Epoch: 1, Log: append([]int32(nil), q.prompt...), Namespace: q.namespace,
		MaxLen: len(q.prompt) + q.maxTokens, Private: true})
}
