// Package gradbus carries gradient events between the shards of a training run. A
// Bus delivers at least once, and in the order of storing within a part of a run;
// the key of an event says what it is, so whoever folds takes each once. NewMemory
// is the twin inside one process, gradbus/nats the one on JetStream; gradbustest
// holds the contract that both pass.
//
// The bus carries bytes: lamina.event.v1 says what they mean. No store is for ever:
// publishers keep what they sent until the step that used it is committed, and
// publish it again when it is asked for. That costs nothing when the bus has it.
package gradbus
