package plan

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Host is a machine, or a process on one, that can hold layers.
type Host struct {
	ID string
	// Memory is the number of bytes for weights and KV cache. A plan leaves Request.Headroom of it free.
	Memory int64
	// LayerMS is the time that one decode row takes through one layer, in milliseconds.
	LayerMS float64
	// LayerBytes is the size of the layer that LayerMS was measured on. The time of another layer is
	// proportional to the bytes that it reads. 0 means an average layer of the model that is placed.
	LayerBytes int64
	// RowMS is the time that a row takes through one layer as part of a chunk or of a large batch. It is
	// less than LayerMS, because the rows share the reading of weights. 0 means a quarter of LayerMS.
	RowMS float64
	// QuotaShare is the share of each period of QuotaMS in which the host may compute, and LayerMS and RowMS are the
	// times of one that computes all the time. 0 means that it may compute always.
	QuotaShare, QuotaMS float64
	// HopMS is the time that a frame takes to this host from the stage before, in one direction.
	HopMS float64
	// Mbps is the bandwidth of the link to this host, in megabits per second; 0 for no limit.
	Mbps  float64
	Zone  string
	Class string // kernel class
}

// Model is what a plan needs to know of a model.
type Model struct {
	Name   string
	Digest string
	// Layers holds the bytes of each layer's weights.
	Layers []int64
	// Read holds the bytes that one row reads of each layer, which are fewer with experts; nil means Layers.
	Read []int64
	// Embedding and Head are the bytes that the first and the last stage hold in addition.
	Embedding, Head int64
	// Tied says that the head is the embedding. A stage that is first and last holds it once.
	Tied bool
	// KVBytes is the size of the keys and values of one position in one layer.
	KVBytes int64
	// HiddenBytes is the size of a row of the hidden state between two stages.
	HiddenBytes int64
	// KVPositions is the least number of positions in the KV cache of a pipeline, and MaxKVPositions the
	// number that it gets if there is memory. 0 means 2048 and 16384.
	KVPositions, MaxKVPositions int
	// Replicas is the number of pipelines. 0 means 1, but as many as the hosts allow if the goal is throughput.
	Replicas int

	Pin    []string // hosts that must hold layers of the model
	Avoid  []string // hosts that must not
	Zone   string   // the zone of all hosts; empty for any
	AtMost int      // the largest number of stages of a pipeline; 0 for any

	// Yield says that the pipelines of other models are not moved to make room for this one. Replicas that they have
	// beyond one may go.
	Yield bool
}

// Goal says which plan is the best one.
type Goal int

// The goals.
const (
	Latency     Goal = iota + 1 // the shortest time for one token
	Throughput                  // the most tokens per second over many streams
	FewestHosts                 // the fewest hosts, and among equal numbers the shortest time
)

// String returns the goal's name.
func (g Goal) String() string {
	switch g {
	case Latency:
		return "latency"
	case Throughput:
		return "throughput"
	case FewestHosts:
		return "fewest-hosts"
	}
	return fmt.Sprintf("goal(%d)", int(g))
}

// ParseGoal returns the goal of a name.
func ParseGoal(name string) (Goal, error) {
	for _, g := range []Goal{Latency, Throughput, FewestHosts} {
		if g.String() == name {
			return g, nil
		}
	}
	return 0, fault.Field("goal", "want latency, throughput or fewest-hosts, got %q", name)
}

// Request is the input of Place.
type Request struct {
	Hosts  []Host
	Models []Model
	Goal   Goal
	// Mix allows hosts of several kernel classes in one pipeline, whose results are then not those of any
	// one class.
	Mix bool
	// Headroom is the share of each host's memory that stays free; 0 means 0.2.
	Headroom float64
	// RouterMS is the time from the last stage over the sampler to the router.
	RouterMS float64
	// FirstMS is what a request takes besides its tokens until its first batch is sent: its prompt is tokenized, and
	// it is admitted.
	FirstMS float64
	// Prompt is the number of prompt tokens for which the time to the first token is predicted; 0 means 128.
	Prompt int
	// Streams is the number of streams for which the total rate is predicted; 0 means 8.
	Streams int

	approximate bool // in tests: search as if there were too many hosts for the exact search
}

// Defaults of a Request and a Model.
const (
	defaultHeadroom = 0.2
	defaultPrompt   = 128
	defaultStreams  = 8
	defaultKV       = 2048
	defaultMaxKV    = 16384
	rowShare        = 0.25 // of RowMS to LayerMS
	chunkRows       = 256  // rows of a chunk of prefill, as in services/router
	batchRows       = 8    // rows of a batch, for the rate of a pipeline under load
	kvPage          = 64   // a KV share is a multiple of it
)

// Limits of a Request. They keep sums within the range of an int64.
const (
	maxBytes  = 1 << 50
	maxMS     = 1e9
	maxLayers = 4096
	maxHosts  = 100_000
)

// Plan says which host holds which layers.
type Plan struct {
	Pipelines []Pipeline
	LeftOut   []LeftOut
	// Uncovered lists the models without a pipeline, with the reason.
	Uncovered []LeftOut
}

// Pipeline is a chain of stages that covers a model.
type Pipeline struct {
	Model  string // name
	Digest string
	Class  string // kernel class; empty if it is mixed
	Stages []Stage
	// KVPositions is the number of positions of the KV cache of every stage.
	KVPositions int
	Predicted   Prediction
}

// Stage is a host's part in a pipeline.
type Stage struct {
	Host   string
	Lo, Hi int
	Memory int64   // bytes of weights and KV cache
	MS     float64 // predicted time of one row, without the hop
	HopMS  float64 // predicted time of the hop to this stage
}

// Prediction is what a pipeline will give.
type Prediction struct {
	TokenMS       float64 // time of one token of a single stream
	TokensPerS    float64 // of a single stream
	TTFTMS        float64 // time to the first token of Request.Prompt prompt tokens
	FirstMS       float64 // the part of it that is Request.FirstMS
	StreamsTPS    float64 // tokens per second over Streams streams
	Streams       int     // this pipeline's part of Request.Streams
	SlowestStage  int     // index of the stage that takes most time
	SaturatedTPS  float64 // tokens per second with full batches
	PromptTokens  int
	SlowestHopped int // index of the stage with the slowest hop
}

// LeftOut is a host or model that a plan does without.
type LeftOut struct{ ID, Reason string }

// withDefaults returns the request with its defaults filled in, or an Invalid error that names the field.
func (r Request) withDefaults() (Request, error) {
	if len(r.Hosts) > maxHosts {
		return r, fault.Field("hosts", "want at most %d, got %d", maxHosts, len(r.Hosts))
	}
	if r.Headroom == 0 {
		r.Headroom = defaultHeadroom
	}
	if !(r.Headroom >= 0 && r.Headroom < 1) {
		return r, fault.Field("headroom", "want 0 or more and less than 1, got %v", r.Headroom)
	}
	if r.Goal < Latency || r.Goal > FewestHosts {
		return r, fault.Field("goal", "want one of the goals, got %v", r.Goal)
	}
	if !(r.RouterMS >= 0 && r.RouterMS <= maxMS) {
		return r, fault.Field("router_ms", "want 0 to %g, got %v", float64(maxMS), r.RouterMS)
	}
	if !(r.FirstMS >= 0 && r.FirstMS <= maxMS) {
		return r, fault.Field("first_ms", "want 0 to %g, got %v", float64(maxMS), r.FirstMS)
	}
	for _, n := range []struct {
		name  string
		value *int
		other int
	}{{"prompt", &r.Prompt, defaultPrompt}, {"streams", &r.Streams, defaultStreams}} {
		if *n.value == 0 {
			*n.value = n.other
		}
		if *n.value < 1 || *n.value > 1<<24 {
			return r, fault.Field(n.name, "want 1 to %d, got %d", 1<<24, *n.value)
		}
	}
	seen := map[string]bool{}
	for i := range r.Hosts {
		h := &r.Hosts[i]
		if h.ID == "" {
			return r, fault.Field(fmt.Sprintf("hosts[%d].id", i), "want a name")
		}
		if seen[h.ID] {
			return r, fault.Field(fmt.Sprintf("hosts[%d].id", i), "%q occurs twice", h.ID)
		}
		seen[h.ID] = true
		if err := h.check(fmt.Sprintf("hosts[%d]", i)); err != nil {
			return r, err
		}
	}
	digests := map[string]bool{}
	models := make([]Model, len(r.Models))
	for i, m := range r.Models {
		m, err := m.withDefaults(fmt.Sprintf("models[%d]", i), seen)
		if err != nil {
			return r, err
		}
		if digests[m.Digest] {
			return r, fault.Field(fmt.Sprintf("models[%d].digest", i), "%q occurs twice", m.Digest)
		}
		digests[m.Digest] = true
		models[i] = m
	}
	r.Models = models
	return r, nil
}

// check returns an Invalid error that names the field if a value is out of bounds. at is the host's place.
func (h *Host) check(at string) error {
	if h.Memory < 0 || h.Memory > maxBytes {
		return fault.Field(at+".memory_bytes", "host %q: want 0 to %d, got %d", h.ID, int64(maxBytes), h.Memory)
	}
	if h.LayerBytes < 0 || h.LayerBytes > maxBytes {
		return fault.Field(at+".layer_bytes", "host %q: want 0 to %d, got %d", h.ID, int64(maxBytes), h.LayerBytes)
	}
	for _, f := range []struct {
		name  string
		value float64
		zero  bool
	}{
		{"layer_ms", h.LayerMS, false}, {"row_ms", h.RowMS, true}, {"hop_ms", h.HopMS, true},
		{"bandwidth_mbps", h.Mbps, true},
	} {
		if !(f.value > 0 || f.zero && f.value == 0) || f.value > maxMS || f.value > 0 && f.value < 1/maxMS {
			want := "more than 0"
			if f.zero {
				want = "0 or more"
			}
			return fault.Field(at+"."+f.name, "host %q: want %s and at most %g, got %v", h.ID, want, float64(maxMS),
				f.value)
		}
	}
	return nil
}

func (m Model) withDefaults(at string, hosts map[string]bool) (Model, error) {
	if m.Digest == "" {
		m.Digest = m.Name
	}
	if m.Read == nil {
		m.Read = m.Layers
	}
	if n := len(m.Layers); n < 1 || n > maxLayers || len(m.Read) != n {
		return m, fault.Field(at+".layers", "model %q: want 1 to %d layers, got %d", m.Name, maxLayers, n)
	}
	for _, sizes := range [][]int64{m.Layers, m.Read, {m.Embedding, m.Head, m.KVBytes, m.HiddenBytes}} {
		for _, n := range sizes {
			if n < 0 || n > maxBytes/maxLayers {
				return m, fault.Field(at, "model %q: want sizes of 0 to %d bytes, got %d", m.Name,
					int64(maxBytes/maxLayers), n)
			}
		}
	}
	if m.KVPositions == 0 {
		m.KVPositions = defaultKV
	}
	if m.MaxKVPositions == 0 {
		m.MaxKVPositions = max(defaultMaxKV, m.KVPositions)
	}
	if m.KVPositions < 1 || m.MaxKVPositions < m.KVPositions || m.MaxKVPositions > 1<<24 {
		return m, fault.Field(at+".kv_positions", "model %q: want 1 to %d and no more than the most, got %d and %d",
			m.Name, 1<<24, m.KVPositions, m.MaxKVPositions)
	}
	if float64(m.KVBytes)*float64(m.MaxKVPositions) > maxBytes/maxLayers {
		return m, fault.Field(at+".kv_positions", "model %q: the KV cache of a layer is too large", m.Name)
	}
	if m.Replicas < 0 || m.AtMost < 0 {
		return m, fault.Field(at, "model %q: want no negative number of replicas or stages", m.Name)
	}
	for _, id := range m.Pin {
		if !hosts[id] {
			return m, fault.Field(at+".pin", "model %q: there is no host %q", m.Name, id)
		}
	}
	return m, nil
}

// mean returns the average number of bytes that a row reads of a layer, and at least 1.
func (m *Model) mean() float64 {
	sum := 0.0
	for _, n := range m.Read {
		sum += float64(n)
	}
	return math.Max(1, sum/float64(len(m.Read)))
}
