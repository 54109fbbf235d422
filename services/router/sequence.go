package router

import (
	"sync/atomic"
	"time"

	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// outLen is the number of results that may wait for a request's goroutine.
const outLen = 64

// sequence is a session on a pipeline, as the request's goroutine submits it.
type sequence struct {
	id       []byte
	epoch    uint64
	tenant   string
	priority int
	rules    *samplerv1.Rules
	picker   *sample.Picker
	tokens   [][]byte // the vocabulary, if the rules have a grammar
	maxLen   int      // length of the log at which the generation ends
	score    bool     // the request asks for the log-probabilities of the prompt's tokens
	suspect  bool     // blamed for the loss of a pipeline, and no token since
	proven   int      // positions of the log that were computed before
	private  bool     // uses no prefix cache
	drafts   int      // the maximum number of draft tokens after each token
	drafter  *drafter // proposes draft tokens; nil for none
	draft    bool     // a session that drafts
	adapter  *servedAdapter
	trace    string // traceparent of the request's span; empty if it is not traced

	out    chan result // its results; the last has lost or err set, or a finish reason
	paused atomic.Bool // the scheduler knows that out has no room

	// Used only by the pipeline's goroutine once it is submitted.
	log      []int32   // what the pipeline gets: prompt and emitted tokens, without those that were dropped
	whole    []int32   // prompt and emitted tokens with those that were dropped; nil if none were
	emitted  int       // how many tokens of the log were emitted
	logprobs []float32 // log-probabilities of the emitted tokens
	admitted time.Time
	cached   int
	scores   []*samplerv1.Score // of the prompt's tokens, so far
	traced   bool               // the stages know the trace
}

// newSequence gives a sequence a name and room for its results.
func newSequence(seq *sequence) *sequence {
	seq.id = randomID()
	// The scheduler learns that half of the room is used up before it forms the next batch but one, and
	// two entries of a sequence may give a token for each of their rows, and so may all chained windows.
	// Besides tokens there are its acceptance, its end, and stages that were lost.
	seq.out = make(chan result, outLen+2*(seq.drafts+1)+3+maxFruitless+min(seq.drafts, 1)*sched.MaxAhead)
	return seq
}

// dropped returns how many tokens a context policy has dropped from the log.
func (seq *sequence) dropped() int { return max(0, len(seq.whole)-len(seq.log)) }

// name is the sequence's name for the scheduler.
func (seq *sequence) name() sched.ID { return sched.ID(seq.id) }

// result is what the pipeline reports to a sequence: that it is accepted, a token, or its end.
type result struct {
	accepted bool // by the sampler
	token    *samplerv1.Token
	scores   []*samplerv1.Score // of the prompt's tokens, with the first token
	admitted time.Time          // with a token: when it first had KV pages
	cached   int                // with a token: positions of the prompt that came from the prefix cache
	round    uint64             // the round of a draft session
	lost     error              // why the sequence has to move and be replayed from its token log
	blamed   *sched.Blame       // with lost and struck: it may have been the cause
	proven   int                // with lost: positions of the log that were computed
	slid     bool               // the log fills the context and the window slides; only follow sets it
	struck   error              // a stage was lost, perhaps because of it; the session goes on
	err      error              // the session cannot go on
}

// pause notes that the reader is to say when there is room again, and returns what the scheduler has to know.
func (seq *sequence) pause() []sched.Event {
	seq.paused.Store(true)
	out := []sched.Event{sched.Pause{ID: seq.name()}}
	// The reader may have taken everything before it could see the note. It takes nothing more then, and says nothing.
	if len(seq.out) <= outLen/4 && seq.paused.Swap(false) {
		out = append(out, sched.Resume{ID: seq.name()})
	}
	return out
}

// took is called by a sequence's reader after it has taken a result.
func (seq *sequence) took(p *pipeline) {
	if seq.paused.Load() && len(seq.out) <= outLen/4 && seq.paused.Swap(false) {
		_ = p.tell(event{Event: sched.Resume{ID: seq.name()}}) // a lost pipeline has nothing to resume
	}
}
