// Package gradbus carries gradient events between the shards of a training run. A Bus delivers
// each event at least once, and the events of a part of a run in the order in which they were
// stored. The key of an event identifies it, so that a reducer can use each event exactly once.
// NewMemory returns a bus for one process, and gradbus/nats implements one with JetStream.
// gradbustest is the test suite that both pass.
//
// The bus carries bytes, whose meaning lamina.event.v1 defines. A bus may lose what it has
// stored: publishers keep their events until the step that used them is committed, and publish
// them again on request. Publishing an event that is still stored has no effect.
package gradbus
