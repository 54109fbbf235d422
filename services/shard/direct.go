package shard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// direct exchanges gradients with the same stage of other replicas on this machine. Each direction is a Reduce
// call of its own: this stage calls it for what it sends, and Service.Reduce takes what it receives. A stream
// neither loses nor repeats anything, so a call that breaks ends the attempt.
//
// The Train goroutine begins and finishes attempts, sends and waits. The handlers of Reduce calls only add what
// arrives. A replica that is ahead has to wait: its gradients are taken when their attempt begins here.
type direct struct {
	run   *trainRun
	ctx   context.Context  // of the attempt; for the Train goroutine alone
	links map[string]*link // by chain; for the Train goroutine alone
	bytes uint64           // sent since the last report; for the Train goroutine alone

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when an attempt begins or something arrives
	at      attempt       // the last one that has begun
	end     context.CancelCauseFunc
	members members
	parcels map[string]*parcel // what this stage receives, by part
	partial map[arrival]*assembly
	whole   map[arrival][]byte
	bad     *badGradient      // the first one, until the attempt is finished
	torn    map[string]error  // why the last call of a chain broke
	calls   map[string]uint64 // the number of the last Reduce call of a chain, as long as it lasts
	numbers uint64            // that calls have had
}

// arrival is a node of a part.
type arrival struct {
	part string
	node schedule.Node
}

// badGradient is a gradient that must not be used.
type badGradient struct {
	arrival
	replica int
	data    []byte
	err     error
}

func newDirect(r *trainRun) *direct {
	return &direct{run: r, links: map[string]*link{}, changed: make(chan struct{}), partial: map[arrival]*assembly{},
		whole: map[arrival][]byte{}, torn: map[string]error{}, calls: map[string]uint64{}}
}

// linkError says that a call to or from another replica has broken. It ends the attempt and not the stream: the
// trainer knows whether the other replica is lost.
type linkError struct {
	replica int
	err     error
}

func (e *linkError) Error() string         { return e.err.Error() }
func (e *linkError) Unwrap() error         { return e.err }
func (e *linkError) FaultCode() fault.Code { return fault.Unavailable }

// report tells the trainer.
func (r *trainRun) report(a attempt, e *linkError) error {
	r.service.log.Warn("the attempt ends", "run", r.open.GetRun(), "step", a.step, "attempt", a.n, "error", e)
	return r.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_LinkBroken{LinkBroken: &shardv1.LinkBroken{
		Step: a.step, Attempt: a.n, Replica: uint32(e.replica), Message: e.Error()}}})
}

// begin begins an attempt, which end ends. An attempt that begins twice receives the same nodes again, so what has
// arrived is kept. The calls of an attempt that has failed are closed: something may have been lost in them.
func (d *direct) begin(ctx context.Context, end context.CancelCauseFunc, a attempt, m members, parcels []*parcel) {
	d.ctx = ctx
	var stale []*link
	d.mu.Lock()
	for chain, l := range d.links {
		if a.n > 0 && a != d.at || l.broken || !m.has(chain) {
			l.broken = true // what becomes of it is of no importance to the attempt that begins
			stale = append(stale, l)
			delete(d.links, chain)
		}
	}
	if a != d.at {
		clear(d.partial)
		clear(d.whole)
		d.bad = nil // it came after its attempt had ended, perhaps from a replica that is no member any more
	}
	d.at, d.end, d.members, d.parcels = a, end, m, map[string]*parcel{}
	for _, p := range parcels {
		d.parcels[p.part] = p
	}
	for chain, err := range d.torn {
		if !m.has(chain) {
			delete(d.torn, chain)
		}
		d.breakOff(chain, err)
	}
	d.wake()
	d.mu.Unlock()
	closeLinks(stale)
}

// flush waits until all that this stage has to send in the attempt is on its way. If a call cannot be made, its callee
// knows nothing of it and waits, so the attempt must not be over then: its end is how the trainer hears of it.
func (d *direct) flush() error {
	for _, l := range d.links {
		if err := l.window.Acquire(d.ctx, directWindow); err != nil {
			return context.Cause(d.ctx)
		}
		l.window.Release(directWindow)
	}
	return nil
}

// finish says that nobody waits any more.
func (d *direct) finish() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end, d.bad = nil, nil
}

// wake wakes those that wait. The caller holds mu.
func (d *direct) wake() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// takeBytes returns the bytes sent since the last call.
func (d *direct) takeBytes() uint64 {
	n := d.bytes
	d.bytes = 0
	return n
}

// await waits for a node of a parcel and returns its bytes.
func (d *direct) await(m *mailbox, p *parcel, n schedule.Node) ([]byte, error) {
	if p.size == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(d.ctx, meetTimeout)
	defer cancel()
	for {
		d.mu.Lock()
		data, changed, bad := d.whole[arrival{p.part, n}], d.changed, d.bad
		d.mu.Unlock()
		switch {
		case bad != nil:
			return nil, m.rejection(bad.part, bad.node, bad.replica, reasonOf(bad.err), bad.data, len(bad.data),
				bad.err)
		case data != nil:
			return data, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := context.Cause(ctx)
			return nil, fault.Wrap(fault.CodeOf(err), err, "wait for %s slots %d-%d of step %d from replica %d", p.part,
				n.Lo, n.Hi, m.at.step, m.run.members.shares[p.publishers[n]].replica)
		}
	}
}

// take takes a chunk of a node from a chain, when its attempt has begun.
func (d *direct) take(chain string, g *eventv1.Gradient) error {
	key := keyOf(g)
	at := attempt{key.Step, key.Attempt}
	where := arrival{key.Part, schedule.Node{Lo: int(key.SlotLo), Hi: int(key.SlotHi)}}
	d.mu.Lock()
	defer d.mu.Unlock()
	for at.after(d.at) && (d.at.step == 0 || at.step <= d.at.step+1) {
		changed := d.changed
		d.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-d.run.ctx.Done():
			err = context.Cause(d.run.ctx)
		}
		d.mu.Lock()
		if err != nil {
			return err
		}
	}
	from := d.members.at(chain)
	if d.at.after(at) || from < 0 { // of an attempt that is over, or of a replica that has left
		return nil
	}
	p := d.parcels[key.Part]
	var err error
	switch owner, ok := p.publisher(where.node); {
	case at.after(d.at):
		err = &eventError{key, true, "its step is too far ahead"}
	case !ok || owner != from || key.Run != d.run.open.GetRun():
		err = &eventError{key, false, "its replica does not send it"}
	case d.whole[where] != nil: // repeated
		return nil
	default:
		err = d.add(where, key, g, p)
	}
	if err != nil && d.bad == nil {
		d.bad = &badGradient{where, d.members.shares[from].replica, g.GetData(), err}
		d.wake()
	}
	return nil
}

// add adds a chunk of a node. The caller holds mu.
func (d *direct) add(where arrival, key gradbus.Key, g *eventv1.Gradient, p *parcel) error {
	if d.partial[where] == nil {
		d.partial[where] = &assembly{have: map[uint32]bool{}}
	}
	whole, err := d.partial[where].take(key, g, p)
	if whole != nil {
		delete(d.partial, where)
		d.whole[where] = whole
		d.wake()
	}
	return err
}

// publisher returns the place of the replica that a node of a parcel comes from.
func (p *parcel) publisher(n schedule.Node) (replica int, ok bool) {
	if p == nil {
		return 0, false
	}
	replica, ok = p.publishers[n]
	return replica, ok
}

// called notes a new Reduce call of a chain, and returns its number. No other call of any chain has it.
func (d *direct) called(chain string) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.torn, chain)
	d.numbers++
	d.calls[chain] = d.numbers
	return d.numbers
}

// ended forgets a call of a chain, unless the chain has called again.
func (d *direct) ended(chain string, call uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.calls[chain] == call {
		delete(d.calls, chain)
	}
}

// tear ends the attempt because a Reduce call of a chain has broken. Between attempts it is noted for the next
// one, unless the chain has called again.
func (d *direct) tear(chain string, call uint64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.calls[chain] != call {
		return
	}
	d.torn[chain] = err
	d.breakOff(chain, err)
}

// lost ends the attempt because the call to a chain has broken, unless it is not needed any more.
func (d *direct) lost(l *link, chain string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !l.broken {
		l.broken = true
		d.breakOff(chain, err)
	}
}

// breakOff ends the attempt if a chain takes part in it. The caller holds mu.
func (d *direct) breakOff(chain string, err error) {
	i := d.members.at(chain)
	if d.end == nil || i < 0 || d.run.ctx.Err() != nil {
		return
	}
	s := d.members.shares[i]
	d.end(&linkError{s.replica, fault.Wrap(fault.Unavailable, err, "exchange gradients directly with replica %d at %s",
		s.replica, s.address)})
	delete(d.torn, chain)
}

// Reduce receives gradients from the same stage of another replica until that stage closes its side.
func (s *Service) Reduce(stream grpc.BidiStreamingServer[shardv1.ReduceRequest, shardv1.ReduceResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	s.training.mu.Lock()
	r := s.training.runs[runKey(open.GetChain(), open.GetStage())]
	s.training.mu.Unlock()
	from := string(open.GetFrom())
	if r == nil || len(from) != idLen || bytes.Equal(open.GetFrom(), open.GetChain()) {
		return fault.New(fault.FailedPrecondition, "reduce stage %d of chain %x with chain %x: the stage is not open "+
			"on this shard, or its own caller", open.GetStage(), open.GetChain(), open.GetFrom())
	}
	call := r.direct.called(from)
	defer r.direct.ended(from, call)
	if err := stream.Send(&shardv1.ReduceResponse{}); err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && req.GetGradient() == nil {
			err = fault.Field("frame", "is not a gradient")
		}
		if err == nil {
			err = r.direct.take(from, req.GetGradient())
		}
		if err != nil {
			r.direct.tear(from, call, err)
			return err
		}
	}
}

// close ends all calls to other replicas. The run has ended or failed.
func (d *direct) close() {
	var all []*link
	for _, l := range d.links {
		all = append(all, l)
	}
	closeLinks(all)
}
