package journal

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Memory is a journal for one process.
type Memory struct {
	limits Limits

	mu     sync.Mutex
	logs   map[Key][]memoryRecord
	seq    uint64
	bytes  int64
	closed bool
}

type memoryRecord struct {
	Record
	after  uint64
	stored time.Time
}

// NewMemory returns an empty journal.
func NewMemory(l Limits) *Memory { return &Memory{limits: l, logs: map[Key][]memoryRecord{}} }

// Append stores a record.
func (m *Memory) Append(ctx context.Context, k Key, after uint64, data []byte) (uint64, error) {
	if err := Check(data); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fault.Wrap(fault.CodeOf(err), err, "append record %s", k.Hash())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, fault.New(fault.Unavailable, "append record %s: the journal is closed", k.Hash())
	}
	m.expire()
	log := m.logs[k]
	if n := len(log); n > 0 && log[n-1].after == after && bytes.Equal(log[n-1].Data, data) {
		return log[n-1].Seq, nil
	}
	switch {
	case len(log) == 0 && after != 0:
		return 0, fault.New(fault.NotFound, "append record %s: the records have expired", k.Hash())
	case len(log) > 0 && after == 0:
		return 0, fault.New(fault.AlreadyExists, "append record %s: the request has records", k.Hash())
	case len(log) > 0 && log[len(log)-1].Seq != after:
		return 0, fault.New(fault.Aborted, "append record %s after %d: another writer has appended %d", k.Hash(),
			after, log[len(log)-1].Seq)
	case m.bytes+int64(len(data)) > m.limits.Bytes:
		return 0, fault.New(fault.Exhausted, "append record %s: the journal holds %d of %d bytes", k.Hash(), m.bytes,
			m.limits.Bytes)
	}
	m.seq++
	m.bytes += int64(len(data))
	m.logs[k] = append(log, memoryRecord{Record{m.seq, slices.Clone(data)}, after, time.Now()})
	return m.seq, nil
}

// expire drops records that are too old. The caller holds mu.
func (m *Memory) expire() {
	if m.limits.Age <= 0 {
		return
	}
	oldest := time.Now().Add(-m.limits.Age)
	for k, log := range m.logs {
		kept := slices.IndexFunc(log, func(r memoryRecord) bool { return r.stored.After(oldest) })
		if kept < 0 {
			kept = len(log)
		}
		for _, r := range log[:kept] {
			m.bytes -= int64(len(r.Data))
		}
		if m.logs[k] = log[kept:]; kept == len(log) {
			delete(m.logs, k)
		}
	}
}

// Read returns the records of a request.
func (m *Memory) Read(ctx context.Context, k Key) ([]Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "read records %s", k.Hash())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fault.New(fault.Unavailable, "read records %s: the journal is closed", k.Hash())
	}
	m.expire()
	log := m.logs[k]
	if len(log) == 0 {
		return nil, fault.New(fault.NotFound, "read records %s: there are none", k.Hash())
	}
	out := make([]Record, len(log))
	for i, r := range log {
		out[i] = Record{r.Seq, slices.Clone(r.Data)}
	}
	return out, nil
}

// Close ends the use of the journal.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}
