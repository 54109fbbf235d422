package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

type schedID = sched.ID

const (
	moveLimit = 20 * time.Second
	maxMoves  = 8

	// As in services/router/refusal.go: a request is set aside when it has maxStrikes. A stream that broke under
	// it counts brokenFor, and a missed deadline lateFor. From brokenFor on it is a suspect.
	maxStrikes = 4
	brokenFor  = 2
	lateFor    = 1

	maxKills = maxStrikes / brokenFor // processes that a request may end, or make hang
	maxHangs = maxStrikes / lateFor
)

// hostility is what is wrong with a request, if anything.
type hostility int

const (
	harmless hostility = iota
	refusedBySampler
	killsStages // one of its rows ends the process that computes it
	hangsStages // one of its rows makes the process hang that computes it
)

// request is one generation, as the goroutine in services/router runs it.
type request struct {
	w      *world
	n      int
	router *router

	digest, tenant, namespace string
	prompt                    []int32
	maxTokens                 int
	seed                      uint64
	endEvery                  int
	samplerLimit              bool
	priority                  int
	weight                    float64
	score                     bool
	private                   bool
	speculate                 int
	drafts                    bool // a draft model drafts for it
	hostile                   hostility
	cancelAt                  time.Duration // 0 for never
	stopAfter                 int           // tokens after which the client has enough; 0 for all
	readEvery                 time.Duration // a slow reader

	arrived time.Duration
	first   time.Duration
	log     []int32
	next    state // of the log
	began   bool  // the client was told that it has started
	epoch   uint64
	moves   int
	strikes int
	upTo    int      // the end of the rows in flight at the last strike
	proven  int      // positions of the log that some pipeline has computed
	causes  []string // of its strikes
	deadly  int      // the position of the row that ends processes
	kills   int      // processes that have died of it
	hangs   int      // processes that have hung because of it
	had     int      // length of the log when it was submitted
	p       *pipe
	seq     *sequence
	second  *hedge // of seq, until one of the two has given a token
	hedged  bool
	waits   uint64 // names the wait for a pipeline
	reading bool
	end     string // why it ended; "" while it runs
	drafter *drafter
}

func (q *request) name() string { return fmt.Sprintf("q%d", q.n) }

// length is the largest number of positions that its log may have.
func (q *request) length() int { return len(q.prompt) + q.maxTokens }

// arrive starts a request.
func (q *request) arrive() {
	w := q.w
	q.arrived = w.now
	q.log = append([]int32(nil), q.prompt...)
	q.next = root(q.digest, q.tenant, q.namespace).extendAll(q.log)
	if q.cancelAt > 0 {
		q.router.after(q.cancelAt, func() { q.cancel("canceled") })
	}
	q.assign()
}

// assign looks for a pipeline, and waits for one if there is none.
func (q *request) assign() {
	if p := q.router.best(q.digest, q.length()); p != nil {
		q.submit(p)
		return
	}
	q.w.ticket++
	q.waits = q.w.ticket
	ticket := q.waits
	q.router.waiters = append(q.router.waiters, q)
	q.router.after(moveLimit, func() {
		if q.waits == ticket && q.end == "" {
			q.leave()
			q.finish("no pipeline")
		}
	})
}

// leave takes it out of the queue for pipelines.
func (q *request) leave() {
	q.waits = 0
	for i, o := range q.router.waiters {
		if o == q {
			q.router.waiters = append(q.router.waiters[:i:i], q.router.waiters[i+1:]...)
			return
		}
	}
}

// submit runs it on a pipeline.
func (q *request) submit(p *pipe) {
	w := q.w
	q.epoch++
	q.p, q.had = p, len(q.log)
	q.seq = q.attempt(p, "")
	q.planHedge()
	if q.drafts {
		q.drafter = w.startDrafter(q)
	}
}

// attempt submits its log to a pipeline.
func (q *request) attempt(p *pipe, mark string) *sequence {
	w := q.w
	id := sched.ID(fmt.Sprintf("%s.%d%s", q.name(), q.epoch, mark))
	seq := &sequence{id: id, log: append([]int32(nil), q.log...), emitted: len(q.log) - len(q.prompt),
		tenant: q.tenant, moved: q.epoch > 1, suspect: q.suspect()}
	seq.reader = func() { q.readFrom(seq) }
	w.owner[id], w.roots[id] = q, root(q.digest, q.tenant, q.namespace)
	if q.hostile == killsStages || q.hostile == hangsStages {
		w.poisoned[id] = q.deadly
	}
	p.assigned++
	p.submit(seq, sched.Submit{
		ID: id, Epoch: q.epoch, Tenant: q.tenant, Weight: q.weight, Namespace: q.namespace, Priority: q.priority,
		Log: append([]int32(nil), q.log...), MaxLen: q.length(), Score: q.score && !q.hasTokens(), Private: q.private,
		Suspect: q.suspect(), Proven: q.proven, Speculate: q.speculate,
	})
	return seq
}

// hasTokens reports whether it has had a token, so that the scores of its prompt are known.
func (q *request) hasTokens() bool { return len(q.log) > len(q.prompt) }

// read takes results, as fast as its client reads.
func (q *request) read() {
	if q.reading || q.end != "" {
		return
	}
	q.reading = true
	pause := q.readEvery
	if pause > 0 && q.seq.out[0].token == nil {
		pause = 0 // only tokens are sent to the client
	} else if pause > 0 {
		pause = q.w.between(0, 2*pause)
	}
	seq := q.seq
	q.router.after(pause, func() {
		q.reading = false
		for q.end == "" && q.seq == seq && len(seq.out) > 0 {
			r := seq.out[0]
			seq.out = seq.out[1:]
			q.take(r)
			seq.took(q.p)
			if q.readEvery > 0 && r.token != nil {
				break
			}
		}
		if q.end == "" && len(q.seq.out) > 0 {
			q.read()
		}
	})
}

// take handles one result.
func (q *request) take(r result) {
	w := q.w
	switch {
	case r.lost != "" && q.second != nil:
		q.lostFirst(r)
	case r.lost != "":
		q.lost(r)
	case r.struck != "" && q.second != nil:
		q.p.tell(sched.Cancel{ID: q.seq.id}) // the other one goes on alone
		q.lostFirst(r)
	case r.struck != "":
		if q.strike(r); q.strikes >= maxStrikes {
			q.p.tell(sched.Cancel{ID: q.seq.id})
			q.release()
			q.finish("set aside: " + r.struck)
			return
		}
		q.seq.suspect = q.suspect()
		q.p.tell(sched.Proceed{ID: q.seq.id, Suspect: q.suspect()})
	case r.err != "":
		if (r.err == "quota" || r.err == "queue full") && r.after <= 0 {
			w.violate("%s is turned away without a time to retry", q.name())
		}
		q.release()
		q.finish(r.err)
	case r.accepted:
		q.began = true
	case r.scored:
		q.takeScore(q.seq, r)
	default:
		q.takeToken(r)
	}
}

func (q *request) takeScore(seq *sequence, r result) {
	seq.scores++
	if seq.scores >= len(q.prompt) {
		q.w.violate("%s has %d scores for %d tokens", q.name(), seq.scores, len(q.prompt))
		return
	}
	before := root(q.digest, q.tenant, q.namespace).extendAll(q.prompt[:seq.scores])
	if want := logprobOf(before, q.prompt[seq.scores]); r.score != want {
		q.w.violate("%s has the score %g at position %d, want %g", q.name(), r.score, seq.scores, want)
	}
}

func (q *request) takeToken(r result) {
	w := q.w
	t := r.token
	if want := q.next.pick(q.log[len(q.log)-1], q.seed, q.endEvery); t.id != want {
		w.violate("%s has token %d at position %d, want %d", q.name(), t.id, len(q.log), want)
		return
	}
	if !q.hasTokens() {
		q.first = w.now
		if q.score && q.seq.scores != len(q.prompt)-1 {
			w.violate("%s has its first token and %d scores for %d tokens", q.name(), q.seq.scores, len(q.prompt))
		}
		q.won()
	}
	q.log = append(q.log, t.id)
	q.next = q.next.extend(t.id)
	q.moves, q.strikes, q.causes = 0, 0, nil
	n := len(q.log) - len(q.prompt)
	ends := t.id == endToken && q.endEvery > 0
	switch {
	case n > q.maxTokens:
		w.violate("%s has %d tokens, asked for %d", q.name(), n, q.maxTokens)
	case ends != (t.finish == "stop"):
		w.violate("%s has token %d and the finish reason %q", q.name(), t.id, t.finish)
	case ends:
		q.release()
		q.finish("stop")
	case n == q.maxTokens:
		if t.finish != "length" && !r.length {
			w.violate("%s has all %d tokens and no finish reason", q.name(), n)
		}
		q.release()
		q.finish("length")
	case t.finish != "" || r.length:
		w.violate("%s ends after %d of %d tokens", q.name(), n, q.maxTokens)
	case q.stopAfter > 0 && n >= q.stopAfter:
		q.cancel("stop string")
	}
}

// lost moves it to another pipeline.
func (q *request) lost(r result) {
	q.release()
	q.proven = max(q.proven, r.proven)
	if r.blamed {
		if q.strike(r); q.strikes >= maxStrikes {
			q.finish("set aside: " + r.lost)
			return
		}
	}
	if q.moves++; q.moves > maxMoves {
		q.finish("moved too often: " + r.lost)
		return
	}
	q.w.report.Moved++
	q.assign()
}

// strike counts that it may have been the cause of a loss. If what was in flight at the last one has done no
// harm since, the count starts again.
func (q *request) strike(r result) {
	b, known := r.blame, q.proven
	if q.hasTokens() {
		known = max(known, len(q.log)-1)
	}
	if b.UpTo > 0 && b.UpTo <= known {
		if q.hedged { // the other attempt has computed them, of which this pipeline did not know
			return
		}
		q.w.violate("%s is blamed for its rows up to %d, and %d were computed before", q.name(), b.UpTo, known)
	}
	if q.upTo > 0 && b.Proven >= q.upTo {
		q.strikes = 0
		q.causes = nil
	}
	if q.strikes += brokenFor; r.late {
		q.strikes += lateFor - brokenFor
	}
	q.upTo = b.UpTo
	q.causes = append(q.causes,
		fmt.Sprintf("at %v, rows %d to %d in flight: %s", q.w.now, b.Proven, b.UpTo, r.lost+r.struck))
}

// suspect reports whether it is computed apart from others.
func (q *request) suspect() bool { return q.strikes >= brokenFor }

// cancel ends it because its client does not want more.
func (q *request) cancel(why string) {
	if q.end != "" {
		return
	}
	if q.waits != 0 {
		q.leave()
	} else if q.p != nil {
		q.p.tell(sched.Cancel{ID: q.seq.id})
		q.release()
	}
	q.finish(why)
}

func (q *request) release() {
	q.dropSecond()
	q.p.assigned--
	if q.drafter != nil {
		q.drafter.stop()
		q.drafter = nil
	}
}

func (q *request) finish(why string) {
	if q.end != "" {
		return
	}
	q.end = why
	q.w.log("end %s: %s", q.name(), why)
	q.w.left--
	kind, _, _ := strings.Cut(why, ":")
	q.w.report.Ends[kind]++
	if kind == "set aside" && q.hostile == harmless {
		q.w.report.Innocent++
		q.w.report.Blamed = append(q.w.report.Blamed, fmt.Sprintf("%s was set aside: %s", q.name(),
			strings.Join(q.causes, "; ")))
	}
	q.w.ended(q)
}
