// Package nats is the gradient bus on NATS JetStream: one stream a run with Limits
// retention that refuses new events when it is full, ordered consumers, and a bound
// on the bytes in flight, because a burst beyond the server's ingest queue is
// dropped. cmd/lamina and the test harness alone import it.
//
// An event's key is its subject, and a stream keeps one message a subject and
// refuses a second: that is what makes publishing again harmless. The server's
// own de-duplication by message id is not used: it forgets after minutes, and does
// not forget what was purged.
//
// An ack is not durability. The folding side goes by keys, and a publisher keeps its
// own until the step is committed.
package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

const (
	inFlight     = 4 << 20 // bytes published and not yet acked
	defaultBytes = 1 << 30

	reconnectFirst = 100 * time.Millisecond
	reconnectMax   = 5 * time.Second
)

// Config says how a server is reached and how much a run may store.
type Config struct {
	URL      string // "nats://host:port", more than one separated by commas; ignored by Embedded.Connect
	User     string
	Password string
	Token    string
	Creds    string      // a credentials file
	TLS      *tls.Config // nil for what the URL says
	MaxBytes int64       // of a run's stream; 0 means 1 GiB
	MaxMsgs  int64       // of a run's stream; 0 means no limit of its own
	Memory   bool        // keep streams in memory instead of in files
}

// Bus is a gradbus.Bus on JetStream.
type Bus struct {
	conn   *nats.Conn
	js     jetstream.JetStream
	config Config
	flight *semaphore.Weighted

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	mu      sync.Mutex
	streams map[string]bool // runs whose stream is known to be there
	readers sync.WaitGroup

	joined chan struct{} // closed when the server has been reached for the first time
	parted chan struct{} // closed when the connection has been given up
}

// reconnectDelay is the pause after so many failed tries to reach a server: it doubles
// up to a limit, with jitter.
func reconnectDelay(tries int) time.Duration {
	d := min(reconnectFirst<<min(tries, 10), reconnectMax)
	return d/2 + rand.N(d)
}

// Connect joins a NATS server, and joins it again whenever the connection is lost. A
// server that cannot be reached is tried again and again: Await waits for it. What is
// asked of the bus meanwhile is Unavailable when its context ends.
func Connect(c Config) (*Bus, error) {
	options := []nats.Option{
		nats.Name("lamina"), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.CustomReconnectDelay(reconnectDelay),
	}
	if c.User != "" {
		options = append(options, nats.UserInfo(c.User, c.Password))
	}
	if c.Token != "" {
		options = append(options, nats.Token(c.Token))
	}
	if c.Creds != "" {
		options = append(options, nats.UserCredentials(c.Creds))
	}
	if c.TLS != nil {
		options = append(options, nats.Secure(c.TLS))
	}
	return connect(c, options...)
}

func connect(c Config, options ...nats.Option) (*Bus, error) {
	joined, parted := make(chan struct{}), make(chan struct{})
	options = append(options, // each handler is called once
		nats.ConnectHandler(func(*nats.Conn) { close(joined) }), nats.ClosedHandler(func(*nats.Conn) { close(parted) }))
	conn, err := nats.Connect(c.URL, options...)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "connect to nats")
	}
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, fault.Wrap(fault.Internal, err, "open jetstream")
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = defaultBytes
	}
	if c.MaxMsgs == 0 {
		c.MaxMsgs = -1
	}
	b := &Bus{conn: conn, js: js, config: c, flight: semaphore.NewWeighted(inFlight), streams: map[string]bool{}, joined: joined, parted: parted}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// Await returns when the server has been reached for the first time, or ctx ends, which
// is Unavailable with the last error of the connection. A server that refuses the
// credentials twice is given up: Unauthenticated.
func (b *Bus) Await(ctx context.Context) error {
	select {
	case <-b.joined:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Unavailable, errors.Join(ctx.Err(), b.conn.LastError()), "connect to nats")
	case <-b.parted:
		if b.ctx.Err() != nil {
			return fault.New(fault.Canceled, "connect to nats: the bus is closed")
		}
		return fault.Wrap(fault.Unauthenticated, b.conn.LastError(), "connect to nats")
	}
}

// stream makes sure of a run's stream.
func (b *Bus) stream(ctx context.Context, run string) error {
	b.mu.Lock()
	known := b.streams[run]
	b.mu.Unlock()
	if known {
		return nil
	}
	storage := jetstream.FileStorage
	if b.config.Memory {
		storage = jetstream.MemoryStorage
	}
	_, err := b.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: streamName(run), Subjects: []string{runSubject(run) + ".>"},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxBytes: b.config.MaxBytes, MaxMsgs: b.config.MaxMsgs,
		MaxMsgsPerSubject: 1, DiscardNewPerSubject: true, MaxMsgSize: gradbus.MaxEvent + 4096, Storage: storage,
	})
	if err != nil {
		return b.wrap(ctx, err, "make stream of run %s", run)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.streams[run] = true
	return nil
}

// forget makes the next use of a run look for its stream.
func (b *Bus) forget(run string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.streams, run)
}

// wrap maps a NATS error.
func (b *Bus) wrap(ctx context.Context, err error, format string, args ...any) error {
	code := fault.Unavailable
	switch {
	case b.ctx.Err() != nil:
		err = errors.New("the bus is closed")
	case ctx.Err() != nil:
		code, err = fault.CodeOf(ctx.Err()), errors.Join(ctx.Err(), err)
	case refused(err):
		code = fault.Exhausted
	}
	return fault.Wrap(code, err, format, args...)
}

// Codes of the server's error table that mean that it cannot store more.
const (
	codeResources = 10047 // of the server
	codeStore     = 10077 // a limit of the stream
)

// refused reports a stream or server at its limits.
func refused(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == codeStore || api.ErrorCode == codeResources)
}

// Purge forgets the events before a step.
func (b *Bus) Purge(ctx context.Context, run string, before uint64) error {
	if err := gradbus.CheckName("run", run); err != nil {
		return err
	}
	if err := b.purge(ctx, run, before); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return b.wrap(ctx, err, "purge run %s before step %d", run, before)
	}
	return nil
}

func (b *Bus) purge(ctx context.Context, run string, before uint64) error {
	stream, err := b.js.Stream(ctx, streamName(run))
	if err != nil {
		return err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(runSubject(run)+".>"))
	if err != nil {
		return err
	}
	old := map[uint64]bool{}
	for subject := range info.State.Subjects {
		key, err := parse(subject, run, "")
		if err != nil {
			return err
		}
		if key.Step < before {
			old[key.Step] = true
		}
	}
	for step := range old {
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject(fmt.Sprintf("%s.*.%d.>", runSubject(run), step))); err != nil {
			return err
		}
	}
	return nil
}

// Remove forgets a run with its stream.
func (b *Bus) Remove(ctx context.Context, run string) error {
	if err := gradbus.CheckName("run", run); err != nil {
		return err
	}
	b.forget(run)
	if err := b.js.DeleteStream(ctx, streamName(run)); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return b.wrap(ctx, err, "remove run %s", run)
	}
	return nil
}

// Close ends the subscriptions and leaves the server.
func (b *Bus) Close() error {
	b.mu.Lock()
	b.cancel()
	b.mu.Unlock()
	b.conn.Close()
	b.readers.Wait()
	return nil
}
