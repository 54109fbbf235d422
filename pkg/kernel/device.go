package kernel

import "github.com/lamina-mesh/lamina/pkg/tensor"

// Accelerator is implemented by sets on a device with memory of its own, such as a GPU.
type Accelerator[F tensor.Float] interface {
	// Device describes the device. It waits for a short time only, also if the device is busy or lost, and then
	// returns what was known before.
	Device() Device
	// Lost returns a channel that is closed when the device does not compute any more: it hangs, or its driver has
	// reported a failure after which nothing succeeds. Operations panic then. Only a new process can use it again.
	Lost() <-chan struct{}
	// LostErr returns why the device is lost, or nil.
	LostErr() error
	// Reserve sets bytes aside, which are loaded next or later, or returns an error with the bytes that are wanted and
	// free. Allocations do not need it. Unreserve gives bytes back: those of one Reserve, of several or of a part.
	Reserve(bytes int64) error
	Unreserve(bytes int64)
	// PackedBytes returns the bytes that Pack of a matrix allocates, and PackingBytes those that it takes in addition
	// until it is done.
	PackedBytes(w *Matrix[F]) int64
	PackingBytes(w *Matrix[F]) int64
	// PassBytes bounds the bytes that the set allocates for passes beside their buffers.
	PassBytes(p Passes[F]) int64
}

// Device is what a set says of its device. Bytes are of the device's memory.
type Device struct {
	Name         string // as --device spells it, such as "cuda:0"
	Model        string // such as "NVIDIA H200"
	Architecture string // such as "sm_90"
	Total, Free  int64  // of the whole device, with what other processes have allocated
	Limit        int64  // that this process may allocate
	Reserved     int64
	Weights      int64 // allocated: matrices, norms, biases, adapters
	KV           int64 // allocated: pages of KV caches
	Workspace    int64 // allocated: activations and all else
	// Utilisation is the share of time in which a kernel ran, 0 to 1. It and the others are negative if the device
	// does not report them.
	Utilisation, Celsius, Watts float64
}

// Sharer is implemented by sets of devices whose memory other processes on the same host can read.
type Sharer[F tensor.Float] interface {
	// Export returns n zeros that other processes can read. It reserves their memory.
	Export(n int) (Exported[F], error)
	// Import opens memory that another process has exported, of at least n elements. An error leaves the set as it
	// was: the handle may be of another host or container, or of this process.
	Import(handle []byte, n int) (Imported[F], error)
}

// Exported is memory that other processes can read.
type Exported[F tensor.Float] interface {
	// Handle is what another process opens the memory with. Whoever has it can read it.
	Handle() []byte
	// Bytes is what is reserved.
	Bytes() int64
	// Put copies x to the elements from at on. It returns when they are there.
	Put(at int, x Buffer[F])
	// Close gives the memory back. No other process may have it open.
	Close()
}

// Imported is memory of another process.
type Imported[F tensor.Float] interface {
	// Get copies the elements from at on to x, behind the operations that were called before. Wait returns when all
	// copies that were called before it are done, so that their elements may change.
	Get(x Buffer[F], at int)
	Wait()
	// Close waits for the copies, and closes the memory for this process.
	Close() error
}

// SpanStorer is implemented by sets for which one call for the rows of a batch is faster than one for each span.
type SpanStorer[F tensor.Float] interface {
	// StoreSpans writes the rows k, v[ΣRows,K*D] of spans to their caches, as Store does for each of them.
	StoreSpans(spans []Span[F], k, v Buffer[F], heads, d int)
}

// Stepper is implemented by sets that launch a whole step faster than its operations one after another.
type Stepper[F tensor.Float] interface {
	// Steps returns what the set keeps for the steps of one stage, and frees when it is unreachable.
	Steps() Steps[F]
}

// Steps runs the steps of one stage.
type Steps[F tensor.Float] interface {
	// Run runs a step. It calls body with a set that the step's operations have to be given to, all of them and no
	// others, or plays what body has done in a step of the same kind; played says so. Body must not change anything but
	// buffers: it may be called more than once, all but the last time without effect, and also if the step is played.
	Run(step Step[F], body func(set Set[F])) (played bool)
}

// Step is a pass over a batch. Two steps of one kind differ in nothing but the content of buffers, spans and positions,
// and in the products of LowRanks if Adapters differs: all but the number of calls of LowRanks.
type Step[F tensor.Float] struct {
	Kind  any // comparable; says which buffers the operations use, too
	Spans []Span[F]
	Pos   []int32 // of the rows
	// Adapters is comparable and says which adapters the rows have. Equal ones are for the same factors in the same
	// memory.
	Adapters any
}

// Ranker is implemented by sets that look for the best of logits where they are, so that whole rows need not be copied
// to the host.
type Ranker[F tensor.Float] interface {
	// Rank ranks rows of logits[T,V]; k is 1 to MaxRank and at most V. What it returns of a row depends on that row
	// alone, and the first of k candidates do not depend on k.
	Rank(logits Buffer[F], t, v, k int) Ranking[F]
}

// MaxRank bounds the candidates of a row that Rank looks for.
const MaxRank = 256

// Ranking has the best candidates of T rows, in host memory.
type Ranking[F tensor.Float] struct {
	LSE    []float64 // [T]: log Σ exp of all logits
	IDs    []int32   // [T,K], the largest logit first and of equal ones the lowest id
	Logits []F       // [T,K]
}
