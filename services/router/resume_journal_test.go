package router_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	journalv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/journal/v1"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/services/router"
)

type broken struct {
	journal.Journal
	mu  sync.Mutex
	err error
}

func (b *broken) Append(ctx context.Context, k journal.Key, after uint64, data []byte) (uint64, error) {
	b.mu.Lock()
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return b.Journal.Append(ctx, k, after, data)
}

func TestResume_JournalThatFails_DelaysNoToken(t *testing.T) {
	for _, code := range []fault.Code{fault.Unavailable, fault.Exhausted, fault.Invalid} {
		t.Run(code.String(), func(t *testing.T) {
			j := &broken{Journal: journal.NewMemory(journal.Limits{Bytes: 1 << 24}), err: fault.New(code, "test")}
			metrics := prometheus.NewRegistry()
			m := newMesh(t, 1, 1, router.Config{Journal: j, Metrics: metrics})
			var p part
			if err := p.generate(patient(t), m.client, resumable("no journal", 300), nil); err != nil {
				t.Fatal(err)
			}
			if code != fault.Unavailable { // this may still pass
				eventually(t, "the metric", func() bool {
					return counted(t, metrics, "lamina_router_unjournaled_total", code.String()) == 1
				})
			}
			p.expect(t, "no journal", 300)
			p.tokens = p.tokens[:100]
			if err := p.resume(patient(t), m.client, nil); err != nil {
				t.Errorf("resume at its own router: %v", err)
			}
			p.expect(t, "no journal", 300)
			other := m.peer("router-b", router.Config{Journal: j})
			if err := p.resume(patient(t), other.client, nil); status.Code(err) != codes.NotFound {
				t.Errorf("resume at another router: %v", err)
			}
		})
	}
}

func TestResume_JournalThatComesBack_IsCompleted(t *testing.T) {
	j := &broken{Journal: journal.NewMemory(journal.Limits{Bytes: 1 << 24}), err: fault.New(fault.Unavailable, "test")}
	m := newMesh(t, 1, 1, router.Config{Journal: j})
	var p part
	err := p.generate(patient(t), m.client, resumable("late journal", 300), func(n int) bool {
		if n == 200 {
			j.mu.Lock()
			j.err = nil
			j.mu.Unlock()
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, j, journal.Key{ID: p.id})
	other := m.peer("router-b", router.Config{Journal: j})
	p.tokens = nil
	if err := p.resume(patient(t), other.client, nil); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "late journal", 300)
}

func TestResume_TokensBeyondTheJournal_AreTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The journal has less than the client, whose router is lost.
		j := &broken{Journal: journal.NewMemory(journal.Limits{Bytes: 1 << 24})}
		m := newMesh(t, 1, 1, router.Config{})
		a, b := m.peer("router-a", router.Config{Journal: j}), m.peer("router-b", router.Config{Journal: j})
		m.slow(2 * time.Millisecond)
		m.shards["shard-0-0"].strike(300, a.cancel)
		var p part
		err := p.generate(patient(t), a.client, resumable("short journal", 400), func(n int) bool {
			if n == 10 {
				j.mu.Lock()
				j.err = fault.New(fault.Unavailable, "test")
				j.mu.Unlock()
			}
			return true
		})
		if err == nil || len(p.tokens) < 150 {
			t.Fatalf("%d tokens, %v", len(p.tokens), err)
		}
		a.wait()
		j.mu.Lock()
		j.err = nil
		j.mu.Unlock()
		records, err := j.Read(t.Context(), journal.Key{ID: p.id})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, r := range records {
			record := &journalv1.Record{}
			if err := proto.Unmarshal(r.Data, record); err != nil {
				t.Fatal(err)
			}
			n += len(record.GetTokens().GetIds())
		}
		if n >= len(p.tokens) {
			t.Fatalf("the journal has %d tokens, the client %d", n, len(p.tokens))
		}
		if err := p.resume(patient(t), b.client, nil); err != nil {
			t.Fatal(err)
		}
		p.expect(t, "short journal", 400)
	})
}

func TestResume_ManyTokens_OldOnesAreDropped(t *testing.T) {
	m := newMesh(t, 1, 1, router.Config{ReplayBytes: 100 * 128})
	ctx, cancel := context.WithCancel(patient(t))
	var p part
	if err := p.generate(ctx, m.client, resumable("bounded", 600), func(n int) bool { return n < 2 }); err != nil {
		t.Fatal(err)
	}
	cancel()
	late := part{id: p.id, tokens: make([]*routerv1.TokenEvent, 590)}
	if err := late.resume(patient(t), m.client, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.resume(patient(t), m.client, nil); status.Code(err) != codes.DataLoss {
		t.Errorf("tokens that are no longer kept: %v", err)
	}
}

type scripted struct {
	journal.Journal
	n      int
	answer func(*journalv1.Record) error // nil passes the record on

	mu    sync.Mutex
	count map[journal.Key]int
}

func (s *scripted) Append(ctx context.Context, k journal.Key, after uint64, data []byte) (uint64, error) {
	r := &journalv1.Record{}
	if err := proto.Unmarshal(data, r); err != nil {
		return 0, err
	}
	s.mu.Lock()
	if s.count == nil {
		s.count = map[journal.Key]int{}
	}
	s.count[k]++
	n := s.count[k]
	s.mu.Unlock()
	if n > s.n {
		if err := s.answer(r); err != nil {
			return 0, err
		}
	}
	return s.Journal.Append(ctx, k, after, data)
}

func TestResume_OvertakenRouter_StopsItsRequests(t *testing.T) {
	j := &scripted{Journal: journal.NewMemory(journal.Limits{Bytes: 1 << 24}), n: 2,
		answer: func(*journalv1.Record) error { return fault.New(fault.Aborted, "another writer has appended") }}
	m := newMesh(t, 1, 1, router.Config{Journal: j})
	m.slow(5 * time.Millisecond)
	var wg sync.WaitGroup
	for i := range 16 { // so many tokens that no request ends before its third record
		wg.Go(func() {
			var p part
			err := p.generate(patient(t), m.client, resumable(fmt.Sprintf("overtaken %d", i), 1000), nil)
			if status.Code(err) != codes.Aborted || p.finished != nil {
				t.Errorf("request %d after %d tokens: %v", i, len(p.tokens), err)
			}
		})
	}
	wg.Wait()
	eventually(t, "the release of every session", func() bool { return m.used() == 0 })
}

func TestResume_EndThatIsMissing_IsFoundAgain(t *testing.T) {
	j := &scripted{Journal: journal.NewMemory(journal.Limits{Bytes: 1 << 24}), answer: func(r *journalv1.Record) error {
		if r.GetEnd() != nil {
			return fault.New(fault.Exhausted, "full")
		}
		return nil
	}}
	m := newMesh(t, 1, 1, router.Config{})
	metrics := prometheus.NewRegistry()
	a := m.peer("router-a", router.Config{Journal: j, Metrics: metrics})
	b := m.peer("router-b", router.Config{Journal: j.Journal})
	var p part
	if err := p.generate(patient(t), a.client, resumable("no end", 60), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the refusal of the end", func() bool {
		return counted(t, metrics, "lamina_router_unjournaled_total", "exhausted") == 1
	})
	a.kill()
	for _, from := range []int{0, 30, 59, 60} {
		p.tokens = p.tokens[:from]
		p.finished = nil
		if err := p.resume(patient(t), b.client, nil); err != nil {
			t.Fatalf("from %d: %v", from, err)
		}
		if from == 0 {
			p.expect(t, "no end", 60)
		}
		if len(p.tokens) != 60 || p.finished.GetUsage().GetCompletionTokens() != 60 {
			t.Errorf("from %d: %d tokens, %v", from, len(p.tokens), p.finished)
		}
	}
}

func TestResume_OtherFingerprint_IsLeftToItsRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
		m := newMesh(t, 2, 1, router.Config{})
		a := m.peer("router-a", router.Config{Journal: j})
		b := m.peer("router-b", router.Config{Journal: j, HiddenType: tensorv1.ElementType_ELEMENT_TYPE_BF16})
		m.slow(2 * time.Millisecond)
		m.shards["shard-0-0"].strike(50, a.cancel)
		var p part
		if err := p.generate(patient(t), a.client, resumable("exact", 300), nil); err == nil || p.id == "" {
			t.Fatalf("id %q, %v", p.id, err)
		}
		a.wait()
		before, err := j.Read(t.Context(), journal.Key{ID: p.id})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.resume(patient(t), b.client, nil); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("resume with rounded hidden states: %v", err)
		}
		if after, err := j.Read(t.Context(), journal.Key{ID: p.id}); err != nil || len(after) != len(before) {
			t.Errorf("the journal went from %d to %d records, %v", len(before), len(after), err)
		}
	})
}
