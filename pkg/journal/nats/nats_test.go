package nats_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/internal/natstest"
	"github.com/lamina-mesh/lamina/pkg/fault"
	bus "github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/journal/journaltest"
	"github.com/lamina-mesh/lamina/pkg/journal/nats"
)

func TestMain(m *testing.M) { leak.Main(m) }

func join(t *testing.T, e *bus.Embedded, c nats.Config) *nats.Journal {
	t.Helper()
	conn, err := e.Dial()
	if err != nil {
		t.Fatal(err)
	}
	j, err := nats.New(conn, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func TestJournal_KeepsTheContract(t *testing.T) {
	for name, memory := range map[string]bool{"Memory": true, "Files": false} {
		t.Run(name, func(t *testing.T) {
			journaltest.Run(t, func(t *testing.T, l journal.Limits) journal.Journal {
				return join(t, natstest.Embedded(t), nats.Config{Limits: l, Memory: memory})
			})
		})
	}
}

var key = journal.Key{Tenant: "t", ID: "r"}

func TestJournal_TwoConnectionsSeeOneLog(t *testing.T) {
	e := natstest.Embedded(t)
	a, b := join(t, e, nats.Config{Memory: true}), join(t, e, nats.Config{Memory: true})
	first, err := a.Append(t.Context(), key, 0, []byte("open"))
	if err != nil {
		t.Fatal(err)
	}
	records, err := b.Read(t.Context(), key)
	if err != nil || len(records) != 1 || records[0].Seq != first || string(records[0].Data) != "open" {
		t.Fatalf("read %v, %v", records, err)
	}
	if _, err := b.Append(t.Context(), key, first, []byte("taken")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Append(t.Context(), key, first, []byte("tokens")); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("the writer that was overtaken: %v", err)
	}
}

func dial(t *testing.T, url string) *nats.Journal {
	t.Helper()
	conn, err := bus.Dial(bus.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	j, err := nats.New(conn, nats.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func TestJournal_GoesOnWhenTheServerComesBack(t *testing.T) {
	dir := t.TempDir()
	s := natstest.Start(t, &server.Options{StoreDir: dir})
	port := s.Addr().(*net.TCPAddr).Port
	j := dial(t, s.ClientURL())
	first, err := j.Append(t.Context(), key, 0, []byte("open"))
	if err != nil {
		t.Fatal(err)
	}
	natstest.Stop(s)
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := j.Append(short, key, first, []byte("tokens")); fault.CodeOf(err) != fault.DeadlineExceeded {
		t.Errorf("append with no server: %v", err)
	}
	if _, err := j.Read(short, key); fault.CodeOf(err) != fault.DeadlineExceeded {
		t.Errorf("read with no server: %v", err)
	}
	natstest.Start(t, &server.Options{StoreDir: dir, Port: port})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for { // until the connection is there again
		// The client may have kept the record and sent it when the server came back.
		seq, err := j.Append(ctx, key, first, []byte("tokens"))
		if err == nil && seq > first {
			break
		}
		if fault.CodeOf(err) != fault.Unavailable || ctx.Err() != nil {
			t.Fatalf("append to a server that is back: %d, %v", seq, err)
		}
	}
	if records, err := j.Read(ctx, key); err != nil || len(records) != 2 {
		t.Errorf("read %d records, %v", len(records), err)
	}
}

func TestJournal_StoreThatWasErasedHasNoRecords(t *testing.T) {
	s := natstest.Start(t, &server.Options{})
	port := s.Addr().(*net.TCPAddr).Port
	j := dial(t, s.ClientURL())
	first, err := j.Append(t.Context(), key, 0, []byte("open"))
	if err != nil {
		t.Fatal(err)
	}
	natstest.Stop(s)
	natstest.Start(t, &server.Options{Port: port})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		_, err := j.Append(ctx, key, first, []byte("tokens"))
		if fault.CodeOf(err) == fault.NotFound {
			return
		}
		if fault.CodeOf(err) != fault.Unavailable || ctx.Err() != nil {
			t.Fatalf("append after a record that is gone: %v", err)
		}
	}
}
