package shard

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// A stage on a device passes its hidden states to the next one, on another device of the host, in memory that both
// can read (docs/rfd/005). The earlier stage writes a slot of a ring, and sends the batch when the device has done so.
// The later one copies the slot to its own device, and says so. What finds no slot goes over the wire, with the same
// bits, so nobody ever waits for a slot.

const (
	ringSlots    = 4               // of a ring: as many batches may wait at the next stage
	maxRingSlots = 64              // of a ring that another stage offers
	maxLeftRings = 4               // rings of broken streams, of all pipelines: with so many, no other is made
	ringGrace    = 3 * time.Minute // see Config.RingGrace
	maxReason    = 200             // bytes of what another stage says
)

// sharer is a device whose memory other processes read.
type sharer = kernel.Sharer[float32]

// ring is memory of this stage's device that the next stage reads. Its methods may be called if it is nil.
type ring struct {
	memory kernel.Exported[float32]
	width  int // of a row

	mu   sync.Mutex
	busy [ringSlots]bool // the next stage has not taken it yet
}

// claim returns a free slot for so many rows, from 1 on, or 0.
func (r *ring) claim(rows int) int {
	if r == nil || rows > workRows {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, busy := range r.busy {
		if !busy {
			r.busy[i] = true
			return i + 1
		}
	}
	return 0
}

// write copies rows to a slot that was claimed. It returns when they are there.
func (r *ring) write(slot int, x kernel.Buffer[float32]) { r.memory.Put((slot-1)*workRows*r.width, x) }

// taken frees the slot of a message.
func (r *ring) taken(t *shardv1.Taken) error {
	slot := t.GetSlot()
	if r == nil || slot >= ringSlots {
		return fault.Field("taken.slot", "slot %d was not offered", slot)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.busy[slot] {
		return fault.Field("taken.slot", "slot %d is not in use", slot)
	}
	r.busy[slot] = false
	return nil
}

// offer returns the message that offers the ring; nil for none.
func (r *ring) offer(host string) *shardv1.SharedMemory {
	if r == nil {
		return nil
	}
	return &shardv1.SharedMemory{Handle: r.memory.Handle(), Slots: ringSlots, Rows: workRows, DeviceHost: host}
}

// deviceHost names the host if the shard can read memory of other devices there.
func (s *Service) deviceHost() string {
	if s.sharer == nil {
		return ""
	}
	return s.cfg.Host
}

// export makes a ring for the next stage if that is on the same host. It returns nil, and why, if there is none.
func (p *pipeline) export(ctx context.Context, next shardv1.ShardServiceClient) (r *ring, reason string) {
	s := p.service
	switch {
	case s.deviceHost() == "":
		return nil, ""
	case p.hidden == tensorv1.ElementType_ELEMENT_TYPE_BF16:
		return nil, "hidden states are sent as bfloat16"
	}
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	there, err := next.Ping(ctx, &shardv1.PingRequest{})
	if err != nil { // opening the stage will fail too
		return nil, "the next stage does not answer"
	}
	if there.GetDeviceHost() != s.cfg.Host {
		return nil, "the next stage is on another host or on no device"
	}
	s.mu.Lock()
	left := s.leftRings
	s.mu.Unlock()
	if left >= maxLeftRings {
		return nil, fmt.Sprintf("the memory of %d streams that broke is not free yet", left)
	}
	width := p.held.stage.Spec.Width
	memory, err := s.sharer.Export(ringSlots * workRows * width)
	if err != nil {
		return nil, err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ringBytes += memory.Bytes()
	return &ring{memory: memory, width: width}, ""
}

// agree notes whether the next stage reads the ring, which was offered to it. If not, the ring is closed.
func (p *pipeline) agree(opened *shardv1.InferOpened, reason string) {
	if p.ring != nil && !opened.GetReadsMemory() {
		said := opened.GetMemoryRefused()
		reason = "the next stage says: " + strings.ToValidUTF8(said[:min(len(said), maxReason)], "?")
		p.service.dropRing(p.ring, true)
		p.ring = nil
	}
	p.service.noteWire(reason)
}

// noteWire keeps why hidden states go over the wire, and logs it if it is new.
func (s *Service) noteWire(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reason == s.onWire {
		return
	}
	if s.onWire = reason; reason != "" {
		s.log.Info("send hidden states over the wire", "reason", reason)
	}
}

// dropRing gives the memory of a ring back. If the next stage may still have it open, because the stream broke, that is
// done when every copy of it has come to an end or has cost the next stage its device.
func (s *Service) dropRing(r *ring, closed bool) {
	free := func() {
		r.memory.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ringBytes -= r.memory.Bytes()
	}
	s.mu.Lock()
	if closed || s.closed { // a process that ends frees everything
		s.mu.Unlock()
		free()
		return
	}
	defer s.mu.Unlock()
	s.leftRings++
	s.work.Go(func() {
		timer := time.NewTimer(s.cfg.RingGrace)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.ctx.Done():
		}
		free()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leftRings--
	})
}

// mapping is memory of the device of the stage before, which is open.
type mapping struct {
	memory             kernel.Imported[float32]
	slots, rows, width int // rows of a slot

	mu   sync.Mutex
	busy [maxRingSlots]bool // a batch in the queue needs it
}

// rowRun is a run of consecutive rows of a batch.
type rowRun struct{ row, rows int }

// readMemory opens the memory that the stage before has offered, if it has, and says in its answer what came of it.
func (p *pipeline) readMemory(offer *shardv1.SharedMemory) {
	if offer == nil {
		return
	}
	m, err := p.openMemory(offer)
	if err != nil {
		p.infoOpened.MemoryRefused = err.Error()
		return
	}
	p.mapping, p.infoOpened.ReadsMemory = m, true
}

// openMemory opens memory that was offered.
func (p *pipeline) openMemory(offer *shardv1.SharedMemory) (*mapping, error) {
	s := p.service
	m := &mapping{slots: int(offer.GetSlots()), rows: int(offer.GetRows()), width: p.held.stage.Spec.Width}
	switch {
	case p.held.stage.First():
		return nil, fault.Field("open.memory", "the first stage reads no hidden states")
	case s.deviceHost() == "":
		return nil, fault.New(fault.FailedPrecondition, "%s reads no memory of other processes", s.cfg.Kernels.Name())
	case offer.GetDeviceHost() != s.cfg.Host:
		return nil, fault.New(fault.FailedPrecondition, "the memory is of another host")
	case offer.GetSlots() == 0 || offer.GetSlots() > maxRingSlots:
		return nil, fault.Field("open.memory.slots", "%d are not within 1..%d", offer.GetSlots(), maxRingSlots)
	case offer.GetRows() == 0 || offer.GetRows() > maxRows:
		return nil, fault.Field("open.memory.rows", "%d are not within 1..%d", offer.GetRows(), maxRows)
	}
	var err error
	if m.memory, err = s.sharer.Import(offer.GetHandle(), m.slots*m.rows*m.width); err != nil {
		return nil, err
	}
	return m, nil
}

// check returns an error unless a batch of so many rows can be in its slot, and notes that it is.
func (m *mapping) check(b *shardv1.Batch, rows int) error {
	slot := b.GetSlot()
	switch {
	case m == nil || int64(slot) >= int64(m.slots):
		return fault.Field("batch.slot", "slot %d is not open", slot)
	case rows > m.rows:
		return fault.Field("batch.slot", "%d rows are more than the %d of a slot", rows, m.rows)
	case b.GetHidden() != nil:
		return fault.Field("batch.hidden", "the batch has a slot besides")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[slot] {
		return fault.Field("batch.slot", "slot %d has not been taken yet", slot)
	}
	m.busy[slot] = true
	return nil
}

// read copies runs of rows of a slot to x, one behind the other. Only what is called next on the device finds them.
func (m *mapping) read(slot uint32, runs []rowRun, x kernel.Buffer[float32]) {
	at := 0
	for _, r := range runs {
		n := r.rows * m.width
		m.memory.Get(x[at:at+n], (int(slot)*m.rows+r.row)*m.width)
		at += n
	}
}

// addRun appends rows to runs.
func addRun(runs []rowRun, row, rows int) []rowRun {
	if n := len(runs) - 1; n >= 0 && runs[n].row+runs[n].rows == row {
		runs[n].rows += rows
		return runs
	}
	return append(runs, rowRun{row, rows})
}

// taken waits until a batch's slot has been read, if it has one, and tells the stage before that it may be written
// again. A pass that returns no logits returns before the device has done anything.
func (p *pipeline) taken(b *shardv1.Batch) error {
	if b.Slot == nil {
		return nil
	}
	p.mapping.memory.Wait()
	p.mapping.mu.Lock()
	p.mapping.busy[b.GetSlot()] = false
	p.mapping.mu.Unlock()
	return p.send(&shardv1.InferResponse{Frame: &shardv1.InferResponse_Taken{Taken: &shardv1.Taken{Slot: b.GetSlot()}}})
}

// memoryClosed is the trailer of a stream by which a stage says that it has closed the memory that it was offered, or
// has not opened it. It is missing if the connection broke.
const memoryClosed = "lamina-memory-closed"

// unshare ends what the stream shares with its neighbours, and reports whether the memory of the stage before is
// closed.
func (p *pipeline) unshare() (closed bool) {
	closed = true
	if p.mapping != nil {
		if err := p.mapping.memory.Close(); err != nil { // so the stage before keeps the memory for a while
			p.service.log.Warn("close the memory of the stage before", "error", err)
			closed = false
		}
	}
	if p.ring != nil {
		p.service.dropRing(p.ring, p.ringClosed)
	}
	return closed
}

// sent counts hidden states that were sent.
func (s *Service) sent(path string, rows, width int) {
	s.hiddenFrames.WithLabelValues(path).Inc()
	s.hiddenBytes.WithLabelValues(path).Add(float64(4 * rows * width))
}

// slotOf returns the field of a batch for a slot, from 1 on.
func slotOf(slot int) *uint32 { return proto.Uint32(uint32(slot - 1)) }
