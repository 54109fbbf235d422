// Package nats is the gradient bus on NATS JetStream: one stream with Limits
// retention that refuses new events when it is full, ordered consumers, and a bound
// on the bytes in flight, because a burst beyond the server's ingest queue is
// dropped. An ack is not durability and the server's de-duplication is a window of
// minutes: the folding side goes by keys, and a publisher keeps its own until the
// step is committed.
package nats

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

const (
	inFlight     = 4 << 20 // bytes published and not yet acked
	ackWait      = 5 * time.Second
	tries        = 6
	defaultBytes = 1 << 30
)

// Config says how a server is reached and how much it may store.
type Config struct {
	URL      string // "nats://host:port"; ignored by Embedded.Connect
	User     string
	Password string
	Token    string
	MaxBytes int64 // of the stream; 0 means 1 GiB
	Memory   bool  // keep streams in memory instead of in files
}

// Bus is a gradbus.Bus on JetStream.
type Bus struct {
	conn    *nats.Conn
	js      jetstream.JetStream
	config  Config
	flight  *semaphore.Weighted
	mu      sync.Mutex
	made    bool // the stream is there
}

// Connect joins a NATS server.
func Connect(c Config) (*Bus, error) {
	options := []nats.Option{nats.Name("lamina"), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond)}
	if c.User != "" {
		options = append(options, nats.UserInfo(c.User, c.Password))
	}
	if c.Token != "" {
		options = append(options, nats.Token(c.Token))
	}
	return connect(c, options...)
}

func connect(c Config, options ...nats.Option) (*Bus, error) {
	conn, err := nats.Connect(c.URL, options...)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "connect to nats at %s", c.URL)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, fault.Wrap(fault.Internal, err, "open jetstream")
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = defaultBytes
	}
	return &Bus{conn: conn, js: js, config: c, flight: semaphore.NewWeighted(inFlight)}, nil
}

// token makes a name safe for subjects and stream names: letters, digits and '-'
// stay, other bytes become '_' and two hexadecimal digits.
func token(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
			b.WriteByte(c)
		default:
			b.WriteString("_" + hex.EncodeToString([]byte{c}))
		}
	}
	return b.String()
}

// Subjects are lamina.grad.RUN.PART.STEP.LO-HI.CHUNK.
func subject(k gradbus.Key) string {
	return fmt.Sprintf("lamina.grad.%s.%s.%d.%d-%d.%d", token(k.Run), token(k.Part), k.Step, k.SlotLo, k.SlotHi, k.Chunk)
}

// parse reads a subject back; run and part are the subscriber's own.
func parse(subject, run, part string) (gradbus.Key, error) {
	k := gradbus.Key{Run: run, Part: part}
	tokens := strings.Split(subject, ".")
	if len(tokens) != 7 {
		return k, fault.New(fault.DataLoss, "read event %s: want seven tokens", subject)
	}
	step, err := strconv.ParseUint(tokens[4], 10, 64)
	if err != nil {
		return k, fault.Wrap(fault.DataLoss, err, "read event %s", subject)
	}
	k.Step = step
	if _, err := fmt.Sscanf(tokens[5]+" "+tokens[6], "%d-%d %d", &k.SlotLo, &k.SlotHi, &k.Chunk); err != nil {
		return k, fault.Wrap(fault.DataLoss, err, "read event %s", subject)
	}
	return k, nil
}

// streamName is the one stream that all runs share: a stream reserves its limit, so
// one a run would use a server up.
const streamName = "LAMINA_GRAD"

// stream makes sure of the stream.
func (b *Bus) stream(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.made {
		return nil
	}
	storage := jetstream.FileStorage
	if b.config.Memory {
		storage = jetstream.MemoryStorage
	}
	_, err := b.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: streamName, Subjects: []string{"lamina.grad.>"},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxBytes: b.config.MaxBytes,
		Storage: storage, Duplicates: 2 * time.Minute, MaxMsgSize: gradbus.MaxEvent + 4096,
	})
	if err != nil {
		return wrap(ctx, err, "make stream %s", streamName)
	}
	b.made = true
	return nil
}

// wrap maps a NATS error.
func wrap(ctx context.Context, err error, format string, args ...any) error {
	code := fault.Unavailable
	var api *jetstream.APIError
	switch {
	case ctx.Err() != nil:
		code, err = fault.CodeOf(ctx.Err()), ctx.Err()
	case errors.As(err, &api) && full(api):
		code = fault.Exhausted
	}
	return fault.Wrap(code, err, format, args...)
}

// full reports a stream at its limits (10077 and 10047 in the server's error table).
func full(e *jetstream.APIError) bool { return e.ErrorCode == 10077 || e.ErrorCode == 10047 }

// Publish stores an event and waits for the ack; a lost ack or a full ingest queue
// is tried again under the same id.
func (b *Bus) Publish(ctx context.Context, e gradbus.Event) error {
	if err := gradbus.Check(e); err != nil {
		return err
	}
	if err := b.stream(ctx); err != nil {
		return err
	}
	weight := int64(len(e.Data)) + 1
	if err := b.flight.Acquire(ctx, weight); err != nil {
		return wrap(ctx, err, "publish %v", e.Key)
	}
	defer b.flight.Release(weight)
	pause := 20 * time.Millisecond
	for try := 1; ; try++ {
		attempt, cancel := context.WithTimeout(ctx, ackWait)
		_, err := b.js.Publish(attempt, subject(e.Key), e.Data, jetstream.WithMsgID(e.Key.String()))
		cancel()
		if err == nil {
			return nil
		}
		var api *jetstream.APIError
		if ctx.Err() != nil || try == tries || errors.As(err, &api) && full(api) {
			return wrap(ctx, err, "publish %v", e.Key)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause *= 2
	}
}

// Subscribe reads a part by an ordered consumer.
func (b *Bus) Subscribe(ctx context.Context, run, part string, from uint64) (gradbus.Subscription, error) {
	if err := b.stream(ctx); err != nil {
		return nil, err
	}
	consumer, err := b.js.OrderedConsumer(ctx, streamName, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"lamina.grad." + token(run) + "." + token(part) + ".>"},
		DeliverPolicy:  jetstream.DeliverAllPolicy,
	})
	if err != nil {
		return nil, wrap(ctx, err, "read part %s of run %s", part, run)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(64))
	if err != nil {
		return nil, wrap(ctx, err, "read part %s of run %s", part, run)
	}
	return &subscription{messages: messages, run: run, part: part, from: from}, nil
}

type subscription struct {
	messages  jetstream.MessagesContext
	run, part string
	from      uint64
}

// Next waits for an event of the wanted steps.
func (s *subscription) Next(ctx context.Context) (gradbus.Event, error) {
	for {
		m, err := s.messages.Next(jetstream.NextContext(ctx))
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return gradbus.Event{}, fault.Wrap(fault.Canceled, err, "read %s.%s", s.run, s.part)
		}
		if err != nil {
			return gradbus.Event{}, wrap(ctx, err, "read %s.%s", s.run, s.part)
		}
		key, err := parse(m.Subject(), s.run, s.part)
		if err != nil {
			return gradbus.Event{}, err
		}
		if key.Step >= s.from {
			return gradbus.Event{Key: key, Data: m.Data()}, nil
		}
	}
}

// Close ends the subscription.
func (s *subscription) Close() error {
	s.messages.Stop()
	return nil
}

// Purge forgets the events before a step, step by step as the subjects tell them.
func (b *Bus) Purge(ctx context.Context, run string, before uint64) error {
	if err := b.stream(ctx); err != nil {
		return err
	}
	stream, err := b.js.Stream(ctx, streamName)
	if err != nil {
		return wrap(ctx, err, "purge run %s", run)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter("lamina.grad."+token(run)+".>"))
	if err != nil {
		return wrap(ctx, err, "purge run %s", run)
	}
	steps := map[uint64]bool{}
	for subject := range info.State.Subjects {
		key, err := parse(subject, run, "")
		if err != nil {
			return err
		}
		if key.Step < before {
			steps[key.Step] = true
		}
	}
	for step := range steps {
		filter := fmt.Sprintf("lamina.grad.%s.*.%d.>", token(run), step)
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject(filter)); err != nil {
			return wrap(ctx, err, "purge run %s", run)
		}
	}
	return nil
}

// Close leaves the server.
func (b *Bus) Close() error {
	b.conn.Close()
	return nil
}

// Embedded is a NATS server inside this process that no network reaches.
type Embedded struct{ server *server.Server }

// NewEmbedded starts a server whose JetStream keeps its files in dir.
func NewEmbedded(dir string) (*Embedded, error) {
	s, err := server.NewServer(&server.Options{
		ServerName: "lamina", DontListen: true, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
		JetStreamMaxMemory: 4 << 30, JetStreamMaxStore: 16 << 30,
	})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "start embedded nats")
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, fault.New(fault.Unavailable, "start embedded nats: not ready in 10 s")
	}
	return &Embedded{s}, nil
}

// Connect joins the embedded server without a socket.
func (e *Embedded) Connect(c Config) (*Bus, error) {
	c.URL = "nats://embedded"
	return connect(c, nats.InProcessServer(e.server))
}

// Close stops the server.
func (e *Embedded) Close() error {
	e.server.Shutdown()
	e.server.WaitForShutdown()
	return nil
}
