package gradbus_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// slow is a bus on which publishing takes a second, and which refuses or loses what a test says.
type slow struct {
	mu       sync.Mutex
	inFlight int
	most     int
	stored   map[gradbus.Key]int
	refuse   func(k gradbus.Key, attempt int) error
	attempts map[gradbus.Key]int
}

func newSlow() *slow {
	return &slow{stored: map[gradbus.Key]int{}, attempts: map[gradbus.Key]int{}}
}

func (s *slow) Publish(ctx context.Context, e gradbus.Event) error {
	s.mu.Lock()
	s.inFlight += len(e.Data)
	s.most = max(s.most, s.inFlight)
	s.attempts[e.Key]++
	attempt := s.attempts[e.Key]
	s.mu.Unlock()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight -= len(e.Data)
	if s.refuse != nil {
		if err := s.refuse(e.Key, attempt); err != nil {
			return err
		}
	}
	s.stored[e.Key]++
	return ctx.Err()
}

func outboxEvent(step uint64, chunk uint32) gradbus.Event {
	return gradbus.Event{Key: gradbus.Key{Run: "r", Part: "p", Step: step, SlotHi: 1, Chunk: chunk},
		Data: make([]byte, 100)}
}

func TestOutbox_BoundsTheBytesInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newSlow()
		o := gradbus.NewOutbox(t.Context(), bus, gradbus.OutboxConfig{Window: 350}, func(err error) { t.Error(err) })
		for i := range uint32(20) {
			if err := o.Publish(outboxEvent(1, i)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Second) // virtual
		synctest.Wait()
		if bus.most != 300 || len(bus.stored) != 20 || o.TakeBytes() != 2000 {
			t.Errorf("%d bytes were in flight, want 300; %d events are stored", bus.most, len(bus.stored))
		}
		o.Close()
	})
}

func TestOutbox_RefusedEventsAreTriedAgainUnderTheSameKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newSlow()
		bus.refuse = func(_ gradbus.Key, attempt int) error {
			if attempt < 4 {
				return fault.New(fault.Exhausted, "full")
			}
			return nil
		}
		o := gradbus.NewOutbox(t.Context(), bus, gradbus.OutboxConfig{Resend: time.Hour},
			func(err error) { t.Error(err) })
		if err := o.Publish(outboxEvent(1, 0)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if k := outboxEvent(1, 0).Key; bus.stored[k] != 1 || bus.attempts[k] != 4 {
			t.Errorf("stored %d times after %d attempts, want once after 4", bus.stored[k], bus.attempts[k])
		}
		o.Close()
	})
}

func TestOutbox_AnErrorIsReported(t *testing.T) {
	for _, code := range []fault.Code{fault.Unavailable, fault.Exhausted} {
		synctest.Test(t, func(t *testing.T) {
			bus := newSlow()
			bus.refuse = func(gradbus.Key, int) error { return fault.New(code, "no") }
			var got error
			o := gradbus.NewOutbox(t.Context(), bus, gradbus.OutboxConfig{Resend: time.Hour}, func(err error) {
				got = errors.Join(got, err)
			})
			if err := o.Publish(outboxEvent(1, 0)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			if fault.CodeOf(got) != code {
				t.Errorf("got %v, want %v", got, code)
			}
			o.Close()
		})
	}
}

func TestOutbox_LostEventsAreSentAgainUntilTheirStepIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newSlow()
		o := gradbus.NewOutbox(t.Context(), bus, gradbus.OutboxConfig{Resend: 10 * time.Second},
			func(err error) { t.Error(err) })
		for step := uint64(1); step <= 2; step++ {
			if err := o.Publish(outboxEvent(step, 0)); err != nil {
				t.Fatal(err)
			}
		}
		count := func(after time.Duration, first, second int) {
			t.Helper()
			time.Sleep(after)
			bus.mu.Lock()
			defer bus.mu.Unlock()
			a, b := bus.attempts[outboxEvent(1, 0).Key], bus.attempts[outboxEvent(2, 0).Key]
			if a != first || b != second {
				t.Errorf("%v later: published %d and %d times, want %d and %d", after, a, b, first, second)
			}
		}
		count(9*time.Second, 1, 1)
		count(5*time.Second, 2, 2)
		o.Commit(1)
		count(30*time.Second, 2, 3)
		o.Commit(2)
		count(time.Hour, 2, 3)
		o.Close()
		if err := o.Publish(outboxEvent(3, 0)); err == nil {
			t.Error("a closed outbox takes an event")
		}
		if err := o.Publish(gradbus.Event{}); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("an event without a name: %v", fmt.Sprint(err))
		}
	})
}
