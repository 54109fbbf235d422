package router_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// takes makes the shards take time for a batch, as long as the model of a real one would: some for the
// batch, and some for each row.
func (m *mesh) takes(batch, row time.Duration) {
	for _, s := range m.shards {
		s.mu.Lock()
		s.cost = func(rows int) time.Duration { return batch + time.Duration(rows)*row }
		s.mu.Unlock()
	}
}

// firstToken runs a request and returns how long its first token took.
func (m *mesh) firstToken(ctx context.Context, r *routerv1.GenerateRequest) (time.Duration, error) {
	start := time.Now()
	stream, err := m.client.Generate(ctx, r)
	if err != nil {
		return 0, err
	}
	var took time.Duration
	for {
		e, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return took, nil
		case err != nil:
			return took, err
		case e.GetToken() != nil && took == 0:
			took = time.Since(start)
		}
	}
}

func quantile(list []time.Duration, q float64) time.Duration {
	slices.Sort(list)
	return list[min(len(list)-1, int(q*float64(len(list))))]
}

// shareWithHeavy runs rounds of three light tenants with two requests each, beside one tenant with 32
// long prompts unless that is left out. It returns the light requests' times to first token. With whole
// the heavy requests have to end well too.
func (m *mesh) shareWithHeavy(heavy string, whole bool, light func(i int) string) []time.Duration {
	ctx, cancel := context.WithCancel(m.t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var ended atomic.Int32
	if heavy != "" {
		for i := range 32 {
			wg.Go(func() {
				prompt := fmt.Sprint(i, strings.Repeat(" long prompt", 40))
				if _, err := m.firstToken(as(ctx, heavy), greedy(prompt, 48)); err != nil && ctx.Err() == nil {
					m.t.Errorf("heavy %d: %v", i, err)
				}
				ended.Add(1)
			})
		}
		eventually(m.t, "the first heavy batch", func() bool { return m.used() > 0 })
	}
	var mu sync.Mutex
	var took []time.Duration
	for round := 0; round < 6 && ended.Load() < 24; round++ {
		var lights sync.WaitGroup
		for i := range 6 {
			lights.Go(func() {
				prompt := fmt.Sprint(round, i, strings.Repeat(" light prompt", 15))
				d, err := m.firstToken(as(ctx, light(i)), greedy(prompt, 8))
				if err != nil {
					m.t.Errorf("light %d: %v", i, err)
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, d)
			})
		}
		lights.Wait()
	}
	if !whole {
		cancel()
	}
	wg.Wait()
	return took
}

// TestService_LightTenants_AreServedBesideAHeavyOne: the time to first token of light tenants beside one
// with 32 long prompts stays within twice of what it is without that one. If all of them are one
// tenant it does not, so the test can fail.
func TestService_LightTenants_AreServedBesideAHeavyOne(t *testing.T) {
	const pages = 128                   // for four long prompts
	const slack = 45 * time.Millisecond // six whole batches, for who happens to come just before another
	light := func(i int) string { return fmt.Sprint("light-", i/2) }
	measure := func(heavy string, whole bool, light func(int) string) (p50, p90 time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			m := newMesh(t, 1, 1, router.Config{BatchRows: 128, ChunkRows: 128}, pages)
			m.takes(time.Millisecond, 50*time.Microsecond)
			took := m.shareWithHeavy(heavy, whole, light)
			m.check()
			if len(took) < 6 {
				t.Fatalf("%d light requests", len(took))
			}
			p50, p90 = quantile(took, 0.5), quantile(took, 0.9)
		})
		return p50, p90
	}
	alone50, alone90 := measure("", true, light)
	heavy50, heavy90 := measure("heavy", true, light)
	t.Logf("time to first token, p50 and p90: alone %v, %v; beside 32 long prompts %v, %v", alone50, alone90, heavy50,
		heavy90)
	if heavy50 > 2*alone50 || heavy90 > 2*alone90+slack {
		t.Error("light tenants wait more than twice as long beside a heavy one")
	}
	same50, _ := measure("all", false, func(int) string { return "all" })
	if t.Logf("as one tenant %v", same50); same50 < 2*alone50 {
		t.Error("a single tenant with all requests waits no longer: the test shows nothing")
	}
}

// offer runs requests from a number of clients for a while. It returns the tokens that they got, and how
// long refusals took.
func (m *mesh) offer(clients int, span time.Duration) (tokens int64, refusals []time.Duration) {
	ctx, cancel := context.WithTimeout(m.t.Context(), span)
	defer cancel()
	var done atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				start := time.Now()
				_, err := m.generate(ctx, greedy(fmt.Sprintf("%2d %4d overload", i, n), 32), func(int) { done.Add(1) })
				switch took := time.Since(start); {
				case err == nil, ctx.Err() != nil, status.Code(err) == codes.DeadlineExceeded:
				case status.Code(err) == codes.Unavailable && hasRetry(err, "QUEUE_FULL"):
					mu.Lock()
					refusals = append(refusals, took)
					mu.Unlock()
					pause := time.NewTimer(250 * time.Millisecond) // a client that is more eager than it is told to be
					select {
					case <-pause.C:
					case <-ctx.Done():
						pause.Stop()
					}
				default:
					m.t.Errorf("client %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return done.Load(), refusals
}

// TestService_Overload_IsRefusedAtOnceAndCostsLittle offers as much as a pipeline can run, and more than
// four times as much as it can run and queue.
func TestService_Overload_IsRefusedAtOnceAndCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const span = 1500 * time.Millisecond
		m := newMesh(t, 1, 1, router.Config{Queue: 4}, 24) // pages for 8 requests
		m.takes(10*time.Millisecond, 50*time.Microsecond)
		peak, none := m.offer(8, span)
		much, refusals := m.offer(50, span)
		if len(none) > 0 || len(refusals) < 20 {
			t.Fatalf("%d refusals of what fits, %d under overload", len(none), len(refusals))
		}
		t.Logf("%d tokens with 8 clients, %d with 50; %d refusals, the slowest after %v", peak, much, len(refusals),
			slices.Max(refusals))
		if much*10 < peak*9 || slices.Max(refusals) > 0 { // a refusal waits for nothing
			t.Errorf("%d tokens under overload, %d without; refusals take %v", much, peak, slices.Max(refusals))
		}
		eventually(t, "the release of every session", func() bool { return m.used() == 0 })
		m.check()
	})
}

// TestService_QuotaOfATenant_IsRefusedByItsReason fills the queue of one tenant. Others are still served.
func TestService_QuotaOfATenant_IsRefusedByItsReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{Queue: 64, TenantQueue: 2}, 64) // pages for one request
		m.takes(time.Millisecond, 0)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		refused := make(chan error, 16)
		for i := range 16 {
			wg.Go(func() {
				r := greedy(fmt.Sprint(i, strings.Repeat("x", 900)), 100)
				if _, err := m.firstToken(as(ctx, "greedy"), r); ctx.Err() == nil {
					refused <- err
				}
			})
		}
		if err := <-refused; status.Code(err) != codes.ResourceExhausted || !hasRetry(err, "RATE_LIMIT_EXCEEDED") {
			t.Errorf("beyond the quota: %v", err)
		}
		// Later requests are refused before their prompt is encoded.
		calls := m.calls.Load()
		eventually(t, "an early refusal", func() bool {
			_, err := m.firstToken(as(ctx, "greedy"), greedy("more", 9))
			return status.Code(err) == codes.ResourceExhausted
		})
		synctest.Wait() // the other ones have had their prompts encoded
		before := m.calls.Load()
		if _, err := m.firstToken(as(ctx, "greedy"), greedy("more", 9)); status.Code(err) == codes.ResourceExhausted &&
			m.calls.Load() != before {
			t.Errorf("%d calls of the tokenizer for a refusal, %d before", m.calls.Load()-before, calls)
		}
		if _, err := m.firstToken(as(ctx, "modest"), greedy("little", 4)); err != nil {
			t.Errorf("another tenant: %v", err)
		}
		cancel()
		wg.Wait()
	})
}
