package integration_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// local is a mesh in the test's process, for promises in which no process dies.
type local struct {
	t      *testing.T
	mesh   *app.Mesh
	router routerv1.RouterServiceClient
	shards []shardv1.ShardServiceClient
}

func startLocal(t *testing.T, cfg app.MeshConfig) *local {
	t.Helper()
	set := cpu.New(0)
	cfg.Kernels, cfg.Model, cfg.Replicas = app.Kernels{Set: set}, bundled(t), max(1, cfg.Replicas)
	mesh, err := app.Start(context.WithoutCancel(t.Context()), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mesh.Close(); err != nil {
			t.Error(err)
		}
		set.Close()
	})
	l := &local{t: t, mesh: mesh}
	conn, err := mesh.Router()
	if err != nil {
		t.Fatal(err)
	}
	l.router = routerv1.NewRouterServiceClient(conn)
	for r := range cfg.Replicas {
		for s := range cfg.Stages {
			conn, err := mesh.Dial(fmt.Sprintf("mem:shard-%d-%d", r, s))
			if err != nil {
				t.Fatal(err)
			}
			l.shards = append(l.shards, shardv1.NewShardServiceClient(conn))
		}
	}
	return l
}

// metric returns the value of a metric of the mesh, 0 where it has not been counted yet. Its name has the form that
// /metrics shows.
func (l *local) metric(name string) float64 {
	l.t.Helper()
	once := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // leaves no goroutine
	resp, err := once.Get("http://" + l.mesh.HTTPAddr() + "/metrics")
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				l.t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// held returns how many sessions and KV pages all stages hold, as they say themselves.
func (l *local) held() (sessions, pages uint32) {
	l.t.Helper()
	for _, s := range l.shards {
		resp, err := s.Describe(l.t.Context(), &shardv1.DescribeRequest{})
		if err != nil {
			l.t.Fatal(err)
		}
		for _, h := range resp.GetHeld() {
			sessions, pages = sessions+h.GetSessions(), pages+h.GetKvPagesUsed()
		}
	}
	return sessions, pages
}

// idle waits until no stage holds a session and returns how long that took. The poll itself is short.
func (l *local) idle(limit time.Duration) time.Duration {
	l.t.Helper()
	begin := time.Now()
	var sessions, pages uint32
	if !poll(time.Millisecond, limit, func() bool { sessions, pages = l.held(); return sessions == 0 }) {
		l.t.Fatalf("%d sessions and %d KV pages are held after %v", sessions, pages, limit)
	}
	return time.Since(begin)
}

// wave sends n requests at once. Each ends at its own moment, by cancel or by its deadline; start returns
// its context. wave returns the tokens that were received and the errors.
func (l *local) wave(n int, start func(i int) (context.Context, context.CancelFunc)) (tokens int, errs []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		ctx, cancel := start(i)
		wg.Go(func() {
			defer cancel()
			c := client{token: func() {}}
			err := c.run(ctx, []routerv1.RouterServiceClient{l.router}, seeded(prompts[i%len(prompts)], 0, uint64(i)))
			mu.Lock()
			defer mu.Unlock()
			tokens += len(c.ids)
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return tokens, errs
}

// settled returns the number of goroutines once it has not changed for 200 ms.
func settled(t *testing.T) (n int) {
	t.Helper()
	ok := poll(200*time.Millisecond, time.Minute, func() bool {
		last := n
		n = runtime.NumGoroutine()
		return n == last
	})
	if !ok {
		t.Fatalf("the number of goroutines still changes, it is %d now", n)
	}
	return n
}

// S6: cancelled requests leave no session, page or goroutine behind.
func TestPromise_S6_StopFreesEverything(t *testing.T) {
	const width = 16
	l := startLocal(t, app.MeshConfig{Stages: 2, Scheduling: app.Scheduling{CacheIdle: 200 * time.Millisecond}})
	random := rand.New(rand.NewPCG(6, 0))
	cancelled, ended := 0, 0
	wave := func() (int, time.Duration) {
		tokens, errs := l.wave(width, func(int) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Duration(random.IntN(150))*time.Millisecond, cancel)
			return ctx, cancel
		})
		for _, err := range errs {
			switch {
			case err == nil: // a fast machine may give a whole answer before its cancel
				ended++
			case status.Code(err) == codes.Canceled:
				cancelled++
			default:
				t.Errorf("a cancelled request ended with %v", err)
			}
		}
		return tokens, l.idle(time.Minute)
	}
	wave()
	before := settled(t)
	total := 0
	var freed []time.Duration
	begin := time.Now()
	for range pickInt(256, 2000) / width {
		tokens, took := wave()
		total += tokens
		freed = append(freed, took)
	}
	slices.Sort(freed)
	rate := float64(total) / time.Since(begin).Seconds()
	t.Logf(
		"%d cancels, %d answers before theirs, %.0f tokens/s, everything freed after %v at p50 and %v at p99",
		cancelled, ended,
		rate,
		quantile(freed, 0.5),
		quantile(freed, 0.99),
	)
	if rate < leastFlow() || cancelled < ended {
		t.Errorf("the run is invalid: %.0f tokens/s, want at least %.0f; %d requests were cancelled, %d ended before",
			rate, leastFlow(), cancelled, ended)
	}
	if p99 := quantile(freed, 0.99); p99 > within(500*time.Millisecond) {
		t.Errorf("sessions are freed after %v at p99", p99)
	}
	awaitBaseline(t, l, before)
}

// S14: when a deadline expires every stage stops, and the client is told no earlier.
func TestPromise_S14_DeadlineStopsEveryStage(t *testing.T) {
	const width = 32
	l := startLocal(t, app.MeshConfig{Stages: 2})
	random := rand.New(rand.NewPCG(14, 0))
	total, expired, ended := 0, 0, 0
	var stopped []time.Duration
	begin := time.Now()
	for range pickInt(320, 2000) / width {
		deadline := time.Now().
			Add(50*time.Millisecond + time.Duration(random.IntN(pickInt(350, 2000)))*time.Millisecond)
		tokens, errs := l.wave(width, func(int) (context.Context, context.CancelFunc) {
			return context.WithDeadline(t.Context(), deadline)
		})
		if early := time.Until(
			deadline,
		); early > 0 &&
			slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
			t.Errorf("a request failed %v before its deadline", early)
		}
		total += tokens
		for _, err := range errs {
			switch {
			case err == nil:
				ended++
			case status.Code(err) == codes.DeadlineExceeded:
				expired++
			default:
				t.Errorf("a request with a deadline ended with %v", err)
			}
		}
		l.idle(time.Minute)
		stopped = append(stopped, max(0, time.Since(deadline)))
	}
	slices.Sort(stopped)
	rate := float64(total) / time.Since(begin).Seconds()
	t.Logf("%d requests expired, %d ended before; %.0f tokens/s; all stages have stopped %v after the deadline at p50 "+
		"and %v at p99", expired, ended, rate, quantile(stopped, 0.5), quantile(stopped, 0.99))
	if rate < leastFlow() || expired == 0 {
		t.Errorf("the run is invalid: %.0f tokens/s, %d expired", rate, expired)
	}
	if p99 := quantile(stopped, 0.99); p99 > within(100*time.Millisecond) {
		t.Errorf("the stages stop %v after the deadline at p99", p99)
	}
}

// S7: a KV pool of a quarter of the demand slows requests down and changes no answer.
func TestPromise_S7_FullPoolOnlySlows(t *testing.T) {
	const demand = 64 * 5 * 16 // 64 requests of up to five pages
	requests := mixed(64, 56)
	want := undisturbed(t, startLocal(t, app.MeshConfig{Stages: 2}).router, requests)
	l := startLocal(t, app.MeshConfig{Stages: 2, KVPositions: demand / 4})
	for round := range pickInt(1, 8) {
		f := &flow{t: t, right: asBefore(want), quit: make(chan struct{})}
		for i, r := range requests {
			f.work.Go(func() { f.one([]routerv1.RouterServiceClient{l.router}, i, r, false) })
		}
		f.prove()
		f.stop()
		if v := f.sum(); v.failed+v.differ > 0 {
			t.Errorf("round %d: %v: %s", round, v, v.first)
		}
	}
	var preempted uint64
	if !poll(50*time.Millisecond, time.Minute, func() bool {
		resp, err := l.router.Topology(t.Context(), &routerv1.TopologyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		preempted = 0
		for _, p := range resp.GetMesh().GetPipelines() {
			preempted += p.GetPreemptions()
		}
		return preempted > 0
	}) {
		t.Error("no sequence was preempted: the pool was not full")
	}
	t.Logf("%d sequences were preempted", preempted)
}
