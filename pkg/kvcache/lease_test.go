package kvcache_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
)

// wantGrants compares the grants of a cache's leases.
func wantGrants(t *testing.T, c *kvcache.Cache[float64], when string, want ...int) {
	t.Helper()
	var got []int
	for _, l := range c.Leases() {
		got = append(got, l.Granted)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v pages are granted, want %v", when, got, want)
	}
	if err := c.Check(); err != nil {
		t.Errorf("%s: %v", when, err)
	}
}

func wantNotice(t *testing.T, l *kvcache.Lease[float64], want int, news bool) {
	t.Helper()
	if n, ok := l.Notice(); n != want || ok != news {
		t.Errorf("notice is %d, %v, want %d, %v", n, ok, want, news)
	}
}

func TestLease_ShrinksInTwoPhases(t *testing.T) {
	c := newCache(100)
	a, n, err := c.Open("a")
	if err != nil || n != 100 {
		t.Fatalf("the first lease is %d pages, %v", n, err)
	}
	table := a.NewTable()
	ids := make([]uint32, 100)
	for i := range ids {
		ids[i] = uint32(i)
	}
	if err := table.Change(0, ids, 0, 1); err != nil {
		t.Fatal(err)
	}
	b, n, err := c.Open("b")
	if err != nil || n != 0 {
		t.Fatalf("the second lease is %d pages, %v", n, err)
	}
	<-a.Changed()
	if a.Asked() != 0 {
		t.Error("it counts as asked before it was told")
	}
	wantNotice(t, a, 50, true)
	wantNotice(t, a, 50, false)
	if a.Asked() != 1 || b.Asked() != 0 {
		t.Errorf("requests %d and %d, want 1 and none", a.Asked(), b.Asked())
	}
	wantGrants(t, c, "before the acknowledgement", 100, 0)
	b.Acknowledge(0) // it was not asked
	if err := table.Change(60, nil, 0, 1); err != nil {
		t.Fatal(err)
	}
	a.Release(ids[60:])
	a.Acknowledge(70) // not yet as far as it was asked
	wantGrants(t, c, "after a part", 70, 30)
	<-b.Changed()
	wantNotice(t, b, 30, true)
	a.Acknowledge(50) // a lie: 60 are mapped
	wantGrants(t, c, "after a lie", 60, 40)
	if err := table.Change(60, []uint32{99}, 0, 1); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("a page beyond the acknowledged lease: %v", err)
	}
	if err := table.Change(55, nil, 0, 1); err != nil {
		t.Fatal(err)
	}
	a.Release(ids[55:])
	wantGrants(t, c, "after five more pages", 55, 45)
	table.Free()
	a.Release(ids)
	wantGrants(t, c, "after all pages", 50, 50)
	if a.Asked() != 0 {
		t.Error("it counts as asked after it has shrunk")
	}
	wantNotice(t, a, 50, false)
	wantNotice(t, b, 50, true)
	b.Close()
	wantNotice(t, b, 0, false)
	wantNotice(t, a, 100, true)
	wantGrants(t, c, "after the end of the other", 100)
}

// TestLease_AcknowledgementsThatCrossGrowth opens and closes a second lease while the first is asked to
// shrink. The acknowledgement of the first request must not count for the next one.
func TestLease_AcknowledgementsThatCrossGrowth(t *testing.T) {
	c := newCache(100)
	a := openLease(t, c, "a")
	b := openLease(t, c, "b")
	wantNotice(t, a, 50, true)
	b.Close()
	wantNotice(t, a, 50, false) // no growth before the acknowledgement
	b = openLease(t, c, "b")
	wantNotice(t, a, 50, false)
	openLease(t, c, "c")
	wantNotice(t, a, 33, true)
	a.Acknowledge(50) // of the first request
	wantGrants(t, c, "after the first acknowledgement", 50, 33, 17)
	a.Acknowledge(33)
	wantGrants(t, c, "after the second", 33, 33, 33)
	b.Close()
	wantNotice(t, a, 50, true)
	// What a lease was not told about goes to a new one without a question.
	c2 := newCache(100)
	a = openLease(t, c2, "a")
	b = openLease(t, c2, "b")
	wantNotice(t, a, 50, true)
	a.Acknowledge(50)
	wantNotice(t, b, 50, true)
	b.Close() // a is granted 100 and not told
	wantGrants(t, c2, "alone", 100)
	_, n, err := c2.Open("d")
	if err != nil || n != 50 {
		t.Errorf("a new lease has %d pages, %v", n, err)
	}
	wantNotice(t, a, 50, false)
}

func TestLease_NamesAndNumberAreBounded(t *testing.T) {
	c := newCache(2)
	openLease(t, c, "a")
	if _, _, err := c.Open("a"); fault.CodeOf(err) != fault.AlreadyExists {
		t.Errorf("the same name: %v", err)
	}
	openLease(t, c, "b")
	if _, _, err := c.Open("c"); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("a third lease of two pages: %v", err)
	}
}

// holder is a pipeline that learns of its lease late and acknowledges late. What it believes that it may
// map, it can map.
type holder struct {
	lease    *kvcache.Lease[float64]
	table    *kvcache.Table[float64]
	down, up []int // messages under way: notices, and acknowledgements
	may      int   // what it believes
	held     int   // pages 0..held-1
}

// TestLease_RandomHolders opens, closes and uses leases at random, with messages in flight both ways. At
// every step the grants are at most the cache's pages, a holder is never refused a page that it was told
// it may map, and once all messages have arrived everybody has an equal share.
func TestLease_RandomHolders(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 9))
		const pages = 24
		c := newCache(pages)
		var all []*holder
		for range 600 {
			switch i := r.IntN(max(1, len(all))); r.IntN(12) {
			case 0:
				if len(all) < 5 {
					l, n, err := c.Open(fmt.Sprint(r.Uint64()))
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, &holder{lease: l, table: l.NewTable(), may: n})
				}
			case 1:
				if len(all) > 1 && r.IntN(2) == 0 {
					all[i].lease.Close()
					all = append(all[:i], all[i+1:]...)
				}
			default:
				if len(all) > 0 {
					all[i].act(t, r)
				}
			}
			if err := c.Check(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		for range 100 { // let all messages arrive
			for _, h := range all {
				for range 4 {
					h.step(t, r)
				}
			}
		}
		for i, l := range c.Leases() {
			if want := pages / len(all); l.Granted != want || all[i].may != want {
				t.Errorf(
					"seed %d: lease %d has %d pages and believes %d, want %d",
					seed,
					i,
					l.Granted,
					all[i].may,
					want,
				)
			}
		}
	}
}

func (h *holder) act(t *testing.T, r *rand.Rand) {
	if r.IntN(2) == 0 {
		h.step(t, r)
		return
	}
	if h.held < h.may { // grow
		if err := h.table.Change(h.held, []uint32{uint32(h.held)}, 0, 0); err != nil {
			t.Errorf("map page %d of %d: %v", h.held, h.may, err)
		}
		h.held++
	}
}

// step moves one message.
func (h *holder) step(t *testing.T, r *rand.Rand) {
	switch r.IntN(3) {
	case 0:
		select {
		case <-h.lease.Changed():
			if n, ok := h.lease.Notice(); ok {
				h.down = append(h.down, n)
			}
		default:
		}
	case 1:
		if len(h.down) > 0 {
			shrink := h.down[0] < h.may
			h.may, h.down = h.down[0], h.down[1:]
			if shrink {
				h.up = append(h.up, h.may)
			}
		}
	case 2:
		if len(h.up) > 0 { // the releases precede the acknowledgement in its frame
			n := h.up[0]
			h.up = h.up[1:]
			if h.held > n {
				if err := h.table.Change(n, nil, 0, 0); err != nil {
					t.Error(err)
				}
				for ; h.held > n; h.held-- {
					h.lease.Release([]uint32{uint32(h.held - 1)})
				}
			}
			h.lease.Acknowledge(n)
		}
	}
}
