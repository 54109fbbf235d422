package sched_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// tenants drives a scheduler whose pages several tenants use.
type tenants struct {
	t    *testing.T
	p    *pipeline
	sent int
}

// run runs requests of a tenant at the same time, with a token each, until all have ended.
func (x *tenants) run(tenant string, weight float64, logs ...[]int32) {
	x.t.Helper()
	var events []sched.Event
	for _, log := range logs {
		x.sent++
		events = append(events, sched.Submit{ID: sched.ID(fmt.Sprint(x.sent)), Epoch: 1, Tenant: tenant, Weight: weight,
			Log: log, MaxLen: len(log) + 1})
	}
	for range 10_000 {
		if events = x.p.step(events); len(x.p.ended) == x.sent {
			if err := x.p.s.Check(); err != nil {
				x.t.Fatal(err)
			}
			return
		}
	}
	x.t.Fatalf("%d of %d requests have ended", len(x.p.ended), x.sent)
}

// cached returns how many pages of a tenant's logs are in the prefix cache.
func (x *tenants) cached(tenant string, logs [][]int32) int {
	n := 0
	for _, log := range logs {
		n += x.p.s.Cached(tenant, "", log) / pageLen
	}
	return n
}

const pageLen = 16 // of config

// logsOf returns random logs that fill a number of pages each; the last position is none of a page.
func logsOf(rnd *rand.Rand, n, pages int) [][]int32 {
	out := make([][]int32, n)
	for i := range out {
		out[i] = prompt(rnd, pages*pageLen+1)
	}
	return out
}

// TestScheduler_AFloodOfAnotherTenantSparesTheShare is promise C11 about eviction: the pool has 64 pages, a victim has
// some of them cached, and another tenant floods the pipeline with prompts that nobody sent before.
func TestScheduler_AFloodOfAnotherTenantSparesTheShare(t *testing.T) {
	const pages = 64
	for name, row := range map[string]struct {
		victim  int     // prompts of four pages that the victim has cached
		weight  float64 // of the victim; the other tenant has 1
		bystand int     // prompts of a third tenant
		left    int     // pages of the victim that must be left
	}{
		"below its share": {victim: 7, weight: 1, left: 28},
		"at its share":    {victim: 8, weight: 1, left: 32},
		"above its share": {victim: 14, weight: 1, left: 32},
		"of weight three": {victim: 14, weight: 3, left: 48},
		"one of three":    {victim: 5, weight: 1, bystand: 5, left: 20},
	} {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(11, 12))
			x := &tenants{t: t, p: &pipeline{s: sched.New(config(pages)), rnd: rnd}}
			mine, others := logsOf(rnd, row.victim, 4), logsOf(rnd, row.bystand, 4)
			for _, log := range mine {
				x.run("victim", row.weight, log)
			}
			for _, log := range others {
				x.run("bystander", 1, log)
			}
			if got := x.cached("victim", mine); got != 4*row.victim {
				t.Fatalf("%d pages of the victim are cached before the flood, want %d", got, 4*row.victim)
			}
			for range 100 {
				x.run("flood", 1, logsOf(rnd, 1+rnd.IntN(6), 1+rnd.IntN(4))...)
			}
			if got := x.cached("victim", mine); got < row.left {
				t.Errorf("%d pages of the victim are left, want %d", got, row.left)
			}
			if got := x.cached("bystander", others); got != 4*row.bystand {
				t.Errorf("%d pages of the bystander are left, want %d", got, 4*row.bystand)
			}
			if x.p.s.Stats().Evicted < 100 {
				t.Errorf("%d pages were evicted: the flood is none", x.p.s.Stats().Evicted)
			}
		})
	}
}

// A single request that is longer than its tenant's share runs nevertheless when nothing else does: it takes as many
// pages of others as it lacks, and no more.
func TestScheduler_ALoneRequestBeyondItsShareTakesWhatItLacks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(13, 14))
	x := &tenants{t: t, p: &pipeline{s: sched.New(config(64)), rnd: rnd}}
	mine := logsOf(rnd, 7, 4)
	for _, log := range mine {
		x.run("victim", 1, log)
	}
	x.run("other", 1, logsOf(rnd, 1, 39)...) // and a page for its last position
	if got := x.cached("victim", mine); got != 24 {
		t.Errorf("%d pages of the victim are left, want 24", got)
	}
	x.run("victim", 1, mine...)
	if got := x.cached("victim", mine); got != 28 {
		t.Errorf("%d pages of the victim are cached after it came back, want 28", got)
	}
}
