package nats

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

const (
	// prefetch is the number of events that a subscription requests in advance.
	prefetch = 16
	idleMax  = 30 * time.Second
)

// A subscription that reads nothing looks for events that it has skipped after idleFirst, and then after pauses that
// double up to idleMax.
var idleFirst = time.Second

// errSkipped says that the stream has events that a subscription has not read, although it is idle.
var errSkipped = fault.New(fault.DataLoss, "the server has lost events and uses their sequence numbers again")

// Subscribe reads a part with an ordered consumer. When the consumer breaks, another one continues
// after the last event that was read, or from the start if the stream is a new one. Events of
// earlier steps that have not been purged are read and dropped.
func (b *Bus) Subscribe(ctx context.Context, run, part string, from uint64) (gradbus.Subscription, error) {
	if err := gradbus.CheckName("run", run); err != nil {
		return nil, err
	}
	if err := gradbus.CheckName("part", part); err != nil {
		return nil, err
	}
	if err := b.stream(ctx, run); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return nil, b.wrap(ctx, b.ctx.Err(), "read %s.%s", run, part)
	}
	s := &subscription{bus: b, run: run, part: part, from: from, events: make(chan gradbus.Event),
		done: make(chan struct{}), seen: map[gradbus.Key]bool{}, idle: idleFirst}
	s.ctx, s.cancel = context.WithCancel(b.ctx)
	b.readers.Go(s.read)
	return s, nil
}

type subscription struct {
	bus       *Bus
	run, part string
	from      uint64

	ctx    context.Context // ends when the subscription or the bus is closed
	cancel context.CancelFunc
	events chan gradbus.Event
	done   chan struct{} // closed when read has returned

	mu     sync.Mutex
	broken error // why there is no consumer; nil while there is one

	// Only read uses these.
	created time.Time            // when the stream was created
	last    uint64               // sequence number of the last event that was read
	newest  uint64               // the latest step of which an event was read
	seen    map[gradbus.Key]bool // what was read of it and of the step before
	idle    time.Duration        // after which it looks for skipped events
	again   uint64               // sequence number up to which it reads for a second time
}

// Next waits for an event of the subscribed steps.
func (s *subscription) Next(ctx context.Context) (gradbus.Event, error) {
	if s.ctx.Err() == nil {
		select {
		case e := <-s.events:
			return e, nil
		case <-s.ctx.Done():
		case <-ctx.Done():
			s.mu.Lock()
			broken := s.broken
			s.mu.Unlock()
			return gradbus.Event{}, fault.Wrap(fault.CodeOf(ctx.Err()), errors.Join(ctx.Err(), broken), "read %s.%s",
				s.run, s.part)
		}
	}
	if s.bus.ctx.Err() != nil {
		return gradbus.Event{}, fault.New(fault.Unavailable, "read %s.%s: the bus is closed", s.run, s.part)
	}
	return gradbus.Event{}, fault.New(fault.Canceled, "read %s.%s: the subscription is closed", s.run, s.part)
}

// Close ends the subscription.
func (s *subscription) Close() error {
	s.cancel()
	<-s.done
	return nil
}

// read delivers the events of the part until the subscription ends.
func (s *subscription) read() {
	defer close(s.done)
	defer s.cancel()
	pause := pauseFirst
	for s.ctx.Err() == nil {
		before := s.last
		err := s.follow()
		if s.ctx.Err() != nil {
			return
		}
		s.note(err)
		if s.last != before {
			pause = pauseFirst
		}
		wait(s.ctx, jitter(pause))
		pause = min(2*pause, pauseMax)
	}
}

func (s *subscription) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
}

// follow delivers the events of one consumer until it breaks.
func (s *subscription) follow() error {
	messages, err := s.open()
	if err != nil {
		return err
	}
	defer messages.Stop()
	s.note(nil)
	for {
		m, err := s.next(messages)
		if errors.Is(err, context.DeadlineExceeded) && s.ctx.Err() == nil {
			s.idle = min(2*s.idle, idleMax)
			if s.skipped() {
				s.again, s.last = max(s.again, s.last), 0 // read all that is stored
				return errSkipped
			}
			continue
		}
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		key, err := parse(m.Subject(), s.run, s.part)
		if err != nil {
			return err
		}
		known := meta.Sequence.Stream <= s.again && (s.seen[key] || !s.recent(key))
		s.saw(key)
		if key.Step >= s.from && !known {
			select {
			case s.events <- gradbus.Event{Key: key, Data: m.Data()}:
			case <-s.ctx.Done():
				return s.ctx.Err()
			}
		}
		s.last = meta.Sequence.Stream
	}
}

// next waits for a message for a limited time.
func (s *subscription) next(messages jetstream.MessagesContext) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.idle)
	defer cancel()
	return messages.Next(jetstream.NextContext(ctx))
}

// saw notes that an event has been read. Of earlier steps nothing is kept.
func (s *subscription) saw(k gradbus.Key) {
	if k.Step > s.newest {
		s.newest = k.Step
		maps.DeleteFunc(s.seen, func(old gradbus.Key, _ bool) bool { return !s.recent(old) })
	}
	if s.recent(k) && !s.seen[k] {
		s.seen[k] = true
		s.idle = idleFirst
	}
}

// recent reports whether an event belongs to a step that readers may still wait for.
func (s *subscription) recent(k gradbus.Key) bool { return k.Step >= s.from && k.Step+1 >= s.newest }

// skipped reports whether the stream has an event that this subscription has not read.
func (s *subscription) skipped() bool {
	ctx, cancel := context.WithTimeout(s.ctx, ackWait)
	defer cancel()
	stream, err := s.bus.js.Stream(ctx, streamName(s.run))
	if err != nil {
		return false
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(partSubject(s.run, s.part)))
	if err != nil {
		return false
	}
	for name := range info.State.Subjects {
		if key, err := parse(name, s.run, s.part); err == nil && s.recent(key) && !s.seen[key] {
			return true
		}
	}
	return false
}

// open creates a consumer that continues after the last event that was read.
func (s *subscription) open() (jetstream.MessagesContext, error) {
	ctx, cancel := context.WithTimeout(s.ctx, ackWait)
	defer cancel()
	stream, err := s.bus.js.Stream(ctx, streamName(s.run))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s.bus.forget(s.run)
		if err := s.bus.stream(ctx, s.run); err != nil {
			return nil, err
		}
		stream, err = s.bus.js.Stream(ctx, streamName(s.run))
	}
	if err != nil {
		return nil, err
	}
	if made := stream.CachedInfo().Created; !made.Equal(s.created) {
		s.created, s.last, s.again = made, 0, 0
	}
	config := jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{partSubject(s.run, s.part)}, DeliverPolicy: jetstream.DeliverAllPolicy,
		MaxResetAttempts: 1,
	}
	if s.last > 0 {
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, s.last+1
	}
	consumer, err := stream.OrderedConsumer(ctx, config)
	if err != nil {
		return nil, err
	}
	return consumer.Messages(jetstream.PullMaxMessages(prefetch))
}
