package trainer

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// batch is the data of a step.
type batch struct {
	slots   []*micro
	targets uint64 // that are not masked, or pairs
	tokens  uint64 // targets that are not masked
	bytes   uint64 // text of the targets

	pairLosses    [][]*shardv1.PairLoss // by slot
	rolloutLosses [][]*shardv1.RolloutLoss
	ledger        ledgerLine
}

// read reads the data of a step.
func (t *training) read(step uint64) (*batch, error) {
	m := t.run.manifest
	b := &batch{ledger: ledgerLine{Step: step}, pairLosses: make([][]*shardv1.PairLoss, m.Slots),
		rolloutLosses: make([][]*shardv1.RolloutLoss, m.Slots)}
	for slot := range m.Slots {
		data, err := t.data.slot(t.history.data(step), slot, m.SlotSequences)
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "read slot %d of step %d", slot, step)
		}
		data.Step = step
		b.slots = append(b.slots, data)
		b.targets, b.tokens, b.bytes = b.targets+data.counted, b.tokens+data.tokens, b.bytes+data.bytes
		b.ledger.Slots = append(b.ledger.Slots, ledgerSlot{Slot: slot, Replica: -1, Samples: data.samples})
	}
	return b, nil
}

// lost records the loss of a slot, which must come once.
func (b *batch) lost(l *shardv1.Loss, replica int) error {
	slot := int(l.GetSlot())
	if slot >= len(b.slots) || l.GetStep() != b.ledger.Step {
		return fault.New(fault.Internal, "step %d: got the loss of slot %d of step %d", b.ledger.Step, slot,
			l.GetStep())
	}
	if entry := &b.ledger.Slots[slot]; entry.Replica < 0 {
		entry.Replica = replica
	} else {
		return fault.New(fault.Internal, "step %d: replicas %d and %d have both run slot %d", b.ledger.Step,
			entry.Replica, replica, slot)
	}
	if l.GetTargets() != b.slots[slot].counted {
		return fault.New(fault.Internal, "step %d: slot %d has %d targets, its loss is of %d", b.ledger.Step, slot,
			b.slots[slot].counted, l.GetTargets())
	}
	if want := b.slots[slot]; len(l.GetPairs()) != len(want.GetPairs()) ||
		len(l.GetRollouts()) != len(want.GetRollouts()) {
		return fault.New(fault.Internal, "step %d: slot %d has %d pairs and %d rollouts, got the losses of %d and %d",
			b.ledger.Step, slot, len(want.GetPairs()), len(want.GetRollouts()), len(l.GetPairs()), len(l.GetRollouts()))
	}
	b.pairLosses[slot], b.rolloutLosses[slot] = l.GetPairs(), l.GetRollouts()
	return nil
}
