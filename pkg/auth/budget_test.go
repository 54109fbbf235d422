package auth_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestBucket_WaitsAreExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		limit := 1 + r.Int64N([]int64{3, 1000, auth.MaxBudget}[r.IntN(3)])
		now := start
		b := auth.NewBucket(limit, now)
		for range 5 {
			n := 1 + r.Int64N(limit)
			switch r.IntN(3) {
			case 0:
				b.Give(now, r.Int64N(2*limit)-limit)
			case 1:
				now = now.Add(time.Duration(r.Int64N(int64(time.Minute))))
			}
			wait := b.Take(now, n)
			if wait == 0 {
				continue
			}
			early := b
			if early.Take(now.Add(wait-1), n) == 0 {
				t.Fatalf("%d of %d a minute: taken before the wait of %v is over", n, limit, wait)
			}
			now = now.Add(wait)
			if have, _ := b.Remaining(now); have < n {
				t.Fatalf("%d of %d a minute: only %d remain after a wait of %v", n, limit, have, wait)
			}
			if more := b.Take(now, n); more != 0 {
				t.Fatalf("%d of %d a minute: after a wait of %v there is another of %v", n, limit, wait, more)
			}
		}
	}
}

func TestBucket_NeverGivesMoreThanItsLimitAMinute(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		limit := 1 + r.Int64N(500)
		b, now, taken := auth.NewBucket(limit, start), start, int64(0)
		for now.Sub(start) < 10*time.Minute {
			if n := 1 + r.Int64N(limit); b.Take(now, n) == 0 {
				taken += n
			}
			now = now.Add(time.Duration(r.Int64N(int64(5 * time.Second))))
		}
		if most := limit + int64(float64(limit)*now.Sub(start).Minutes()); taken > most {
			t.Fatalf("%d of at most %d", taken, most)
		}
	}
}

func TestBucket_ExtremesDoNotOverflow(t *testing.T) {
	for _, limit := range []int64{1, 7, auth.MaxBudget} {
		b := auth.NewBucket(limit, start)
		for range 10 {
			b.Give(start, -1<<62)
		}
		if n, _ := b.Remaining(start); n != 0 {
			t.Errorf("limit %d: %d remain in debt", limit, n)
		}
		if wait := b.Take(start, limit); wait <= 0 {
			t.Errorf("limit %d: the wait is %v", limit, wait)
		}
		later := start.Add(200 * 365 * 24 * time.Hour)
		if n, full := b.Remaining(later); n != limit || full != 0 {
			t.Errorf("limit %d: after 200 years %d remain, full in %v", limit, n, full)
		}
		b.Give(later, 1<<62)
		if n, _ := b.Remaining(later); n != limit {
			t.Errorf("limit %d: %d after too much was given back", limit, n)
		}
		if wait := b.Take(start, limit); wait != 0 { // the clock went back
			t.Errorf("limit %d: %v", limit, wait)
		}
	}
}

func TestMeter_TokensAreSettled(t *testing.T) {
	c := &clock{at: start}
	m := auth.NewMeter(0, 600, c.now) // ten a second
	settle, err := m.Reserve(100)
	if err != nil {
		t.Fatal(err)
	}
	if _, tokens := m.State(); tokens.Remaining != 500 || tokens.Limit != 600 || tokens.Reset != 10*time.Second {
		t.Errorf("%+v", tokens)
	}
	settle(40)
	if _, tokens := m.State(); tokens.Remaining != 560 {
		t.Errorf("%+v", tokens)
	}
	// More than the budget takes all of it, when it is full.
	if _, err := m.Reserve(10_000); fault.CodeOf(err) != fault.Exhausted {
		t.Fatalf("%v", err)
	}
	c.pass(4 * time.Second)
	if settle, err = m.Reserve(10_000); err != nil {
		t.Fatal(err)
	}
	settle(1200) // 600 of debt
	err = m.Begin()
	if f, ok := err.(*fault.Error); !ok || f.RetryAfter != time.Minute+100*time.Millisecond || f.Reason == "" {
		t.Fatalf("%v", err)
	}
	c.pass(time.Minute + 100*time.Millisecond)
	if err := m.Begin(); err != nil {
		t.Error(err)
	}
}

func TestMeter_NilHasNoLimits(t *testing.T) {
	var m *auth.Meter
	settle, err := m.Reserve(1 << 40)
	if err != nil || m.Begin() != nil {
		t.Fatal(err)
	}
	settle(5)
}

func TestMeter_AChangedFileKeepsWhatWasUsed(t *testing.T) {
	c := &clock{at: start}
	k, secret := newKey(t, func(k *auth.Key) { k.Requests = 2 })
	r := auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{Now: c.now})
	p, err := r.Authenticate(secret)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Meter().Begin(); err != nil {
			t.Fatal(err)
		}
	}
	if p, err = r.Authenticate(secret); err != nil {
		t.Fatal(err)
	}
	if err := p.Meter().Begin(); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("another call has another budget: %v", err)
	}
}
