package batches

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// TestTurns_GoRoundTenantsAndTheirBatches has one slot, which five batches of three tenants want again and again.
func TestTurns_GoRoundTenantsAndTheirBatches(t *testing.T) {
	turns := newTurns(1)
	names := []string{"a1", "a2", "a3", "b1", "c1"}
	shares := map[string]*share{}
	for _, name := range names {
		shares[name] = turns.join(name[:1])
	}
	give, err := shares["a1"].take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// They want a slot, and have none yet.
	for _, name := range names {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := shares[name].take(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("%s: %v while the slot is taken", name, err)
		}
	}
	var order []string
	turn := func() {
		give()
		i := slices.IndexFunc(names, func(name string) bool { return len(shares[name].ready) > 0 })
		if i < 0 {
			t.Fatalf("nobody has the slot after %q", order)
		}
		order = append(order, names[i])
		if give, err = shares[names[i]].take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 9 {
		turn()
	}
	if want := []string{"b1", "c1", "a2", "b1", "c1", "a3", "b1", "c1", "a1"}; !slices.Equal(order, want) {
		t.Errorf("the slot went to %q, want %q", order, want)
	}
	shares["b1"].rest()
	shares["c1"].leave()
	for range 4 {
		turn()
	}
	if want := []string{"a2", "a3", "a1", "a2"}; !slices.Equal(order[9:], want) {
		t.Errorf("for a alone the slot went to %q, want %q", order[9:], want)
	}
	delete(shares, "c1")
	for _, s := range shares {
		s.leave()
	}
	give()
	if turns.free != 1 || len(turns.shares) != 0 || len(turns.tenants) != 0 {
		t.Errorf("%d slots are free, %d shares and %d tenants are left", turns.free, len(turns.shares),
			len(turns.tenants))
	}
}

// TestTurns_WhatIsNotTakenGoesToOthers gives a batch three slots, of which it takes one.
func TestTurns_WhatIsNotTakenGoesToOthers(t *testing.T) {
	turns := newTurns(3)
	a, b := turns.join("a"), turns.join("b")
	give, err := a.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.take(ctx); err == nil {
		t.Fatal("four slots are there")
	}
	a.rest()
	for range 2 {
		if _, err := b.take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.ready) != 0 || turns.free != 0 {
		t.Errorf("b has %d slots more, and %d are free", len(b.ready), turns.free)
	}
	a.leave()
	give()
	if len(b.ready) != 1 || b.tenant.running != 3 || a.tenant.running != 0 {
		t.Errorf("b has %d slots, a has %d", b.tenant.running, a.tenant.running)
	}
}
