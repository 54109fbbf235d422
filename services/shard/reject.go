package shard

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/compress"
	"github.com/lamina-mesh/lamina/pkg/fault"
	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// evidenceBytes bounds how much of a gradient at fault a stage sends to the trainer.
const evidenceBytes = 256 << 10

// errNotFinite says that a gradient has a value that is not a number or infinite, or that its norm is.
var errNotFinite = fault.New(fault.DataLoss, "the gradient is not finite")

// hugeError says that a gradient's norm exceeds its limit.
type hugeError struct{ norm, limit float64 }

func (e *hugeError) Error() string {
	return fmt.Sprintf("a norm of %.3g is more than the largest one, %.3g", e.norm, e.limit)
}

// FaultCode returns DataLoss.
func (e *hugeError) FaultCode() fault.Code { return fault.DataLoss }

// eventError says what is wrong with an event.
type eventError struct {
	key   gradbus.Key
	stale bool
	what  string
}

func (e *eventError) Error() string { return fmt.Sprintf("read gradient event %v: %s", e.key, e.what) }

// FaultCode returns DataLoss.
func (e *eventError) FaultCode() fault.Code { return fault.DataLoss }

// reasonOf returns the reason for which a gradient with an error is rejected.
func reasonOf(err error) shardv1.RejectReason {
	var huge *hugeError
	var event *eventError
	switch {
	case errors.Is(err, errNotFinite), errors.Is(err, compress.ErrNotFinite):
		return shardv1.RejectReason_REJECT_REASON_NOT_FINITE
	case errors.As(err, &huge):
		return shardv1.RejectReason_REJECT_REASON_HUGE
	case errors.As(err, &event) && event.stale:
		return shardv1.RejectReason_REJECT_REASON_STALE
	}
	return shardv1.RejectReason_REJECT_REASON_MISSHAPEN
}

// head returns the bytes of the first values of a gradient.
func (r *trainRun) head(x kernel.Buffer[float32]) []byte {
	return wire.Bytes(r.set().Host(x[:min(len(x), evidenceBytes/4)]))
}

// reject returns the error for a node whose gradient must not be used. size is that of the whole evidence.
func (m *mailbox) reject(p *parcel, n schedule.Node, why shardv1.RejectReason, evidence []byte, size int,
	err error) error {
	from := p.publishers[n]
	return m.rejection(p.part, n, m.run.members.shares[from].replica, why, evidence, size, err)
}

// rejectEvent returns the error for an event that must not be used. The node's publisher is to blame or, if
// nobody publishes the node, the replica that the event names. An event of neither is dropped.
func (m *mailbox) rejectEvent(p *parcel, n schedule.Node, e gradbus.Event, err error) error {
	if from, ok := p.publishers[n]; ok {
		return m.rejection(p.part, n, m.run.members.shares[from].replica, reasonOf(err), e.Data, len(e.Data), err)
	}
	var g eventv1.Gradient
	if proto.Unmarshal(e.Data, &g) == nil {
		for _, s := range m.run.members.shares {
			if s.replica == int(g.GetReplica()) {
				return m.rejection(p.part, n, s.replica, reasonOf(err), e.Data, len(e.Data), err)
			}
		}
	}
	m.run.service.log.Warn("drop a gradient event of nobody", "error", err)
	return nil
}

func (m *mailbox) rejection(part string, n schedule.Node, replica int, why shardv1.RejectReason, evidence []byte,
	size int, err error) error {
	return &rejection{
		frame: &shardv1.Rejected{Replica: uint32(replica), Reason: why, Message: err.Error(), Part: part,
			SlotLo: uint32(n.Lo), SlotHi: uint32(n.Hi), Evidence: evidence[:min(len(evidence), evidenceBytes)],
			EvidenceBytes: uint64(size), EvidenceChecksum: wire.Checksum(evidence)},
		err: fault.Wrap(fault.DataLoss, err, "read %s slots %d-%d of step %d", part, n.Lo, n.Hi, m.at.step),
	}
}
