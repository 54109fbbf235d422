package router_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/lamina-mesh/lamina/pkg/auth"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
	"github.com/lamina-mesh/lamina/services/router"
)

// heard passes on the events of a stream of Generate.
type heard struct {
	discard
	events chan *routerv1.GenerateResponse
}

func (h heard) Send(e *routerv1.GenerateResponse) error {
	select {
	case h.events <- e:
		return nil
	case <-h.ctx.Done():
		return h.ctx.Err()
	}
}

func traced(t *testing.T) (*trace.Tracer, *tracetest.InMemoryExporter) {
	t.Helper()
	out := tracetest.NewInMemoryExporter()
	tracer, err := trace.New(t.Context(), trace.Config{Exporter: out, Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tracer.Close() })
	return tracer, out
}

// TestResume_ATakenRequestIsPaidByItsOwnerAndTraced begins a request by the owner of a key at a router that is lost.
// The one that takes it over charges the owner's budget for what it generates, whoever resumes it, and its span is part
// of the trace that the first router has begun.
func TestResume_ATakenRequestIsPaidByItsOwnerAndTraced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tokens, budget = 128, 1000
		j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
		now := time.Now() // budgets gain nothing meanwhile
		guard := auth.NewGuard(nil, "")
		guard.Meters = auth.NewMeters(func() time.Time { return now })
		tracer, spans := traced(t)
		m := newMesh(t, 2, 1, router.Config{Journal: j, Meters: guard, Tracer: tracer})
		lostTracer, lostSpans := traced(t)
		lost := m.peer("router-b", router.Config{Journal: j, Tracer: lostTracer})
		m.slow(20 * time.Millisecond) // so that most of it is left when its router is lost
		owner := withKey(t, auth.Key{Tokens: budget})
		ctx, cancel := context.WithCancel(owner)
		defer cancel()
		stream := heard{discard{ctx: ctx}, make(chan *routerv1.GenerateResponse)}
		var work sync.WaitGroup
		work.Go(func() { _ = lost.service.Generate(resumable("whose", tokens), stream) }) // ends with its router
		p := part{}
		for e := range stream.events {
			if s := e.GetStarted(); s != nil {
				p.started, p.id = s, s.GetRequestId()
			}
			if token := e.GetToken(); token != nil {
				p.tokens = append(p.tokens, token)
			}
			if len(p.tokens) == 10 {
				break
			}
		}
		lost.cancel()
		cancel()
		work.Wait()
		lost.wait()
		m.slow(0)
		// The caller who resumes has no key at all, as one over another listener of the same tenant.
		if err := p.resume(patient(t), m.client, nil); err != nil {
			t.Fatal(err)
		}
		p.expect(t, "whose", tokens)
		var had int64 = -1
		eventually(t, "the span of the request that was taken over", func() bool {
			for _, s := range spans.GetSpans() {
				for _, e := range s.Events {
					for _, a := range e.Attributes {
						if a.Key == "lamina.resumed_tokens" {
							had = a.Value.AsInt64()
						}
					}
				}
				if had < 0 || s.Name != "text_completion fake" {
					continue
				}
				for _, first := range lostSpans.GetSpans() {
					if s.Parent.SpanID() == first.SpanContext.SpanID() &&
						s.SpanContext.TraceID() == first.SpanContext.TraceID() {
						return true
					}
				}
			}
			return false
		})
		meter, err := guard.Meters.Of(auth.From(owner).ID, 0, budget)
		if err != nil {
			t.Fatal(err)
		}
		if had < 1 || had >= tokens { // fewer than the client has read may have come to the journal
			t.Fatalf("%d tokens were in the journal", had)
		}
		eventually(t, "the charge", func() bool {
			_, b := meter.State()
			return b.Limit-b.Remaining == tokens-had
		})
	})
}
