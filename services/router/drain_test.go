package router_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
)

func TestDrain_EndsWhatIsLeftAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
		m := newMesh(t, 1, 1, router.Config{})
		a := m.peer("router-a", router.Config{Journal: j})
		const tokens = 1000
		running := make(chan struct{}, 2)
		begun := func(n int) bool {
			if n == 10 {
				running <- struct{}{}
			}
			return true
		}
		results := make(chan error, 2)
		parts := []part{{}, {}}
		go func() { results <- parts[0].generate(patient(t), a.client, resumable("handed over", tokens), begun) }()
		go func() { results <- parts[1].generate(patient(t), a.client, greedy("cut", tokens), begun) }()
		for range parts {
			select {
			case <-running:
			case <-patient(t).Done():
				t.Fatal("the requests have no token")
			}
		}
		drained := make(chan struct{})
		limit, expire := context.WithCancel(patient(t))
		go func() {
			a.service.Drain(limit)
			close(drained)
		}()
		eventually(
			t,
			"the drain",
			func() bool { return fault.CodeOf(a.service.Backend().Ready()) == fault.Unavailable },
		)
		var late part
		err := late.generate(patient(t), a.client, greedy("late", 5), nil)
		var f *fault.Error
		if !errors.As(rpc.FromStatus(err), &f) || f.Code != fault.Unavailable || f.RetryAfter <= 0 {
			t.Errorf("a request to a router that stops: %v", err)
		}
		expire()
		for range parts {
			err := <-results
			if err == nil {
				continue // it was faster
			}
			if !errors.As(rpc.FromStatus(err), &f) || f.Code != fault.Unavailable || f.RetryAfter <= 0 {
				t.Errorf("a request at the end of the drain: %v", err)
			}
		}
		<-drained
		b := m.peer("router-b", router.Config{Journal: j})
		if err := parts[0].resume(patient(t), b.client, nil); parts[0].finished == nil && err != nil {
			t.Errorf("resume after a drain: %v", err)
		}
		parts[0].expect(t, "handed over", tokens)
	})
}

func TestDrain_WaitsForWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{})
		a := m.peer("router-a", router.Config{})
		var p part
		begun := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			begin := sync.OnceFunc(func() { close(begun) })
			defer begin() // if it fails
			ended <- p.generate(patient(t), a.client, greedy("to the end", 500), func(n int) bool {
				if n == 1 {
					begin()
				}
				return true
			})
		}()
		<-begun
		a.service.Drain(patient(t))
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		p.expect(t, "to the end", 500)
	})
}
