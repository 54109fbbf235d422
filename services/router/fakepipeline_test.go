package router_test

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

type fakePipeline struct {
	shard *fakeShard
	up    grpc.BidiStreamingServer[shardv1.InferRequest, shardv1.InferResponse]
	upMu  sync.Mutex
	down  grpc.BidiStreamingClient[shardv1.InferRequest, shardv1.InferResponse]
	push  grpc.BidiStreamingClient[samplerv1.PushRequest, samplerv1.PushResponse]
	names map[string]bool
	pages map[uint32][]uint32 // the ids in each page that is mapped

	name    string
	epoch   uint64
	cancel  func()
	left    chan struct{} // closed at the end of the stream
	resumed bool
}

// attach takes over the pages of the pipeline's former stream, and ends that stream first if it lives.
func (p *fakePipeline) attach(ctx context.Context) error {
	s := p.shard
	for {
		s.mu.Lock()
		old := s.streams[p.name]
		switch {
		case old == nil:
			if kept := s.kept[p.name]; kept != nil && kept.epoch < p.epoch {
				p.pages, p.resumed = kept.pages, true
			}
			clear(s.kept)
			s.streams[p.name] = p
			s.mu.Unlock()
			return nil
		case old.epoch >= p.epoch:
			s.mu.Unlock()
			return fault.New(fault.AlreadyExists, "open pipeline: it is open")
		}
		s.mu.Unlock()
		old.cancel()
		select {
		case <-old.left:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *fakePipeline) answer(r *shardv1.InferResponse) error {
	p.upMu.Lock()
	defer p.upMu.Unlock()
	return p.up.Send(r)
}

// grant lends the pipeline all pages after a while, as when another one has to give them up first.
func (p *fakePipeline) grant(ctx context.Context) {
	select {
	case <-time.After(p.shard.lendAfter()):
		l := &shardv1.Lease{Pages: p.shard.pages, Lo: p.shard.lo}
		_ = p.answer(
			&shardv1.InferResponse{Frame: &shardv1.InferResponse_Lease{Lease: l}},
		) // the stream has ended if it fails
	case <-ctx.Done():
	}
}

func (s *fakeShard) lendAfter() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lend
}

func (p *fakePipeline) connect(ctx context.Context, open *shardv1.InferOpen) (*shardv1.InferOpened, error) {
	out := &shardv1.InferOpened{Stages: []*shardv1.Held{p.shard.held()}, KernelClasses: []string{"fake/1"}}
	if p.shard.lendAfter() > 0 {
		out.Stages[0].Lease = new(uint32)
	}
	out.Stages[0].Resumed = p.resumed
	if len(open.GetRoute()) == 1 {
		conn, err := p.shard.dialer.Dial(open.GetSampler())
		if err != nil {
			return nil, err
		}
		if p.push, err = samplerv1.NewSamplerServiceClient(conn).Push(ctx); err != nil {
			return nil, err
		}
		frame := &samplerv1.PushRequest{
			Frame: &samplerv1.PushRequest_Open{Open: &samplerv1.PushOpen{Pipeline: open.GetPipeline(), Vocab: vocab}},
		}
		if err := p.push.Send(frame); err != nil {
			return nil, err
		}
		_, err = p.push.Recv()
		return out, err
	}
	conn, err := p.shard.dialer.Dial(open.GetRoute()[1].GetAddress())
	if err != nil {
		return nil, err
	}
	if p.down, err = shardv1.NewShardServiceClient(conn).Infer(ctx); err != nil {
		return nil, err
	}
	frame := &shardv1.InferOpen{
		Pipeline: open.GetPipeline(), Digest: open.GetDigest(), Route: open.GetRoute()[1:], Sampler: open.GetSampler(),
		Epoch: open.GetEpoch(),
	}
	if err := p.down.Send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Open{Open: frame}}); err != nil {
		return nil, err
	}
	rest, err := p.down.Recv()
	if err != nil {
		return nil, err
	}
	out.Stages = append(out.Stages, rest.GetOpened().GetStages()...)
	out.KernelClasses = append(out.KernelClasses, rest.GetOpened().GetKernelClasses()...)
	return out, nil
}

func (p *fakePipeline) relay() error {
	if p.push != nil {
		_, err := p.push.Recv()
		return err
	}
	for {
		r, err := p.down.Recv()
		if err != nil {
			return err
		}
		if err := p.answer(r); err != nil {
			return err
		}
	}
}

// end frees the pipeline's sessions. If the stream broke, it keeps the pages.
func (p *fakePipeline) end(err error) {
	s := p.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range p.names {
		delete(s.tables, name)
	}
	delete(s.streams, p.name)
	if err != nil && fault.CodeOf(err) != fault.Internal && p.epoch > 0 && !s.forgets {
		s.kept[p.name] = p
	}
	close(p.left)
}

func (p *fakePipeline) take(ctx context.Context, r *shardv1.InferRequest) error {
	s := p.shard
	if release := r.GetRelease(); release != nil {
		s.mu.Lock()
		for _, name := range release.GetSessions() {
			delete(s.tables, string(name))
		}
		for _, page := range release.GetPages() {
			for name := range p.names {
				if slices.Contains(s.tables[name], page) {
					s.faults = append(s.faults, "a page was released that a table names")
				}
			}
			delete(p.pages, page)
		}
		s.mu.Unlock()
		if p.down != nil {
			return p.down.Send(r)
		}
		return nil
	}
	if s.count() {
		<-ctx.Done() // silent, not gone: no error reaches the router
		return ctx.Err()
	}
	b, err := r.GetBatch(), error(nil)
	if refused, err := p.refuse(b); refused || err != nil {
		return err
	}
	ids := b.GetIds()
	s.mu.Lock()
	poison, code := s.poison, fault.Internal
	if s.forgets { // it has ended as a process does
		code = fault.Unavailable
	}
	hit := poison != 0 && slices.Contains(ids, poison)
	if hit {
		s.poisoned++
	}
	s.mu.Unlock()
	if hit {
		return fault.New(code, "compute: poison")
	}
	if b.GetHidden() != nil {
		hidden, err := wire.Whole(b.GetHidden(), nil)
		if err != nil {
			return err
		}
		for _, v := range hidden {
			ids = append(ids, uint32(v))
		}
	}
	if b, ids, err = p.withAdapters(b, ids); err != nil || len(b.GetEntries()) == 0 {
		return err
	}
	s.mu.Lock()
	cost := s.cost
	s.mu.Unlock()
	if cost != nil {
		took := cost(len(ids))
		s.mu.Lock()
		s.busy = took
		s.took += took
		s.mu.Unlock()
		computed := time.NewTimer(took)
		select {
		case <-computed.C:
		case <-ctx.Done():
			computed.Stop()
			return ctx.Err()
		}
	}
	rows, err := p.compute(b, ids)
	if err != nil {
		return err
	}
	s.mu.Lock()
	spoilt := s.spoilt
	s.mu.Unlock()
	if spoilt {
		return fault.New(fault.Internal, "compute: the rows are not finite")
	}
	if b.GetReplayUntil() == s.hi {
		return p.computed(b)
	}
	if p.down != nil {
		x := make([]float32, len(ids))
		for i, id := range ids {
			x[i] = float32(id)
		}
		head, _ := wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{len(ids), 1}, x)
		return p.down.Send(
			&shardv1.InferRequest{
				Frame: &shardv1.InferRequest_Batch{Batch: &shardv1.Batch{Step: b.GetStep(), Entries: b.GetEntries(),
					Hidden: head, ReplayUntil: b.GetReplayUntil()}},
			},
		)
	}
	if slices.ContainsFunc(b.GetEntries(), func(e *shardv1.Entry) bool { return e.GetLogits() == 0 }) {
		if err := p.computed(b); err != nil || len(rows) == 0 {
			return err
		}
	}
	return p.push.Send(&samplerv1.PushRequest{Frame: &samplerv1.PushRequest_Rows{Rows: &samplerv1.Rows{Rows: rows}}})
}

// refuse refuses a batch's entries if the shard is set to do so.
func (p *fakePipeline) refuse(b *shardv1.Batch) (bool, error) {
	p.shard.mu.Lock()
	refuse := p.shard.refuse
	p.shard.mu.Unlock()
	if !refuse {
		return false, nil
	}
	for _, e := range b.GetEntries() {
		r := &shardv1.Refused{
			Session: e.GetSession(), Step: b.GetStep(), Code: uint32(codes.ResourceExhausted), Message: "no pages",
		}
		if err := p.answer(&shardv1.InferResponse{Frame: &shardv1.InferResponse_Refused{Refused: r}}); err != nil {
			return true, err
		}
	}
	return true, p.computed(b)
}

// computed says that a batch is done here.
func (p *fakePipeline) computed(b *shardv1.Batch) error {
	return p.answer(
		&shardv1.InferResponse{Frame: &shardv1.InferResponse_Computed{Computed: &shardv1.Computed{Step: b.GetStep()}}},
	)
}

// write puts an entry's ids into its pages and returns the session's log. It records what a real stage
// would refuse.
func (p *fakePipeline) write(e *shardv1.Entry, ids []uint32, replay bool) ([]uint32, error) {
	s, name, at := p.shard, string(e.GetSession()), int(e.GetPosition())
	table := s.tables[name]
	if len(e.GetPages()) > 0 {
		if int(e.GetPageFrom()) > len(table) {
			return nil, fault.Field("page_from", "%d is beyond the table's %d pages", e.GetPageFrom(), len(table))
		}
		table = append(slices.Clone(table[:e.GetPageFrom()]), e.GetPages()...)
		for _, page := range e.GetPages() {
			if page >= s.pages {
				return nil, fault.Field("pages", "%d is not below %d", page, s.pages)
			}
			if p.pages[page] == nil {
				p.pages[page] = []uint32{}
			}
		}
		if len(p.pages) > int(s.pages) {
			s.faults = append(s.faults, "more pages are mapped than there are")
		}
	}
	p.names[name], s.tables[name] = true, table
	if len(table)*pageLen < at+len(ids) {
		return nil, fault.Field("pages", "%d pages do not hold position %d", len(table), at+len(ids))
	}
	var log []uint32
	for i := range table {
		log = append(log, p.pages[table[i]]...)
	}
	if len(log) < at {
		s.faults = append(s.faults, "a row left a hole before its position")
		return nil, fault.Field("position", "%d leaves a hole after %d", at, len(log))
	}
	log = append(log[:at:at], ids...)
	for i := at / pageLen; i*pageLen < len(log); i++ {
		page := slices.Clone(log[i*pageLen : min(len(log), (i+1)*pageLen)])
		if old := p.pages[table[i]]; replay && len(old) > 0 {
			n := min(len(old), len(page))
			if !slices.Equal(old[:n], page[:n]) {
				s.faults = append(s.faults, "a replay has changed what a page holds")
			}
			page = append(page, old[n:]...) // the rows after these stay
		}
		for other := range p.names {
			if k := slices.Index(s.tables[other], table[i]); other != name && k >= 0 &&
				!slices.Equal(p.pages[table[i]], page) {
				s.faults = append(s.faults, "a row was written to a page that another table names")
			}
		}
		p.pages[table[i]] = page
	}
	return log, nil
}

// compute puts a batch's ids into the cache and, on the last stage, picks the next token.
func (p *fakePipeline) compute(b *shardv1.Batch, ids []uint32) ([]*samplerv1.Row, error) {
	s := p.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most = max(s.most, len(b.GetEntries()))
	var rows []*samplerv1.Row
	replay := b.GetReplayUntil() > 0
	if replay && b.GetReplayUntil() <= s.lo {
		s.faults = append(s.faults, "a replay went beyond its end")
	}
	for _, e := range b.GetEntries() {
		if replay && e.GetLogits() > 0 {
			s.faults = append(s.faults, "a replay wants logits")
		}
		n := int(e.GetRows())
		log, err := p.write(e, salted(ids[:n], e.GetAdapter()), replay)
		if err != nil {
			return nil, err
		}
		ids = ids[n:]
		s.rows += uint64(n)
		if replay {
			s.again += n
		}
		for i := range int(e.GetLogits()) {
			if s.hi < s.layers {
				break
			}
			end := len(log) - int(e.GetLogits()) + i + 1
			head, _ := wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{1}, []float32{1})
			row := &samplerv1.Row{
				Session: e.GetSession(), Epoch: e.GetEpoch(), Position: uint32(end - 1), LogSumExp: 1.5,
				Ids: []uint32{s.answer(log[:end])}, Logits: head,
			}
			switch {
			case i < len(e.GetTargets()): // a little less likely than the best
				target := e.GetTargets()[i]
				row.Target, row.Ids = &target, append(row.Ids, target)
				row.Logits, _ = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{2}, []float32{1, 0.5})
				if end < len(log) && log[end] != salted([]uint32{target}, e.GetAdapter())[0] {
					s.faults = append(s.faults, "a target is not the id that follows its row")
				}
			case len(e.GetDraftIds()) > 0 && i >= int(e.GetLogits())-len(e.GetDraftIds()):
				row.DraftId = &e.GetDraftIds()[i-int(e.GetLogits())+len(e.GetDraftIds())]
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}
