// Package nats implements the journal of requests with NATS JetStream. All requests share one
// stream with Limits retention, an age limit and a limit of bytes, which refuses new records when it
// is full. A request is a subject, and a writer's turn is the server's check of the last sequence
// number of that subject. Only cmd/lamina and tests import this package.
package nats

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/journal"
)

const (
	streamName = "LAMINA_REQUESTS"
	subjects   = "lamina.request"

	tries      = 4
	ackWait    = 2 * time.Second
	pauseFirst = 20 * time.Millisecond

	defaultBytes = 256 << 20
	defaultAge   = time.Hour
)

// Config holds the settings of a journal.
type Config struct {
	Limits journal.Limits // zero fields mean 256 MiB and one hour
	Memory bool           // keep the stream in memory instead of in files
}

// Journal implements journal.Journal with JetStream.
type Journal struct {
	conn   *nats.Conn
	js     jetstream.JetStream
	config Config

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu     sync.Mutex
	stream jetstream.Stream // nil until it is known to exist
}

// New returns a journal on a connection, which its Close closes. It does not wait for the server.
func New(conn *nats.Conn, c Config) (*Journal, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "open jetstream")
	}
	if c.Limits.Bytes == 0 {
		c.Limits.Bytes = defaultBytes
	}
	if c.Limits.Age == 0 {
		c.Limits.Age = defaultAge
	}
	j := &Journal{conn: conn, js: js, config: c}
	j.ctx, j.cancel = context.WithCancel(context.Background())
	return j, nil
}

// Open makes sure that the stream exists. Append and Read do this too; a router calls Open when it starts,
// so that its first requests do not wait for the stream.
func (j *Journal) Open(ctx context.Context) error {
	if _, err := j.open(ctx); err != nil {
		return j.wrap(ctx, err, "open the journal")
	}
	return nil
}

// open returns the stream, and creates it unless it is known to exist.
func (j *Journal) open(ctx context.Context) (jetstream.Stream, error) {
	j.mu.Lock()
	s := j.stream
	j.mu.Unlock()
	if s != nil {
		return s, nil
	}
	storage := jetstream.FileStorage
	if j.config.Memory {
		storage = jetstream.MemoryStorage
	}
	s, err := j.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: streamName, Subjects: []string{subjects + ".*"}, Retention: jetstream.LimitsPolicy,
		Discard: jetstream.DiscardNew, MaxBytes: j.config.Limits.Bytes, MaxAge: j.config.Limits.Age,
		MaxMsgSize: journal.MaxRecord + 4096, Storage: storage, AllowDirect: true,
		// The server refuses a window for duplicates that is longer than the age.
		Duplicates: min(j.config.Limits.Age, 2*time.Minute),
	})
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stream = s
	return s, nil
}

// forget makes the next operation check the stream again.
func (j *Journal) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stream = nil
}

func subject(k journal.Key) string { return subjects + "." + k.Hash() }

// Append stores a record.
func (j *Journal) Append(ctx context.Context, k journal.Key, after uint64, data []byte) (uint64, error) {
	if err := journal.Check(data); err != nil {
		return 0, err
	}
	pause := pauseFirst
	for try := 1; ; try++ {
		seq, err := j.store(ctx, k, after, data)
		switch {
		case err == nil:
			return seq, nil
		case overtaken(err):
			return j.conflict(ctx, k, after, data)
		case ctx.Err() != nil || j.ctx.Err() != nil || try == tries || full(err):
			return 0, j.wrap(ctx, err, "append record %s", k.Hash())
		}
		wait(ctx, pause/2+rand.N(pause))
		pause *= 2
	}
}

// store makes one attempt to store a record.
func (j *Journal) store(ctx context.Context, k journal.Key, after uint64, data []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()
	if _, err := j.open(ctx); err != nil {
		return 0, err
	}
	ack, err := j.js.PublishMsg(ctx, &nats.Msg{Subject: subject(k), Data: data},
		jetstream.WithExpectLastSequencePerSubject(after), jetstream.WithRetryAttempts(0))
	if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		j.forget() // the stream was lost: the next attempt creates another
	}
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// conflict explains why the server refused the place of a record. If the last record is the same one
// after the same one, an earlier attempt has stored it and only the ack was lost.
func (j *Journal) conflict(ctx context.Context, k journal.Key, after uint64, data []byte) (uint64, error) {
	last, err := j.last(ctx, k)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return 0, fault.New(fault.NotFound, "append record %s: the records have expired", k.Hash())
	case err != nil:
		return 0, j.wrap(ctx, err, "append record %s", k.Hash())
	case last.Header.Get(jetstream.ExpectedLastSubjSeqHeader) == strconv.FormatUint(after, 10) &&
		bytes.Equal(last.Data, data):
		return last.Sequence, nil
	case after == 0:
		return 0, fault.New(fault.AlreadyExists, "append record %s: the request has records", k.Hash())
	}
	return 0, fault.New(fault.Aborted, "append record %s after %d: another writer has appended %d", k.Hash(), after,
		last.Sequence)
}

// last returns the last record of a request.
func (j *Journal) last(ctx context.Context, k journal.Key) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
	s, err := j.open(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.GetLastMsgForSubject(ctx, subject(k))
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, nats.ErrNoResponders) {
		j.forget()
	}
	return m, err
}

// Read returns the records of a request: those up to the one that was last when the call began.
func (j *Journal) Read(ctx context.Context, k journal.Key) ([]journal.Record, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()
	pause := pauseFirst
	for try := 1; ; try++ {
		records, err := j.read(ctx, k)
		switch {
		case err == nil && len(records) == 0 || errors.Is(err, jetstream.ErrMsgNotFound):
			return nil, fault.New(fault.NotFound, "read records %s: there are none", k.Hash())
		case err == nil:
			return records, nil
		case ctx.Err() != nil || try == tries:
			return nil, j.wrap(ctx, err, "read records %s", k.Hash())
		}
		wait(ctx, pause/2+rand.N(pause))
		pause *= 2
	}
}

func (j *Journal) read(ctx context.Context, k journal.Key) ([]journal.Record, error) {
	last, err := j.last(ctx, k)
	if err != nil {
		return nil, err
	}
	s, err := j.open(ctx)
	if err != nil {
		return nil, err
	}
	setup, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
	consumer, err := s.OrderedConsumer(setup, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject(k)}, DeliverPolicy: jetstream.DeliverAllPolicy, MaxResetAttempts: 1,
	})
	if err != nil {
		return nil, err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	defer messages.Stop()
	var out []journal.Record
	for {
		one, cancel := context.WithTimeout(ctx, ackWait)
		m, err := messages.Next(jetstream.NextContext(one))
		cancel()
		if err != nil {
			return nil, err
		}
		meta, err := m.Metadata()
		if err != nil {
			return nil, err
		}
		if meta.Sequence.Stream <= last.Sequence {
			out = append(out, journal.Record{Seq: meta.Sequence.Stream, Data: m.Data()})
		}
		if meta.Sequence.Stream >= last.Sequence || meta.NumPending == 0 {
			return out, nil
		}
	}
}

// Close closes the connection.
func (j *Journal) Close() error {
	j.cancel()
	j.conn.Close()
	return nil
}

// Error codes of the server.
const (
	codeResources = 10047 // a limit of the server
	codeStore     = 10077 // a limit of the stream
)

// overtaken reports whether the server refused the place of a record.
func overtaken(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// full reports whether the stream or the server is at a limit.
func full(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == codeStore || api.ErrorCode == codeResources)
}

// wrap turns a NATS error into a fault.
func (j *Journal) wrap(ctx context.Context, err error, format string, args ...any) error {
	code := fault.Unavailable
	switch {
	case j.ctx.Err() != nil:
		err = errors.New("the journal is closed")
	case ctx.Err() != nil:
		code, err = fault.CodeOf(ctx.Err()), errors.Join(ctx.Err(), err)
	case full(err):
		code = fault.Exhausted
	}
	return fault.Wrap(code, err, format, args...)
}

// wait sleeps unless ctx ends first.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
