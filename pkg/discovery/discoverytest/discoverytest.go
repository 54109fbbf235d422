// Package discoverytest is the test suite that every discovery.Registry must pass. The test of an
// implementation calls Run with an empty registry.
package discoverytest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// limit bounds every wait. A gRPC health check takes one or two seconds to pass.
const limit = 2 * time.Minute

// Store is all that a registry offers.
type Store interface {
	discovery.Registry
	discovery.KV
	discovery.Board
	discovery.Directory
}

// Run tests a registry. serve starts a server that passes the health check of the registry and
// returns its address, which is another one each time; stop stops it.
func Run(t *testing.T, r Store, serve func(t *testing.T) (addr string, stop func())) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	t.Run("WatchSeesComeAndGo", func(t *testing.T) { watch(ctx, t, r, serve) })
	t.Run("WatchEndsWithItsContext", func(t *testing.T) { ends(ctx, t, r) })
	t.Run("SlowWatcherSeesTheNewest", func(t *testing.T) { slow(ctx, t, r, serve) })
	t.Run("UpdateIsSeen", func(t *testing.T) { update(ctx, t, r, serve) })
	t.Run("RegisteringAnIDAgainReplacesIt", func(t *testing.T) { replace(ctx, t, r, serve) })
	t.Run("RefusesWhatHasNoName", func(t *testing.T) { invalid(ctx, t, r) })
	t.Run("LockHasOneHolder", func(t *testing.T) { lock(ctx, t, r) })
	t.Run("SwapNeedsTheVersion", func(t *testing.T) { swap(ctx, t, r) })
	t.Run("SwapHasOneWinner", func(t *testing.T) { race(ctx, t, r) })
	t.Run("FollowSeesTheNewest", func(t *testing.T) { follow(ctx, t, r) })
	t.Run("KVRefusesBadEntries", func(t *testing.T) { badEntries(ctx, t, r) })
	t.Run("PostsAreSeenUntilWithdrawn", func(t *testing.T) { posts(ctx, t, r) })
	t.Run("BoardRefusesBadPosts", func(t *testing.T) { badPosts(ctx, t, r) })
	t.Run("ANewShardReplacesTheOneAtItsAddress", func(t *testing.T) { succeed(ctx, t, r, serve) })
	t.Run("RemoveRemovesAMember", func(t *testing.T) { remove(ctx, t, r, serve) })
}

// receive reads a channel until a value is the one that a test waits for.
func receive[T any](t *testing.T, ch <-chan T, what any, ok func(T) bool) T {
	t.Helper()
	timeout := time.After(limit)
	var last T
	for {
		select {
		case v, open := <-ch:
			if !open {
				t.Fatal("the channel is closed")
			}
			if last = v; ok(v) {
				return v
			}
		case <-timeout:
			t.Fatalf("waited for %v, last was %v", what, last)
		}
	}
}

// closed reads a channel until it is closed.
func closed[T any](t *testing.T, ch <-chan T) {
	t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case _, open := <-ch:
			if !open {
				return
			}
		case <-timeout:
			t.Fatal("the channel was not closed")
		}
	}
}

// await reads lists until one has exactly the given ids.
func await(t *testing.T, ch <-chan []discovery.Instance, ids ...string) []discovery.Instance {
	t.Helper()
	return receive(t, ch, ids, func(state []discovery.Instance) bool {
		return slices.EqualFunc(state, ids, func(i discovery.Instance, id string) bool { return i.ID == id })
	})
}

func watch(ctx context.Context, t *testing.T, r discovery.Registry, serve func(*testing.T) (string, func())) {
	addr, stop := serve(t)
	defer stop()
	ch, err := r.Watch(ctx, "shard")
	if err != nil {
		t.Fatal(err)
	}
	await(t, ch)
	addrA, stopA := serve(t)
	defer stopA()
	b, err := r.Register(ctx,
		discovery.Instance{ID: "shard-b", Service: "shard", Addr: addr, Meta: map[string]string{"layers": "0-2"}})
	if err != nil {
		t.Fatal(err)
	}
	got := await(t, ch, "shard-b")
	if got[0].Addr != addr || got[0].Meta["layers"] != "0-2" || got[0].Service != "shard" {
		t.Errorf("the instance came back as %+v", got[0])
	}
	a, err := r.Register(ctx, discovery.Instance{ID: "shard-a", Service: "shard", Addr: addrA})
	if err != nil {
		t.Fatal(err)
	}
	other, err := r.Register(ctx, discovery.Instance{ID: "router-a", Service: "router", Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	await(t, ch, "shard-a", "shard-b")
	late, err := r.Watch(ctx, "shard")
	if err != nil {
		t.Fatal(err)
	}
	await(t, late, "shard-a", "shard-b")
	for _, g := range []discovery.Registration{b, other} {
		if err := g.Deregister(ctx); err != nil {
			t.Fatal(err)
		}
	}
	await(t, ch, "shard-a")
	if err := a.Deregister(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, ch)
	await(t, late)
}

func ends(ctx context.Context, t *testing.T, r discovery.Registry) {
	ctx, cancel := context.WithCancel(ctx)
	ch, err := r.Watch(ctx, "sampler")
	if err != nil {
		t.Fatal(err)
	}
	await(t, ch)
	cancel()
	closed(t, ch)
}

func slow(ctx context.Context, t *testing.T, r discovery.Registry, serve func(*testing.T) (string, func())) {
	addr, stop := serve(t)
	defer stop()
	ch, err := r.Watch(ctx, "trainer")
	if err != nil {
		t.Fatal(err)
	}
	seen, err := r.Watch(ctx, "trainer")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"t-1", "t-2", "t-3"} {
		g, err := r.Register(ctx, discovery.Instance{ID: id, Service: "trainer", Addr: addr})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = g.Deregister(context.WithoutCancel(ctx)) }()
	}
	await(t, seen, "t-1", "t-2", "t-3") // all are known; ch was never read
	await(t, ch, "t-1", "t-2", "t-3")
}

// register registers an instance until the test ends.
func register(ctx context.Context, t *testing.T, r discovery.Registry, i discovery.Instance) discovery.Registration {
	t.Helper()
	g, err := r.Register(ctx, i)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Deregister(ctx); err != nil {
			t.Error(err)
		}
	})
	return g
}

// facts reads lists until Meta["fact"] of the only instance is want. Each list must have one
// instance.
func facts(t *testing.T, ch <-chan []discovery.Instance, want string) {
	t.Helper()
	receive(t, ch, want, func(state []discovery.Instance) bool {
		if len(state) != 1 {
			t.Fatalf("got %v, want one instance", state)
		}
		return state[0].Meta["fact"] == want
	})
}

func update(ctx context.Context, t *testing.T, r discovery.Registry, serve func(*testing.T) (string, func())) {
	addr, stop := serve(t)
	t.Cleanup(stop)
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := r.Watch(watched, "tokenizer")
	if err != nil {
		t.Fatal(err)
	}
	meta := map[string]string{"fact": "old"}
	g := register(ctx, t, r, discovery.Instance{ID: "tok-1", Service: "tokenizer", Addr: addr, Meta: meta})
	meta["fact"] = "changed behind the registry's back"
	await(t, ch, "tok-1")
	late, err := r.Watch(watched, "tokenizer")
	if err != nil {
		t.Fatal(err)
	}
	facts(t, late, "old")
	if err := g.Update(ctx, map[string]string{"fact": "new"}); err != nil {
		t.Fatal(err)
	}
	facts(t, ch, "new")
	if err := g.Deregister(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, ch)
	if err := g.Update(ctx, nil); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("update what is not registered: %v", err)
	}
}

func replace(ctx context.Context, t *testing.T, r discovery.Registry, serve func(*testing.T) (string, func())) {
	addr, stop := serve(t)
	t.Cleanup(stop)
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := r.Watch(watched, "sampler")
	if err != nil {
		t.Fatal(err)
	}
	i := discovery.Instance{ID: "s-1", Service: "sampler", Addr: addr, Meta: map[string]string{"fact": "first"}}
	first := register(ctx, t, r, i)
	await(t, ch, "s-1")
	i.Meta = map[string]string{"fact": "second"}
	second := register(ctx, t, r, i)
	facts(t, ch, "second")
	if err := first.Update(ctx, nil); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("update of a replaced registration: %v", err)
	}
	if err := first.Deregister(ctx); err != nil {
		t.Errorf("deregister a replaced registration: %v", err)
	}
	if err := second.Update(ctx, map[string]string{"fact": "third"}); err != nil {
		t.Fatal(err)
	}
	facts(t, ch, "third") // the instance was still registered
}

func invalid(ctx context.Context, t *testing.T, r discovery.Registry) {
	for _, i := range []discovery.Instance{
		{Service: "shard", Addr: "127.0.0.1:1"}, {ID: "a", Addr: "127.0.0.1:1"}, {ID: "a", Service: "shard"},
	} {
		if _, err := r.Register(ctx, i); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", i, err)
		}
	}
}

func lock(ctx context.Context, t *testing.T, r discovery.Registry) {
	first, err := r.Lock(ctx, "run-1", "a")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if l, err := r.Lock(short, "run-1", "b"); fault.CodeOf(err) != fault.DeadlineExceeded {
		t.Fatalf("the lock has two holders: %v, %v", l, err)
	}
	if l, err := r.Lock(ctx, "run-2", "b"); err != nil {
		t.Errorf("another key: %v", err)
	} else if err := l.Release(ctx); err != nil {
		t.Error(err)
	}
	got := make(chan discovery.Lease, 1)
	go func() {
		defer close(got)
		if l, err := r.Lock(ctx, "run-1", "c"); err == nil {
			got <- l
		}
	}()
	select {
	case <-first.Lost():
		t.Error("the lock was lost while held")
	default:
	}
	if err := first.Release(ctx); err != nil {
		t.Fatal(err)
	}
	closed(t, first.Lost())
	select {
	case second := <-got:
		if second == nil {
			t.Fatal("the waiter did not get the lock")
		}
		if second.Token() <= first.Token() {
			t.Errorf("tokens do not grow: %d after %d", second.Token(), first.Token())
		}
		if err := second.Release(ctx); err != nil {
			t.Error(err)
		}
	case <-time.After(limit):
		t.Fatal("the waiter did not get the released lock")
	}
}
