package router_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	journalv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/journal/v1"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/services/router"
)

func TestResume_TwoRouters_OneStops(t *testing.T) {
	for name, open := range journals(t) {
		t.Run(name, func(t *testing.T) {
			j := open(t)
			m := newMesh(t, 1, 1, router.Config{})
			a, b := m.peer("router-a", router.Config{Journal: j}), m.peer("router-b", router.Config{Journal: j})
			var p part
			taken := make(chan error, 1)
			second := part{}
			// The first client is held up after 10 tokens while the second one resumes at the other router.
			stream, err := a.client.Generate(patient(t), resumable("taken", 1000))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.read(generated{stream}, func(n int) bool { return n < 10 }); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the beginning of the journal", func() bool {
				_, err := j.Read(t.Context(), journal.Key{ID: p.id})
				return err == nil
			})
			second.id = p.id
			go func() { taken <- second.resume(patient(t), b.client, nil) }()
			err = p.read(generated{stream}, nil)
			if err := <-taken; err != nil {
				t.Fatalf("the router that took over: %v", err)
			}
			second.expect(t, "taken", 1000)
			if err == nil { // it was faster than the takeover
				p.expect(t, "taken", 1000)
				t.Log("the first router had ended already")
				return
			}
			if status.Code(err) != codes.Aborted {
				t.Errorf("the router that was overtaken: %v", err)
			}
			if err := p.resume(patient(t), a.client, nil); err != nil { // back again
				t.Fatal(err)
			}
			p.expect(t, "taken", 1000)
		})
	}
}

func TestResume_NoReader_EndsAfterTheGrace(t *testing.T) {
	metrics := prometheus.NewRegistry()
	m := newMesh(t, 1, 1, router.Config{Grace: 50 * time.Millisecond, Metrics: metrics})
	m.shards["shard-0-0"].freeze(20) // the request cannot end by itself
	ctx, cancel := context.WithCancel(patient(t))
	var p part
	if err := p.generate(ctx, m.client, resumable("gone", 900), func(n int) bool { return n < 5 }); err != nil {
		t.Fatal(err)
	}
	cancel()
	eventually(t, "the end of the request", func() bool {
		return counted(t, metrics, "lamina_router_requests_total", "canceled") == 1
	})
	eventually(t, "its removal", func() bool {
		got := part{id: p.id}
		return status.Code(got.resume(patient(t), m.client, nil)) == codes.NotFound
	})
}

// counted returns the value of a counter with one label.
func counted(t *testing.T, r *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, c := range f.GetMetric() {
			if f.GetName() == name && c.GetLabel()[0].GetValue() == label {
				return c.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestResume_Cancel_EndsTheRequestEverywhere(t *testing.T) {
	for _, where := range []string{"same router", "other router"} {
		t.Run(where, func(t *testing.T) {
			j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
			m := newMesh(t, 1, 1, router.Config{})
			a, b := m.peer("router-a", router.Config{Journal: j}), m.peer("router-b", router.Config{Journal: j})
			at := map[string]*peer{"same router": a, "other router": b}[where]
			m.slow(20 * time.Millisecond) // so that it cannot end by itself before it is cancelled
			var p part
			key := func() journal.Key { return journal.Key{ID: p.id} }
			ended := make(chan error, 1)
			stream, err := a.client.Generate(patient(t), resumable("cancel", 1000))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.read(generated{stream}, func(n int) bool { return n < 3 }); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the beginning of the journal", func() bool {
				_, err := j.Read(t.Context(), key())
				return err == nil
			})
			if _, err := at.client.Cancel(patient(t), &routerv1.CancelRequest{RequestId: p.id}); err != nil {
				t.Fatal(err)
			}
			go func() { ended <- p.read(generated{stream}, nil) }()
			if code := status.Code(<-ended); code != codes.Canceled && code != codes.Aborted {
				t.Errorf("the stream ended with %v", code)
			}
			stored(t, j, key())
			for _, r := range []*peer{a, b} {
				got := part{id: p.id}
				if err := got.resume(patient(t), r.client, nil); status.Code(err) != codes.Canceled {
					t.Errorf("resume after cancel: %v", err)
				}
			}
			eventually(t, "the release of every session", func() bool { return m.used() == 0 })
		})
	}
}

// broken is a journal whose appends fail.
// scripted is a journal that answers the appends after the first n of each request itself.

// Whoever was told that a request is canceled may ask another router for it at once.
func TestResume_Cancel_IsInTheJournalWhenItIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &scripted{Journal: journal.NewMemory(journal.Limits{Bytes: 1 << 24})}
		j.answer = func(r *journalv1.Record) error {
			if r.GetEnd() != nil {
				<-time.After(time.Second)
			}
			return nil
		}
		m := newMesh(t, 1, 1, router.Config{})
		a, b := m.peer("router-a", router.Config{Journal: j}), m.peer("router-b", router.Config{Journal: j})
		m.slow(20 * time.Millisecond) // so that it cannot end by itself before it is canceled
		stream, err := a.client.Generate(patient(t), resumable("cancel", 1000))
		if err != nil {
			t.Fatal(err)
		}
		var p part
		if err := p.read(generated{stream}, func(n int) bool { return n < 3 }); err != nil {
			t.Fatal(err)
		}
		if _, err := a.client.Cancel(patient(t), &routerv1.CancelRequest{RequestId: p.id}); err != nil {
			t.Fatal(err)
		}
		got := part{id: p.id}
		if err := got.resume(patient(t), b.client, nil); status.Code(err) != codes.Canceled {
			t.Errorf("resume at another router after %d tokens: %v", len(got.tokens), err)
		}
		if err := p.read(generated{stream}, nil); status.Code(err) != codes.Canceled {
			t.Errorf("the stream ended with %v", err)
		}
	})
}
