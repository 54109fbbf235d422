// Package nats implements the gradient bus with NATS JetStream. Each run has one stream with
// Limits retention that refuses new events when it is full. Subscribers use ordered consumers.
// The bytes in flight are bounded, because the server drops a burst that exceeds its ingest
// queue. Only cmd/lamina and the test harness import this package.
//
// The subject of a message is the key of the event, and a stream keeps one message for each
// subject and refuses a second one. So publishing an event again has no effect. The
// de-duplication of the server by message id would not do: it forgets an id after minutes, and
// it remembers the ids of messages that were purged.
//
// An ack does not mean that an event is durable. Reducers identify events by their keys, and a
// publisher keeps its events until the step is committed.
//
// The server has a checksum for each message and drops one that its disk has damaged, or all that
// come after it in a block. It still lists the subject, so it would refuse the event for ever. A
// publisher that finds this empties the stream. A server that has lost the end of a stream gives
// out its sequence numbers again, and a consumer that is ahead of them would skip events. So a
// subscription that has been idle for a while compares what is stored with what it has read.
package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
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

// Config says how to reach a server and how much a run may store.
type Config struct {
	URL      string // "nats://host:port", more than one separated by commas; ignored by Embedded.Connect
	User     string
	Password string
	Token    string
	Creds    string       // a credentials file
	NKey     string       // a file with the seed of an nkey
	CA       string       // certificate authority of the server (PEM file); empty for those of the system
	TLS      *tls.Config  // nil: the URL decides
	MaxBytes int64        // of a run's stream; 0 means 1 GiB
	MaxMsgs  int64        // of a run's stream; 0 means no limit
	Memory   bool         // keep streams in memory instead of in files
	Log      *slog.Logger // nil for none
}

// Bus implements gradbus.Bus with JetStream.
type Bus struct {
	conn   *nats.Conn
	js     jetstream.JetStream
	config Config
	flight *semaphore.Weighted
	// mending lets one publisher empty a stream at a time.
	mending *semaphore.Weighted

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	mu      sync.Mutex
	streams map[string]bool // runs whose stream is known to exist
	readers sync.WaitGroup

	connected    chan struct{} // closed when the server has been reached for the first time
	disconnected chan struct{} // closed when the connection has been given up
}

// reconnectDelay returns the pause after a number of failed attempts to reach a server. It doubles
// up to a limit and has jitter.
func reconnectDelay(tries int) time.Duration {
	d := min(reconnectFirst<<min(tries, 10), reconnectMax)
	return d/2 + rand.N(d)
}

// Connect connects to a NATS server, and connects again whenever the connection is lost. It does
// not wait for a server that cannot be reached: the bus retries in the background, and Await waits
// for it. Meanwhile an operation waits until its context ends and then returns Unavailable.
func Connect(c Config) (*Bus, error) { return connect(c, c.options()...) }

// Dial returns a connection that behaves as that of Connect, for others that use the server.
func Dial(c Config) (*nats.Conn, error) { return dial(c, c.options()...) }

func dial(c Config, options ...nats.Option) (*nats.Conn, error) {
	conn, err := nats.Connect(c.URL, options...)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "connect to nats")
	}
	return conn, nil
}

func (c Config) options() []nats.Option {
	options := []nats.Option{
		nats.Name("lamina"), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.CustomReconnectDelay(reconnectDelay),
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
	if c.CA != "" {
		options = append(options, nats.RootCAs(c.CA))
	}
	if c.NKey != "" {
		options = append(options, func(o *nats.Options) error {
			nkey, err := nats.NkeyOptionFromSeed(c.NKey)
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "read nkey %s", c.NKey)
			}
			return nkey(o)
		})
	}
	return options
}

func connect(c Config, options ...nats.Option) (*Bus, error) {
	connected, disconnected := make(chan struct{}), make(chan struct{})
	options = append(options, // each handler is called once
		nats.ConnectHandler(func(*nats.Conn) { close(connected) }),
		nats.ClosedHandler(func(*nats.Conn) { close(disconnected) }))
	conn, err := dial(c, options...)
	if err != nil {
		return nil, err
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
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	b := &Bus{conn: conn, js: js, config: c, flight: semaphore.NewWeighted(inFlight), streams: map[string]bool{},
		mending:   semaphore.NewWeighted(1),
		connected: connected, disconnected: disconnected}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// Await waits until the server has been reached for the first time. If ctx ends earlier, it
// returns Unavailable with the last error of the connection. If the server has refused the
// credentials twice, the bus gives up and Await returns Unauthenticated.
func (b *Bus) Await(ctx context.Context) error {
	select {
	case <-b.connected:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Unavailable, errors.Join(ctx.Err(), b.conn.LastError()), "connect to nats")
	case <-b.disconnected:
		if b.ctx.Err() != nil {
			return fault.New(fault.Canceled, "connect to nats: the bus is closed")
		}
		return fault.Wrap(fault.Unauthenticated, b.conn.LastError(), "connect to nats")
	}
}

// stream creates the stream of a run unless it is known to exist.
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
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxBytes: b.config.MaxBytes,
		MaxMsgs:           b.config.MaxMsgs,
		MaxMsgsPerSubject: 1, DiscardNewPerSubject: true, MaxMsgSize: gradbus.MaxEvent + 4096, Storage: storage,
	})
	if err != nil {
		return b.wrap(ctx, err, "create the stream of run %s", run)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.streams[run] = true
	return nil
}

// forget makes the next use of a run check its stream.
func (b *Bus) forget(run string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.streams, run)
}

// wrap turns a NATS error into a fault.
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

// Error codes of the server that mean that it cannot store more.
const (
	codeResources = 10047 // a limit of the server
	codeStore     = 10077 // a limit of the stream
)

// refused reports whether the stream or the server is at a limit.
func refused(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == codeStore || api.ErrorCode == codeResources)
}

// Purge deletes the events before a step. A server that stops meanwhile does not answer, so the wait is bounded.
func (b *Bus) Purge(ctx context.Context, run string, before uint64) error {
	if err := gradbus.CheckName("run", run); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
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
		if err := stream.Purge(ctx,
			jetstream.WithPurgeSubject(fmt.Sprintf("%s.*.%d.>", runSubject(run), step))); err != nil {
			return err
		}
	}
	return nil
}

// Remove deletes a run and its stream.
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

// Close ends the subscriptions and closes the connection.
func (b *Bus) Close() error {
	b.mu.Lock()
	b.cancel()
	b.mu.Unlock()
	b.conn.Close()
	b.readers.Wait()
	return nil
}
