package shard

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
)

// Dialer connects to neighbours and to the sampler.
type Dialer interface {
	Dial(addr string) (*grpc.ClientConn, error)
}

// Config holds the dependencies and settings of a Service.
type Config struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil measures nothing
	Dialer  Dialer
	Kernels kernel.Set[float32]
	Threads int
	Tracer  *trace.Tracer // nil traces nothing
	// KVPositions bounds the KV cache of each held range, in positions; 0 means 16384.
	KVPositions int
	// LeaseLimit bounds the time that a pipeline may take to acknowledge a smaller lease; 0 means 10 s.
	LeaseLimit time.Duration
	// Grace is how long the pages of a pipeline are kept whose connection has broken; 0 means 5 s.
	Grace time.Duration
	// RingGrace is how long the memory for hidden states of a stream that has broken is kept, because the next stage
	// may still read it; 0 means 3 minutes.
	RingGrace time.Duration
	// AdapterBytes bounds the memory of adapters, as float32; 0 means 1 GiB.
	AdapterBytes int64
	// AdapterIdle bounds the time between two frames of an adapter that is being loaded; 0 means 15 s.
	AdapterIdle time.Duration
	// Bus carries gradient events; nil for a shard that does not train.
	Bus Bus
	// Outbox says how gradient events are published; zero values stand for the defaults.
	Outbox gradbus.OutboxConfig
	// Runs is the folder of training runs. A stage whose run is in it reads and writes the files of
	// checkpoints itself. nil for a shard that leaves this to the trainer.
	Runs checkpoint.FS
	// Host names the machine, for the trainer and for neighbours that may share its devices' memory. Empty if its name
	// is not known.
	Host string
	// ID is the id of the instance in discovery; empty if it is not known.
	ID string
	// Assignable says that a placer may assign layers of the offered models to this shard.
	Assignable bool
	// Memory is the number of bytes for weights and KV caches; 0 for any.
	Memory int64
	// Zone says where the host is.
	Zone string
	// Quota is the processor time that the shard may use.
	Quota cputime.Quota
}

const (
	idLen              = 16 // bytes of pipeline, session and chain names
	defaultKVPositions = 16384
	openLimit          = 15 * time.Second // how long the rest of a chain may take to open
	queueLen           = 4                // batches that may wait while one is computed
	maxEntries         = 1024             // of a batch
	maxRows            = 4096             // of a batch
	maxSessions        = 1 << 16          // of a pipeline
	defaultLeaseLimit  = 10 * time.Second
	defaultGrace       = 5 * time.Second
	defaultAdapters    = 1 << 30 // bytes
)

// Service implements lamina.shard.v1.ShardService.
type Service struct {
	shardv1.UnimplementedShardServiceServer
	cfg      Config
	log      *slog.Logger
	training *training
	host     arithmetic          // in the host's memory
	device   accelerator         // nil for processors
	sharer   sharer              // the device, if other processes can read its memory; else nil
	failed   chan struct{}       // closed when the device is lost; nil for processors
	parts    map[any]*devicePart // of the device; guarded by mu

	rows    prometheus.Counter
	batches prometheus.Counter
	compute prometheus.Counter

	hiddenFrames, hiddenBytes *prometheus.CounterVec // that were sent to the next stage, by path

	embeds chan struct{} // one for each call of Embed that runs
	lows   chan struct{} // one for each of them without priority

	reserved atomic.Int64 // bytes of adapters, also of those that are being loaded
	trained  atomic.Int64 // bytes of the device that train stages have reserved
	moved    prometheus.Counter

	ctx  context.Context // of loads and releases
	stop context.CancelFunc
	work sync.WaitGroup

	mu          sync.Mutex
	held        []*held
	retiring    []*held           // unloaded, but some pipelines still use them
	loads       []*load           // that run
	offers      map[string]*offer // by digest
	fence       uint64            // the highest of an assignment
	loadedBytes uint64            // by assignments
	changed     chan struct{}     // closed and replaced when what is held or offered changes
	lost        error             // why the device does not compute any more
	ringBytes   int64             // of all rings
	leftRings   int               // of streams that broke
	onWire      string            // why hidden states go over the wire
	closed      bool
}

// held is a loaded range of a model with its KV cache and sessions.
type held struct {
	name   string
	digest string
	stage  *model.Stage[float32]
	cache  *kvcache.Cache[float32]

	pooling     model.Pooling // of embeddings
	poolingErr  error         // why the model's pooling is not supported
	assigned    bool          // by a placer
	weightBytes int64         // of the span
	room        *room         // on the device; nil in the host's memory
	gone        chan struct{} // closed when the span is unloaded
	kept        keptRows      // of the last stage, on a device
	pace        pace

	embedding embedTurn // one call of Embed computes at a time; taken before compute

	compute sync.Mutex // the stage runs one batch at a time

	loading      chan struct{}     // has room for one load of an adapter
	unreserve    func(bytes int64) // of the service
	adapterLimit int64

	mu        sync.Mutex
	unloaded  bool // no pipeline can open on it, and no adapter is loaded any more
	adapters  map[adapter.Sum]*loaded
	sessions  map[string]*session
	pipelines map[string]*pipeline // that have a stream or are detached
	embeds    int                  // calls of Embed
	rows      uint64
	computeUS uint64
}

// session is the state of one generation on this stage. Only the compute goroutine of its
// pipeline uses table.
type session struct {
	pipeline string
	epoch    uint64
	adapter  *loaded // nil for none
	table    *kvcache.Table[float32]
	lost     bool // an entry of it was not computed: further ones are refused until it is released

	span        *trace.Span // of the time for which it is held; nil if the request is not traced
	rows, steps int         // that it was part of

	// The last stage keeps the last row of logits, in case the sampler asks for it.
	row    []float32
	slot   int // of keptRows, from 1 on; 0 if it is in row
	rowPos uint32
	lse    float64
}

// New returns a shard that holds no layers yet.
func New(c Config) *Service {
	s := &Service{
		cfg: c, log: c.Log,
		rows: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "lamina_shard_rows_total", Help: "Rows (token positions) computed."},
		),
		batches: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "lamina_shard_batches_total", Help: "Batches computed."}),
		compute: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "lamina_shard_compute_seconds_total", Help: "Time spent in kernels."},
		),
		moved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lamina_shard_assigned_bytes_total", Help: "Bytes of weights that assignments have loaded.",
		}),
		hiddenFrames: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lamina_shard_hidden_frames_total",
			Help: "Hidden states of batches that were sent to the next stage, over the wire or from device to device."},
			[]string{"path"}),
		hiddenBytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lamina_shard_hidden_bytes_total",
			Help: "Bytes of these hidden states, as float32."}, []string{"path"}),
		offers: map[string]*offer{}, changed: make(chan struct{}), host: c.Kernels,
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.KVPositions == 0 {
		s.cfg.KVPositions = defaultKVPositions
	}
	if s.cfg.LeaseLimit == 0 {
		s.cfg.LeaseLimit = defaultLeaseLimit
	}
	if s.cfg.Grace == 0 {
		s.cfg.Grace = defaultGrace
	}
	if s.cfg.RingGrace == 0 {
		s.cfg.RingGrace = ringGrace
	}
	if s.cfg.AdapterIdle == 0 {
		s.cfg.AdapterIdle = adapterIdle
	}
	if s.cfg.AdapterBytes == 0 {
		s.cfg.AdapterBytes = defaultAdapters
	}
	if c.Metrics != nil {
		c.Metrics.MustRegister(s.rows, s.batches, s.compute, s.moved, s.hiddenFrames, s.hiddenBytes,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "lamina_shard_kv_pages", Help: "KV pages in use.",
			}, s.pages),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "lamina_shard_adapter_bytes",
				Help: "Bytes of adapters."}, func() float64 { return float64(s.reserved.Load()) }))
	}
	s.training = newTraining(s)
	if device, ok := c.Kernels.(accelerator); ok {
		s.device, s.failed, s.parts = device, make(chan struct{}), map[any]*devicePart{}
		s.host = hostMath{}
		s.sharer, _ = c.Kernels.(sharer)
		s.work.Go(s.watch)
		if c.Metrics != nil {
			c.Metrics.MustRegister(newDeviceMetrics(device))
		}
	}
	s.embeds, s.lows = make(chan struct{}, maxEmbeds), make(chan struct{}, maxEmbeds/2)
	return s
}

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { shardv1.RegisterShardServiceServer(r, s) }

func (s *Service) pages() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := 0
	for _, h := range s.held {
		used += h.cache.Used()
	}
	return float64(used)
}

// Hold loads layers of an open model for inference. The files must stay open.
func (s *Service) Hold(name, digest string, files *model.Files, r model.Range) error {
	room, err := s.reserveRoom(files, r, nil, s.pagesFor(0), 0)
	if err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "load layers %v of %s", r, name)
	}
	stage, err := model.Load(files, r, s.cfg.Kernels, model.LoadOptions{Encoder: files.Spec.Encoder()})
	if err != nil {
		s.freeRoom(room)
		return fault.Wrap(fault.FailedPrecondition, err, "load layers %v of %s", r, name)
	}
	h := s.newHeld(name, digest, stage, s.pagesFor(0))
	h.room = room
	h.weightBytes = files.SpanBytes(r)
	h.pooling, h.poolingErr = files.Pooling()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holdRoom(room, stage)
	s.held = append(s.held, h)
	if unused := files.Spec.Unused; len(unused) > 0 {
		s.log.Info("load the language model only", "model", name, "unused", strings.Join(unused, ", "))
	}
	s.log.Info("hold layers", "model", name, "layers", r.String(), "digest", digest)
	return nil
}

// newHeld returns a loaded span with an empty KV cache.
func (s *Service) newHeld(name, digest string, stage *model.Stage[float32], pages int) *held {
	return &held{
		name: name, digest: digest, stage: stage, cache: kvcache.New(stage.CacheConfig(pages), stage.Kernels()),
		sessions: map[string]*session{}, pipelines: map[string]*pipeline{}, gone: make(chan struct{}),
		adapters: map[adapter.Sum]*loaded{}, loading: make(chan struct{}, 1), unreserve: s.unreserve,
		adapterLimit: s.cfg.AdapterBytes,
	}
}

// Close ends loads and releases that run, and the watch over a device. The files of offers may be closed after it.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range slices.Concat(s.held, s.retiring) {
		s.dropRoom(h)
	}
	return nil
}

// find returns the held span that a hop names.
func (s *Service) find(digest string, hop *shardv1.Hop) (*held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		if r := h.stage.Range; h.digest == digest && r.Lo == int(hop.GetLo()) && r.Hi == int(hop.GetHi()) {
			return h, nil
		}
	}
	if s.lost != nil {
		return nil, fault.New(fault.NotFound, "find layers %d-%d of %s: %v", hop.GetLo(), hop.GetHi(), digest, s.lost)
	}
	return nil, fault.New(
		fault.NotFound, "find layers %d-%d of %s: this shard does not hold them", hop.GetLo(), hop.GetHi(),
		digest,
	)
}

// Trim releases KV pages and scratch memory that were not used since the last call. A process calls
// it at intervals. It reports whether it released anything, which the garbage collector can then
// free.
func (s *Service) Trim() bool {
	released := false
	s.mu.Lock()
	held := slices.Concat(s.held, s.retiring)
	s.mu.Unlock()
	for _, h := range held {
		released = h.cache.Trim() > 0 || released
		if h.compute.TryLock() { // a stage that is computing is not idle
			released = h.stage.Trim() || released
			h.compute.Unlock()
		}
	}
	return released
}

// positions returns how many positions can be computed. With rotary embeddings that is the capacity
// of the cache, even beyond the context length. With learned embeddings it is at most the context
// length.
func (h *held) positions() int {
	c := h.cache.Config()
	if h.stage.Spec.Bounded() {
		return min(h.stage.Spec.Context, c.Pages*c.PageLen)
	}
	return c.Pages * c.PageLen
}

// describe returns the description of a span and its load.
func (h *held) describe() *shardv1.Held {
	c := &h.stage.Spec
	leases := h.cache.Leases()
	h.mu.Lock()
	defer h.mu.Unlock()
	out := &shardv1.Held{
		Model: h.name, Digest: h.digest, Lo: uint32(h.stage.Range.Lo), Hi: uint32(h.stage.Range.Hi),
		Layers: uint32(len(c.Layers)),
		Width:  uint32(c.Width), Vocab: uint32(c.Vocab), Context: uint32(c.Context), Architecture: c.Architecture,
		Positions: uint32(h.positions()),
		KvPages:   uint32(h.cache.Config().Pages), KvPageLen: uint32(h.cache.Config().PageLen),
		KvPagesUsed: uint32(h.cache.Used()),
		Sessions:    uint32(len(h.sessions) + h.embeds), Rows: h.rows, ComputeUs: h.computeUS,
		Pipelines: uint32(len(leases)), AdapterLimit: uint64(h.adapterLimit),
		Encoder: c.Encoder(), EmbedTokens: uint32(h.embedTokens()),
		Assigned: h.assigned, WeightBytes: uint64(h.weightBytes),
	}
	h.describeAdapters(out)
	one, further := h.pace.read()
	out.RowUs, out.FurtherRowUs = one.value, further.value
	for _, l := range leases {
		out.Leases = append(out.Leases, &shardv1.LeaseInfo{
			Pipeline: []byte(l.Name), Pages: uint32(l.Granted), Used: uint32(l.Used),
		})
	}
	return out
}

// Describe lists the spans that this shard holds.
func (s *Service) Describe(context.Context, *shardv1.DescribeRequest) (*shardv1.DescribeResponse, error) {
	devices := describeDevice(s.device) // which may wait for a short time
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &shardv1.DescribeResponse{
		KernelClass: s.cfg.Kernels.Class(), Threads: uint32(s.cfg.Threads), Trains: s.cfg.Bus != nil,
		Instance: s.cfg.ID, Inventory: s.inventory(),
	}
	out.Inventory.Accelerators = devices
	for _, d := range devices {
		d.OnWire = s.onWire
	}
	for _, h := range s.held {
		out.Held = append(out.Held, h.describe())
	}
	return out, nil
}
