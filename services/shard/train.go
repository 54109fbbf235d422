package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

// Bus carries gradient events between replicas; pkg/gradbus has the implementations.
type Bus interface {
	Publish(ctx context.Context, e gradbus.Event) error
	Subscribe(ctx context.Context, run, part string, from uint64) (gradbus.Subscription, error)
	Purge(ctx context.Context, run string, before uint64) error
	Remove(ctx context.Context, run string) error
}

type trainServer = grpc.BidiStreamingServer[shardv1.TrainRequest, shardv1.TrainResponse]

const (
	maxStages   = 256
	maxSlots    = 4096
	frameQueue  = 64      // frames from the trainer or a neighbour that may wait
	maxPosition = 1 << 16 // tokens in a training sequence
)

// training holds the training stages that run on this shard.
type training struct {
	service *Service
	peaks   peaks
	mu      sync.Mutex
	runs    map[string]*trainRun // by chain and stage
	epochs  map[string]uint64    // the largest one of each lease
	bases   []base               // that stages of adapters have, or had until the garbage collector comes
	ended   chan struct{}        // closed and replaced when a run ends
	leave   chan struct{}        // closed when the shard is drained
}

func newTraining(s *Service) *training {
	return &training{service: s, runs: map[string]*trainRun{}, epochs: map[string]uint64{},
		ended: make(chan struct{}), leave: make(chan struct{})}
}

func runKey(chain []byte, stage uint32) string { return fmt.Sprintf("%x/%d", chain, stage) }

// trainRun is one stage of one chain of a run. The goroutine of the Train handler runs it. Exchange
// and the frame reader feed it through channels.
type trainRun struct {
	service *Service
	open    *shardv1.TrainOpen
	stream  trainServer
	frames  chan *shardv1.TrainRequest
	unread  *shardv1.TrainRequest // an abort that an attempt has met, which comes before frames
	ctx     context.Context
	fail    context.CancelCauseFunc

	sending  sync.Mutex    // held while a frame is sent
	pieces   chan struct{} // bounds the chunks among the frames
	fence    *fence
	halted   bool    // the attempt has ended before its time, and its abort is to come
	aborted  attempt // the last one whose abort has been answered
	members  members
	progress progress

	spans []*trainSpan
	optim optim.Config
	state []*paramState // of all spans, by name
	step  uint64

	prev *fromPrev // nil on the first stage, unless the last one is before it
	next *toNext   // nil on the last, unless the first one is behind it

	memory     kernel.Memory[float32] // of moments and gradients
	costs      []spanCost             // of the spans, on a device
	stepValues [4]int                 // of the optimizer's scratch memory, on a device
	reserved   int64                  // bytes of the device
	flops      float64                // a second, of products

	scratch *optim.Scratch
	adapter *adapter.Adapter // that is trained, with its initial values; nil for all parameters
	base    initial          // the files of the base, if its weights are used as they are stored

	all       []stateTensor     // the state of all spans
	loaded    map[int]bool      // tensors of it that are loaded, until all are
	store     *checkpoint.Store // of the run, if the stage shares its folder
	snapshot  *snapshot         // the last one, if there was one
	snapshots chan *snapshot    // to SaveState
	writing   chan struct{}     // has room for one call of SaveState

	diloco  *diloco // nil unless workers step on their own
	stepped bool    // a step has begun

	outbox *gradbus.Outbox // of all spans
	direct *direct
	full   uint64 // bytes that the gradients sent since the last report have in float32
}

// trainSpan is one of the stage's ranges of layers.
type trainSpan struct {
	run   *trainRun
	index int // among the stage's spans
	stage *model.Stage[float32]
	tied  string // name of the tied parameter, if its two uses are in different spans and it is trained
	state []*paramState

	frozen  map[string]bool // names of weights that are not trained
	grads   []*gradient     // a pool
	reducer *reducer        // sums with the other replicas and the other part of a tied parameter
}

// paramState is a parameter with its moments.
type paramState struct {
	model.Param[float32]
	span  *trainSpan
	group optim.Group
	m, v  kernel.Buffer[float32] // nil if the optimizer does not keep them

	common, outer []float32 // under DiLoCo: the common weights and their momentum
}

// Train implements the training stream.
func (s *Service) Train(stream trainServer) error {
	if s.cfg.Bus == nil {
		return fault.New(fault.FailedPrecondition, "train: this shard was started without training")
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if err := checkTrainOpen(open); err != nil {
		return err
	}
	if err := s.checkDevice(open); err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(stream.Context())
	defer fail(nil)
	if err := s.training.settle(ctx, open); err != nil {
		return err
	}
	r, err := s.training.build(ctx, fail, stream, open)
	if err != nil {
		return err
	}
	defer s.training.remove(r)
	defer r.close()
	if !r.wraps() { // the last stage joins the first one, which is not open yet, later
		if err := r.connect(); err != nil {
			return err
		}
	}
	parameters := 0
	for _, p := range r.state {
		if !p.Tied() && p.group.Trainable {
			parameters += len(p.Data)
		}
	}
	err = r.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Opened{Opened: &shardv1.TrainOpened{
		Parameters: uint64(parameters), KernelClass: r.kernels().Class(), SharesFolder: r.store != nil,
		MatmulFlops: r.flops, Threads: uint32(max(1, s.cfg.Threads)),
		Processors: uint32(runtime.NumCPU()), Host: s.cfg.Host, StorageBytes: r.storageBytes(),
	}}})
	if err != nil {
		return err
	}
	s.log.Info("train stage", "run", open.GetRun(), "replica", open.GetReplica(), "layers", r.layers())
	go r.read()
	beating, stop := context.WithCancel(ctx)
	var beat sync.WaitGroup
	beat.Go(func() { r.heartbeat(beating) })
	err = r.serve()
	stop()
	beat.Wait()
	if cause := context.Cause(ctx); err != nil && cause != nil && stream.Context().Err() == nil {
		err = cause
	}
	return err
}

// build creates the stage and its optimizer state, and registers it for Exchange.
func (t *training) build(
	ctx context.Context, fail context.CancelCauseFunc, stream trainServer, o *shardv1.TrainOpen,
) (_ *trainRun, err error) {
	spec, err := model.ParseHF(o.GetConfigJson())
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "open.config_json")
	}
	kernels := t.service.cfg.Kernels
	if o.GetPrecision() == shardv1.Precision_PRECISION_BFLOAT16 {
		kernels = kernels.BFloat16()
	}
	r := &trainRun{
		// There is room for all slots of a step, so that the abort behind them is read at once.
		service: t.service, open: o, stream: stream, ctx: ctx, fail: fail, frames: make(
			chan *shardv1.TrainRequest, max(frameQueue, int(o.GetStages()))+int(o.GetSlots()),
		),
		pieces: make(chan struct{}, frameQueue), fence: newFence(), members: allMembers(o),
		optim: optimizer(o.GetOptimizer()), scratch: optim.NewScratch(t.service.cfg.Kernels), loaded: map[int]bool{},
		snapshots: make(chan *snapshot, 1), writing: make(chan struct{}, 1),
	}
	r.memory = kernels.Scope()
	r.direct = newDirect(r)
	defer func() {
		if err != nil {
			r.unreserve()
		}
	}()
	if t.service.device != nil {
		defer func() {
			if p := recover(); p != nil {
				err = t.service.recovered("open a train stage", p)
			}
		}()
	}
	source, err := openInitial(o.GetInitial(), &spec)
	if err != nil {
		return nil, err
	}
	if r.adapter, err = openAdapter(o, &spec); err != nil {
		return nil, errors.Join(err, source.close())
	}
	for i := range o.GetSpans() {
		if err := r.addSpan(spec, i, kernels, source); err != nil {
			return nil, errors.Join(err, source.close())
		}
	}
	if o.GetAdapter().GetStoredBase() {
		r.base = source // its weights stay in the mapped files
		defer func() {
			if err != nil {
				err = errors.Join(err, source.close())
			}
		}()
	} else if err := source.close(); err != nil {
		return nil, err
	}
	slices.SortFunc(r.state, func(a, b *paramState) int { return cmp.Compare(a.Name, b.Name) })
	if o.GetDiloco() != nil {
		if r.diloco, err = newDiloco(r, spec); err != nil {
			return nil, err
		}
	}
	r.all = r.tensors()
	r.flops = t.peaks.of(r.kernels())
	r.findShare()
	if o.GetStage() > 0 || len(r.spans) > 1 {
		r.prev = newFromPrev(len(r.spans), int(o.GetStages()))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	key := runKey(o.GetChain(), o.GetStage())
	if t.runs[key] != nil {
		return nil, fault.New(fault.AlreadyExists, "open stage %d of chain %x: it is already open",
			o.GetStage(), o.GetChain())
	}
	if t.draining() {
		return nil, fault.New(fault.Unavailable, "open stage %d of chain %x: the shard is about to stop", o.GetStage(),
			o.GetChain())
	}
	if err := t.lead(o); err != nil {
		return nil, err
	}
	r.outbox = gradbus.NewOutbox(ctx, t.service.cfg.Bus, t.service.cfg.Outbox, fail)
	t.runs[key] = r
	return r, nil
}

// addSpan builds a span with its initial weights.
func (r *trainRun) addSpan(spec model.Spec, i int, kernels kernel.Set[float32], source initial) error {
	o, layers := r.open, r.open.GetSpans()[i]
	position, chain := uint32(i)*o.GetStages()+o.GetStage(), o.GetStages()*uint32(len(o.GetSpans()))
	at := model.Range{Lo: int(layers.GetLo()), Hi: int(layers.GetHi())}
	if at.Lo >= at.Hi || at.Hi > len(spec.Layers) || (at.Lo == 0) != (position == 0) ||
		(at.Hi == len(spec.Layers)) != (position == chain-1) ||
		i > 0 && at.Lo < r.spans[i-1].stage.Range.Hi {
		return fault.Field("open.spans", "layers %v of %d in span %d of stage %d of %d", at, len(spec.Layers), i,
			o.GetStage(), o.GetStages())
	}
	var held []*model.Stage[float32]
	stored := o.GetAdapter().GetStoredBase()
	if r.service.device != nil {
		if err := r.count(spec, at, kernels, source); err != nil {
			return err
		}
		if err := r.reserve(r.members); err != nil {
			return err
		}
	} else if stored { // on a device a base has a reservation of its own
		held = r.service.training.beside(o.GetInitial().GetDigest(), kernels)
	}
	stage, err := source.stage(spec, at, kernels, o, r.adapter, held)
	if err == nil && stored && r.service.device == nil {
		r.service.training.remember(o.GetInitial().GetDigest(), stage)
	}
	if err == nil && r.adapter != nil {
		err = trainAdapter(stage, r.adapter)
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "build layers %v", at)
	}
	stage.RecomputeLayers(o.GetRecomputeLayers())
	if o.GetStorage() == shardv1.Precision_PRECISION_BFLOAT16 {
		stage.StoreBF16()
	}
	s := &trainSpan{run: r, index: i, stage: stage}
	var groups map[string]optim.Group
	groups, s.frozen = r.divide(stage)
	for _, p := range stage.Stepped() {
		state := &paramState{Param: p, span: s, group: groups[p.Name]}
		moments := r.optim.Moments(state.group)
		if moments > 0 {
			state.m = r.memory.Alloc(len(p.Data))
		}
		if moments > 1 {
			state.v = r.memory.Alloc(len(p.Data))
		}
		s.state = append(s.state, state)
	}
	if name, ok := stage.TiedEnd(); ok && !s.frozen[stage.Spec.Embedding.Tokens.Param+".weight"] {
		s.tied = name
	}
	if o.GetDiloco() == nil {
		s.reducer = newReducer(s, s.gradientTree(), s.trained())
	}
	r.spans, r.state = append(r.spans, s), append(r.state, s.state...)
	return nil
}

// storageBytes returns the size of the layers' matrices as the passes read them.
func (r *trainRun) storageBytes() uint64 {
	n := 0
	for _, s := range r.spans {
		n += s.stage.StorageBytes()
	}
	return uint64(n)
}

// kernels returns the kernel set of the passes, which may round to bfloat16.
func (r *trainRun) kernels() kernel.Set[float32] { return r.spans[0].stage.Kernels() }

// set returns the kernel set of everything but the passes.
func (r *trainRun) set() kernel.Set[float32] { return r.service.cfg.Kernels }

// layers names the stage's spans.
func (r *trainRun) layers() string {
	var out []string
	for _, s := range r.spans {
		out = append(out, s.stage.Range.String())
	}
	return strings.Join(out, ",")
}

// wraps reports whether the next stage is the first one.
func (r *trainRun) wraps() bool {
	return len(r.spans) > 1 && r.open.GetStage() == r.open.GetStages()-1
}

func (t *training) remove(r *trainRun) {
	r.unreserve()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.runs, runKey(r.open.GetChain(), r.open.GetStage()))
	close(t.ended)
	t.ended = make(chan struct{})
}

// activationBytes is the size of one slot's hidden state.
func (r *trainRun) activationBytes() int {
	return 4 * int(r.open.GetSlotSequences()) * int(r.open.GetSequenceLen()) * r.spans[0].stage.Spec.Width
}

// connect connects to the next stage, if there is one and it is not connected.
func (r *trainRun) connect() error {
	if r.open.GetNext() == "" || r.next != nil {
		return nil
	}
	var err error
	r.next, err = dialNext(r.ctx, r.fail, r.service.cfg.Dialer, r.open, r.activationBytes(), r.fence)
	return err
}

// close closes everything that the run has opened.
func (r *trainRun) close() {
	r.fail(nil)
	r.outbox.Close()
	r.direct.close()
	if r.diloco != nil {
		r.diloco.close()
	} else {
		for _, s := range r.spans {
			s.reducer.close()
		}
	}
	r.removeEvents()
	if r.next != nil {
		r.next.close()
	}
	if err := r.base.close(); err != nil {
		r.service.log.Warn("close the base model", "run", r.open.GetRun(), "error", err)
	}
}
