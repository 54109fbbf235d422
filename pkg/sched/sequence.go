package sched

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/session"
)

// sequence is what the scheduler knows about a sequence.
type sequence struct {
	Submit
	feed    *session.Session
	tenant  *tenant
	space   int32
	order   uint64        // of arrival
	arrived time.Duration // at the queue
	asked   time.Duration // when it was last added to the sampler

	running  bool
	added    bool // to the sampler
	accepted bool // by the sampler
	started  bool // it was accepted once
	paused   bool // its reader has no room
	moved    bool // it comes from another pipeline, and its client waits for the next token
	fresh    bool // it has all pages of its log, and has had no token since it was admitted
	yield    bool // it is preempted as soon as it is not in flight
	blamed   bool // for a lost stage, and whoever waits for its tokens has not said that it goes on
	// following says that it was admitted without pages for what another sequence was about to compute.
	following bool

	step    uint64   // of its last entry
	windows []window // its entries in flight whose results are awaited, in the order in which they were sent
	strays  bool     // rows that the sampler will drop may still be on their way to it
	table   []uint32 // its block table
	known   int      // how many pages of the table the stages know as they are
	told    int      // how many pages they know, perhaps former ones
	indexed int      // how many pages of the table are indexed
	private bool     // no further page of it can be indexed
	stale   []uint32 // pages that the stages' table names and this one no longer does
	spare   []uint32 // pages that are its next ones, taken while it follows another sequence
	hashes  []uint64 // of the log's full pages, as far as they were needed
	cached  int      // positions that were found in the prefix cache before it was preempted
	done    int      // positions that all stages have computed
	proven  int      // the most positions that all stages have ever computed
	scoring int      // position of the last score that is still to come; 0 for none
	scores  int      // scores that have come
	scored  int      // the same when the entry was sent whose scores are to come
	charged int      // positions that its tenant was charged for
	preempt int      // how often it was preempted
	retries int      // how often it was refused for lack of pages
	since   uint64   // the last step before it was last preempted

	replay replay
	spec   speculation
	draft  draftState
}

// ageStep is how long a sequence waits until its priority is one better.
const ageStep = 10 * time.Second

// level is a sequence's priority now. Waiting improves it, up to the best priority that any sequence
// has, so that nobody is passed over for ever. Sequences of one priority are not compared by age: their
// tenants are compared first.
func (s *Scheduler) level(q *sequence) int {
	return max(q.Priority-int((s.now-q.arrived)/ageStep), min(q.Priority, s.best))
}

// ready reports whether a sequence has rows to send and its reader has room for their results.
func (q *sequence) ready() bool {
	return q.running && (q.accepted || q.harmless() > 0) && q.scoring == 0 && !q.paused && !q.yield && !q.blamed &&
		!q.replaying() && q.feed.Ready() && (!q.Draft || !q.draft.paused)
}

// harmless returns how many of a suspect's next rows were computed before, here or elsewhere. They are computed
// beside others, since the same rows do the same again, and before the sampler knows the suspect, since none of
// them gives a token.
func (q *sequence) harmless() int {
	if !q.Suspect || q.toScore() {
		return 0
	}
	return max(0, min(q.tried(), q.feed.Len()-1)-q.feed.Sent())
}

// toScore reports whether the prompt has tokens whose log-probabilities are still to come.
func (q *sequence) toScore() bool { return q.Score && q.scores < len(q.Log)-1 }

// flying reports whether an entry of the sequence is in flight whose result is awaited.
func (s *Scheduler) flying(q *sequence) bool { return len(q.windows) > 0 }

// tried returns how many positions of the log stages have computed before without harm, here or elsewhere.
func (q *sequence) tried() int { return max(q.Proven, q.proven, q.done) }

// before reports whether a is more urgent than b.
func (s *Scheduler) before(a, b *sequence) bool {
	if x, y := s.level(a), s.level(b); x != y {
		return x < y
	}
	if a.tenant != b.tenant && a.tenant.service != b.tenant.service {
		return a.tenant.service < b.tenant.service
	}
	return a.order < b.order
}

// sooner reports whether a's prompt is computed before b's. Of those that are equally urgent, one that comes
// from another pipeline is first: its client has read a part of the answer and waits for the rest. It does not
// take the pages of others for that (before).
func (s *Scheduler) sooner(a, b *sequence) bool {
	if a.moved != b.moved && s.level(a) == s.level(b) && a.tenant.service == b.tenant.service {
		return a.moved
	}
	return s.before(a, b)
}

// entry is a member of a batch in flight.
type entry struct {
	id      ID
	run     int  // how often the sequence had been preempted
	end     int  // the position after its last row
	chunk   int  // for rows without results: positions up to here are computed when the batch is done
	awaited bool // a token or a score is still to come
	replay  int  // of a replay: the new stage has the positions up to here when the batch is done
}

// flight is a batch that the chain is computing.
type flight struct {
	step    uint64
	sent    time.Duration
	limit   time.Duration
	rows    int
	prompts int // rows beyond the first of each entry
	decodes int // entries of sequences that decode
	ahead   int // the same of the batches that the stages may have to compute before it
	drafts  int
	decode  bool // it has no rows of prompts
	behind  bool // some batch that was in flight when it was sent has rows of prompts
	replay  bool // it is a replay
	alone   bool // it belongs to a suspect, and nothing else may be in flight
	chained bool // it holds a window behind others of its sequence
	mixed   bool // such a window shares the stages with it, so that its time is not that of a step
	void    bool // the sampler drops its rows
	// abandoned says that a sequence has ended whose result was awaited, so that the batch may end before it is
	// computed.
	abandoned bool
	entries   []entry
	awaited   int  // entries with a result that is still to come
	back      int  // entries whose result has come
	proven    bool // its chunks of prompts are known to be computed
}
