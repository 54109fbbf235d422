package nats

// This test is internal because two publishers that find damage at the same moment cannot be made from outside.

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// TestBus_TwoPublishersFindDamage lets one publisher empty the stream and publish again, after another one has found an
// event damaged as well. The other one leaves what is there now.
func TestBus_TwoPublishersFindDamage(t *testing.T) {
	e, err := NewEmbedded(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	b, err := e.Connect(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	event := func(chunk uint32) gradbus.Event {
		return gradbus.Event{Data: []byte{byte(chunk)},
			Key: gradbus.Key{Run: "r", Part: "0-2", Step: 1, SlotHi: 1, Chunk: chunk}}
	}
	for chunk := range uint32(2) { // what the first publisher has published since it has emptied the stream
		if err := b.Publish(ctx, event(chunk)); err != nil {
			t.Fatal(err)
		}
	}
	for _, found := range []gradbus.Event{event(1), event(2)} { // there again, and not there yet
		if err := b.discard(ctx, found.Key); err == nil {
			t.Error("the event is not to be published again")
		}
	}
	stream, err := b.js.Stream(ctx, streamName("r"))
	if err != nil {
		t.Fatal(err)
	}
	for chunk := range uint32(2) {
		var m *jetstream.RawStreamMsg
		if m, err = stream.GetLastMsgForSubject(ctx, subject(event(chunk).Key)); err != nil ||
			!bytes.Equal(m.Data, event(chunk).Data) {
			t.Errorf("event %d is gone: %v", chunk, err)
		}
	}
	if err := b.Publish(ctx, event(2)); err != nil {
		t.Error(err)
	}
}
