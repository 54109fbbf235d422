package discoverytest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func swap(ctx context.Context, t *testing.T, r discovery.KV) {
	e, err := r.Get(ctx, "doc/swap")
	if err != nil || e.Version != 0 || len(e.Value) != 0 {
		t.Fatalf("a key that was never written: %+v, %v", e, err)
	}
	if err := r.Swap(ctx, "doc/swap", []byte("a"), 7); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("swap a version that never was: %v", err)
	}
	value := []byte("first")
	if err := r.Swap(ctx, "doc/swap", value, 0); err != nil {
		t.Fatal(err)
	}
	value[0] = 'X'
	first, err := r.Get(ctx, "doc/swap")
	if err != nil || string(first.Value) != "first" || first.Version == 0 {
		t.Fatalf("after a swap: %+v, %v", first, err)
	}
	first.Value[0] = 'Y'
	if err := r.Swap(ctx, "doc/swap", []byte("again"), 0); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("swap a key that exists as one that does not: %v", err)
	}
	if err := r.Swap(ctx, "doc/swap", []byte("first"), first.Version); err != nil {
		t.Fatal(err)
	}
	second, err := r.Get(ctx, "doc/swap")
	if err != nil || string(second.Value) != "first" || second.Version <= first.Version {
		t.Errorf("the same value written again: %+v after %+v, %v", second, first, err)
	}
	if err := r.Swap(ctx, "doc/swap", []byte("late"), first.Version); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("swap a version that was replaced: %v", err)
	}
	if other, err := r.Get(ctx, "doc/other"); err != nil || other.Version != 0 {
		t.Errorf("another key: %+v, %v", other, err)
	}
}

// race lets writers add to a number, each as often as it wins.
func race(ctx context.Context, t *testing.T, r discovery.KV) {
	const writers, each = 4, 5
	var wg sync.WaitGroup
	var lost atomic.Int64
	for w := range writers {
		wg.Go(func() {
			for n := 0; n < each; {
				e, err := r.Get(ctx, "doc/race")
				if err == nil {
					err = r.Swap(ctx, "doc/race", append(e.Value, byte('0'+w)), e.Version)
				}
				switch {
				case err == nil:
					n++
				case fault.CodeOf(err) == fault.Aborted:
					lost.Add(1)
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	e, err := r.Get(ctx, "doc/race")
	if err != nil {
		t.Fatal(err)
	}
	for w := range writers {
		if n := strings.Count(string(e.Value), fmt.Sprint(w)); n != each {
			t.Errorf("writer %d is %d times in %q, want %d (%d swaps lost)", w, n, e.Value, each, lost.Load())
		}
	}
}

// awaitEntry reads entries until one has a value.
func awaitEntry(t *testing.T, ch <-chan discovery.Entry, want string) discovery.Entry {
	t.Helper()
	return receive(t, ch, want, func(e discovery.Entry) bool { return string(e.Value) == want })
}

func follow(ctx context.Context, t *testing.T, r discovery.KV) {
	followed, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := r.Follow(followed, "doc/follow")
	if err != nil {
		t.Fatal(err)
	}
	slow, err := r.Follow(followed, "doc/follow")
	if err != nil {
		t.Fatal(err)
	}
	if e := awaitEntry(t, ch, ""); e.Version != 0 {
		t.Errorf("before the first write: %+v", e)
	}
	for i := range 3 {
		e, err := r.Get(ctx, "doc/follow")
		if err == nil {
			err = r.Swap(ctx, "doc/follow", fmt.Append(nil, i), e.Version)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	last := awaitEntry(t, ch, "2")
	if e, err := r.Get(ctx, "doc/follow"); err != nil || e.Version != last.Version {
		t.Errorf("followed version %d, read %d, %v", last.Version, e.Version, err)
	}
	awaitEntry(t, slow, "2")
	late, err := r.Follow(followed, "doc/follow")
	if err != nil {
		t.Fatal(err)
	}
	awaitEntry(t, late, "2")
	cancel()
	closed(t, ch)
}

func badEntries(ctx context.Context, t *testing.T, r discovery.KV) {
	for _, key := range []string{"", "/a", "a b", "a?b", "a%b", "ä", strings.Repeat("k", 300)} {
		if err := r.Swap(ctx, key, nil, 0); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("swap %q: %v", key, err)
		}
		if _, err := r.Get(ctx, key); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("get %q: %v", key, err)
		}
		if _, err := r.Follow(ctx, key); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("follow %q: %v", key, err)
		}
	}
	if err := r.Swap(ctx, "doc/long", make([]byte, discovery.MaxValue+1), 0); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a value that is too long: %v", err)
	}
	long := slices.Repeat([]byte{0, 0xff}, discovery.MaxValue/2)
	if err := r.Swap(ctx, "doc/long", long, 0); err != nil {
		t.Errorf("the longest value: %v", err)
	}
	if e, err := r.Get(ctx, "doc/long"); err != nil || !slices.Equal(e.Value, long) {
		t.Errorf("the longest value came back with %d bytes, %v", len(e.Value), err)
	}
}

func succeed(ctx context.Context, t *testing.T, r Store, serve func(*testing.T) (string, func())) {
	addr, stop := serve(t)
	t.Cleanup(stop)
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := r.Watch(watched, "shard")
	if err != nil {
		t.Fatal(err)
	}
	former, err := r.Register(ctx, discovery.Instance{ID: "former", Service: "shard", Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	await(t, ch, "former")
	other := register(ctx, t, r, discovery.Instance{ID: "beside", Service: "sampler", Addr: addr})
	next := register(ctx, t, r, discovery.Instance{ID: "next", Service: "shard", Addr: addr})
	await(t, ch, "next")
	members, err := r.Members(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.ID == "former" {
			t.Errorf("%+v is still a member", m)
		}
	}
	if err := former.Update(ctx, nil); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("update the shard that was replaced: %v", err)
	}
	if err := other.Update(ctx, nil); err != nil {
		t.Errorf("a sampler at the address of a shard: %v", err)
	}
	if err := next.Update(ctx, nil); err != nil {
		t.Errorf("the new shard: %v", err)
	}
}

func remove(ctx context.Context, t *testing.T, r Store, serve func(*testing.T) (string, func())) {
	addr, stop := serve(t)
	t.Cleanup(stop)
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := r.Watch(watched, "trainer")
	if err != nil {
		t.Fatal(err)
	}
	g, err := r.Register(ctx, discovery.Instance{ID: "left-over", Service: "trainer", Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	await(t, ch, "left-over")
	members, err := r.Members(ctx)
	at := slices.IndexFunc(members, func(m discovery.Member) bool { return m.ID == "left-over" })
	if err != nil || at < 0 || !members[at].Healthy || members[at].Addr != addr || members[at].Service != "trainer" {
		t.Fatalf("members are %+v, %v", members, err)
	}
	if err := r.Remove(ctx, "left-over"); err != nil {
		t.Fatal(err)
	}
	await(t, ch)
	if err := g.Deregister(ctx); err != nil { // it may have come back
		t.Error(err)
	}
	if err := r.Remove(ctx, "nobody"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("remove what is not there: %v", err)
	}
}

// Churn lets n shards join and leave, several at a time. A third of them leave in order, and a third are killed and
// replaced by a new process at their address, whose id is another one, which leaves in order. The rest are replaced
// under their own id. addr returns the address of a place; at most 64 are used. At the end nobody is left.
func Churn(t *testing.T, r Store, n int, addr func(place int) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	const places = 16
	var wg sync.WaitGroup
	for place := range places {
		wg.Go(func() {
			for k := place; k < n; k += places {
				i := discovery.Instance{ID: fmt.Sprintf("shard-%d", k), Service: "shard", Addr: addr(place)}
				g, err := r.Register(ctx, i)
				if err != nil {
					t.Errorf("join %d: %v", k, err)
					return
				}
				switch k / places % 3 {
				case 1: // killed: nobody deregisters it
					i.ID += "-next"
					g, err = r.Register(ctx, i)
				case 2:
					g, err = r.Register(ctx, i)
				}
				if err == nil {
					err = g.Deregister(ctx)
				}
				if err != nil {
					t.Errorf("leave %d: %v", k, err)
					return
				}
			}
		})
	}
	wg.Wait()
	members, err := r.Members(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(members) > 0 {
		t.Errorf("%d members are left, such as %+v", len(members), members[0])
	}
}
