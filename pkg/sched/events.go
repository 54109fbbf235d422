package sched

import "time"

// ID names a sequence on a pipeline. It is the session's name on the wire.
type ID string

// Candidates says how many of a row's best candidates decide the next token. *sample.Picker
// implements it.
type Candidates interface {
	// Need returns the number of candidates to ask for; 0 means the whole row of logits.
	Need(vocab, ids int) int
	// Decides reports whether that number always decides the token.
	Decides(vocab, ids int) bool
}

// Event is something that has happened: one of the types below.
type Event interface{ event() }

// Submit adds a sequence to the waiting queue.
type Submit struct {
	ID ID
	// Epoch grows each time the sequence moves. A sequence that comes from another pipeline (more than 1)
	// is not turned away because of the queue: its client has been promised an answer.
	Epoch uint64
	// Tenant is who is charged for the service; an empty name is a tenant as well. Weight is the
	// tenant's share of the service; 0 means 1.
	Tenant string
	Weight float64
	// Namespace is what the keys and values depend on besides the tokens, such as an adapter.
	Namespace string
	Priority  int     // lower is earlier
	Log       []int32 // the prompt and the tokens emitted so far; at least one
	MaxLen    int     // length of the log at which the generation ends
	// Candidates is nil for a sequence whose rows are sent whole.
	Candidates Candidates
	Score      bool // report the log-probabilities of the prompt's tokens
	Suspect    bool // it was blamed for the loss of a stage, and has had no token since
	// Proven is how many positions of the log all stages of some pipeline have computed before. A loss while
	// only these are computed again is not blamed on the sequence.
	Proven  int
	Private bool // neither uses the prefix cache nor fills it
	// Speculate is the maximum number of draft tokens after each token; 0 for none.
	Speculate int
	// Draft marks a session that drafts for a sequence of another pipeline. It runs in rounds (Round).
	Draft bool
}

// Cancel ends a sequence.
type Cancel struct{ ID ID }

// Accepted says that the sampler has accepted a sequence under an epoch. The answer to a former epoch does
// not count: the sampler may not have heard of the latest one yet.
type Accepted struct {
	ID    ID
	Epoch uint64
}

// Picked brings the token that the sampler has picked for a position.
type Picked struct {
	ID       ID
	Epoch    uint64
	Position int
	Token    int32
	Logprob  float64
	Finished bool // the sampler ends the generation with it
	Data     any  // passed on to Emit
}

// Scored brings the log-probability of the prompt's token at a position.
type Scored struct {
	ID       ID
	Epoch    uint64
	Position int
	Data     any // passed on to Score
}

// Refused says that the sampler or a stage cannot go on with a sequence. Retry says that only the
// sequence's pages were missing, so that it can go on later.
type Refused struct {
	ID    ID
	Epoch uint64 // 0 if it is not known
	Step  uint64 // the batch whose entry a stage has refused; 0 for the sampler
	Retry bool
	Data  any // passed on to End
}

// Computed says that the last stage has computed a batch in which some entry has no awaited rows, and all
// batches before it. What was refused of them was reported before.
type Computed struct{ Step uint64 }

// Pause and Resume say that a sequence's reader has no room for further tokens, or has room again.
type (
	Pause  struct{ ID ID }
	Resume struct{ ID ID }
)

// Proceed answers Blame: the sequence goes on, as a suspect or not. Otherwise it is canceled.
type Proceed struct {
	ID      ID
	Suspect bool
}

// Lease says how many KV pages a stage lets the pipeline hold. Lo is the stage's first layer.
type Lease struct{ Lo, Pages int }

// Spare says whether another pipeline could take over if this one died.
type Spare struct{ Available bool }

// Warm says that all stages have computed for the first time. The times of their first batches do not count for
// deadlines, since they are longer than those of later ones.
type Warm struct{}

// Reopened says that the chain had broken and is open again. The stages have kept the pages that were
// mapped. What was in flight is lost, and so are all block tables and what was sent to the stages last.
type Reopened struct {
	// Sampler says that the sampler's stream is a new one too, so that the sampler knows no sequence.
	Sampler bool
	// Leases are those of all stages.
	Leases []Lease
	// ReplayUntil is 0 if all stages have kept their pages. Otherwise one of them has nothing, because
	// another shard has taken its place, and this is the layer at which it ends; if there are several, it
	// is the one at which the last of them ends.
	ReplayUntil int
}

// DraftReady says whether a draft model can be asked for draft tokens for a sequence.
type DraftReady struct {
	ID    ID
	Ready bool
}

// Drafted answers Propose. Unlikely says that the last of the ids was improbable.
type Drafted struct {
	ID       ID
	Round    uint64
	IDs      []int32
	Unlikely bool
}

// Round makes a draft session generate after another log, until the log has the length End or a
// token has a log-probability below MinLogprob.
type Round struct {
	ID         ID
	Log        []int32
	End        int
	MinLogprob float64
	Round      uint64
}

func (Submit) event()     {}
func (Cancel) event()     {}
func (Accepted) event()   {}
func (Picked) event()     {}
func (Scored) event()     {}
func (Refused) event()    {}
func (Computed) event()   {}
func (Pause) event()      {}
func (Resume) event()     {}
func (Proceed) event()    {}
func (Lease) event()      {}
func (Spare) event()      {}
func (Warm) event()       {}
func (Reopened) event()   {}
func (DraftReady) event() {}
func (Drafted) event()    {}
func (Round) event()      {}

// Command is something to do: one of the types below.
type Command interface{ command() }

// Add adds a sequence to the sampler.
type Add struct {
	ID    ID
	Epoch uint64
}

// Remove removes a sequence from the sampler.
type Remove struct{ ID ID }

// Release tells the stages what the pipeline no longer needs. It comes before any batch that uses
// the pages again.
type Release struct {
	Sessions []ID
	Pages    []uint32
	Leases   []Lease // smaller leases that the pipeline keeps from now on
}

// Batch is work for the first stage.
type Batch struct {
	Step     uint64
	Deadline time.Duration // from now; nobody waits longer
	Entries  []Entry
	Tokens   []int32 // of all entries' rows
	// ReplayUntil is the layer at which the batch ends if it is a replay, and 0 otherwise.
	ReplayUntil int
}

// Entry is a run of consecutive positions of a sequence.
type Entry struct {
	ID         ID
	Epoch      uint64
	Position   int
	Rows       int
	Logits     int     // of how many of the last rows the logits are needed
	Candidates int     // how many of each such row; 0 means all
	Drafts     []int32 // draft tokens among the rows
	Drafter    string  // what proposed them
	Targets    []int32 // prompt tokens whose log-probabilities are needed
	PageFrom   int     // the block table's first index that has changed
	Pages      []uint32
}

// Admit says that a sequence runs. Cached is the number of its positions that were found in the
// prefix cache, the first time that it is admitted.
type Admit struct {
	ID     ID
	Cached int
	Again  bool // it was preempted before
}

// Share says that a sequence got pages that were computed for another one while it ran. Cached is the number
// of its positions that were found in the prefix cache until now.
type Share struct {
	ID     ID
	Cached int
}

// Started says that the sampler has accepted a sequence.
type Started struct{ ID ID }

// Emit passes on a token. Length says that it ends the generation because the log has its maximum
// length.
type Emit struct {
	ID      ID
	Data    any
	Length  bool
	Drafter string // what proposed it, if it is an accepted draft token
	Round   uint64 // of a draft session
}

// Score passes on the log-probability of a prompt's token.
type Score struct {
	ID   ID
	Data any
}

// End ends a sequence that was refused by a service.
type End struct {
	ID   ID
	Data any
}

// Reason is why a submitted sequence is turned away.
type Reason int

const (
	// QueueFull means that too many sequences wait.
	QueueFull Reason = iota + 1
	// QuotaUsed means that too many sequences of the same tenant wait.
	QuotaUsed
	// TooLong means that the sequence can never have enough KV pages on this pipeline.
	TooLong
)

// TurnAway ends a sequence that cannot be served here.
type TurnAway struct {
	ID         ID
	Reason     Reason
	Have, Need int // sequences that wait and how many may; for TooLong pages
	RetryAfter time.Duration
	Proven     int // positions of its log that stages have computed, here or before
}

// Preempt says that a sequence has given its pages back and waits again.
type Preempt struct{ ID ID }

// Blame says that rows of a sequence that nobody had computed before were in flight when a stage was lost, so
// that it may be the cause. It waits for Proceed or Cancel.
type Blame struct {
	ID ID
	// Proven positions had been computed before. UpTo is the end of the rows in flight: once they are computed
	// elsewhere, they were not the cause. It is 0 if there were none, and the sampler had not accepted the
	// sequence.
	Proven, UpTo int
}

// Propose asks for at most N draft tokens after a sequence's log, within about Limit. It is answered
// by Drafted. Any says that improbable tokens are welcome too.
type Propose struct {
	ID    ID
	Round uint64
	Log   []int32 // valid until the next Step
	N     int
	Any   bool
	Limit time.Duration
}

// Fail says that the pipeline makes no progress: something has missed its deadline.
type Fail struct {
	Step  uint64 // the batch; 0 for a sequence that the sampler does not answer
	ID    ID
	Late  time.Duration // since it was sent
	Limit time.Duration // its deadline
}

func (Add) command()      {}
func (Remove) command()   {}
func (Release) command()  {}
func (Batch) command()    {}
func (Admit) command()    {}
func (Share) command()    {}
func (Started) command()  {}
func (Emit) command()     {}
func (Score) command()    {}
func (End) command()      {}
func (TurnAway) command() {}
func (Preempt) command()  {}
func (Blame) command()    {}
func (Propose) command()  {}
func (Fail) command()     {}
