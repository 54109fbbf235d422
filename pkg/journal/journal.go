// Package journal stores the logs of requests, so that another router can continue a request when
// its router is lost. A log is a sequence of records that only grows. A writer names the record that
// it has seen last, and the journal refuses its record if there is a newer one. So two routers that
// run the same request find out at their next record, and the one that was overtaken stops.
//
// NewMemory returns a journal for one process, and journal/nats implements one with JetStream.
// journaltest is the test suite that both pass.
//
// The journal carries bytes, whose meaning lamina.journal.v1 defines. It is bounded in bytes and
// keeps records for a limited time. Nothing on the path of a token waits for it: the router appends
// behind the tokens, and gives up on the journal of a request when it cannot keep up.
package journal

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// MaxRecord is the maximum size of a record in bytes.
const MaxRecord = 768 << 10

// Key names a request. Only its tenant can name it.
type Key struct {
	Tenant string
	ID     string
}

// Hash returns the key as 32 hexadecimal digits. It reveals neither part: the id of a request is
// what a client needs to read it.
func (k Key) Hash() string {
	sum := sha256.Sum256([]byte(k.Tenant + "\x00" + k.ID)) // a tenant has no zero byte
	return hex.EncodeToString(sum[:16])
}

// Record is a stored record.
type Record struct {
	Seq  uint64 // grows with each record of a request; not 0
	Data []byte // at most MaxRecord bytes; not changed after Append
}

// Journal stores the logs of requests. It is safe for concurrent use.
type Journal interface {
	// Append stores a record of a request after the record with the sequence number after, or
	// as the first one if after is 0, and returns its sequence number. It returns
	//   - AlreadyExists if after is 0 and the request has records;
	//   - Aborted if after is not the request's last record, because another writer has appended;
	//   - NotFound if after is not 0 and the request has no records: they have expired;
	//   - Exhausted if the journal is full, and Invalid if the record is too large;
	//   - Unavailable, or the code of ctx, if the journal cannot be reached. The record may be
	//     stored nevertheless, even later.
	// Appending a record again after the same one has no effect while it is the last: Append
	// returns its number. So a writer repeats a record whose fate it does not know, and the
	// records of two writers differ.
	Append(ctx context.Context, k Key, after uint64, data []byte) (uint64, error)
	// Read returns the records of a request in order. The first ones may have expired. It
	// returns NotFound if there are none.
	Read(ctx context.Context, k Key) ([]Record, error)
	// Close ends the use of the journal.
	Close() error
}

// Limits bound a journal.
type Limits struct {
	Bytes int64         // of all records together; a full journal refuses new ones
	Age   time.Duration // after which a record is dropped; 0 means never
}

// Check returns an error for a record that no journal accepts.
func Check(data []byte) error {
	if len(data) > MaxRecord {
		return fault.New(fault.Invalid, "append record: %d bytes are more than %d", len(data), MaxRecord)
	}
	return nil
}
