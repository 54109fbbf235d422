package router_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/services/router"
)

// cutInTurn cuts one shard after another off: the first one at a batch of the request that runs on it, and each
// next one when it computes the batch that the function gives for its number.
func (m *mesh) cutInTurn(losses int, batch func(n int) int) (cut func() int) {
	var mu sync.Mutex
	n := 0
	var plan func()
	plan = func() {
		for name, s := range m.shards {
			s.strike(batch(n), func() {
				mu.Lock()
				defer mu.Unlock()
				if n == losses {
					return
				}
				n++
				m.network.Cut(name, true)
				plan()
			})
		}
	}
	plan()
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// The first loss comes between two tokens, and further ones while the log is computed again. A request is not
// blamed for those: its rows have done no harm before.
func TestService_LossesDuringReplays_BlameNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 6, router.Config{ChunkRows: 8, CacheIdle: -1})
		prompt := strings.Repeat("a long prompt. ", 4)
		const losses, tokens = 5, 40
		cut := m.cutInTurn(losses, func(n int) int {
			if n == 0 {
				return 20 // eight chunks of the prompt and some tokens
			}
			return 3
		})
		a, err := m.generate(t.Context(), greedy(prompt, tokens), nil)
		if err != nil || a.text != expect(prompt, tokens) {
			t.Errorf("%q, %v", a.text, err)
		}
		if n := cut(); n != losses {
			t.Errorf("%d shards were lost, want %d", n, losses)
		}
	})
}

// Each loss comes at a later chunk of the prompt than the one before. What was in flight at the one before has
// done no harm since, so there are never two strikes.
func TestService_LossesDuringALongPrompt_BlameNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 6, router.Config{ChunkRows: 8, CacheIdle: -1})
		prompt := strings.Repeat("a long prompt. ", 12)
		const losses = 5
		cut := m.cutInTurn(losses, func(n int) int { return 3 * (n + 1) })
		a, err := m.generate(t.Context(), greedy(prompt, 5), nil)
		if err != nil || a.text != expect(prompt, 5) {
			t.Errorf("%q, %v", a.text, err)
		}
		if n := cut(); n != losses {
			t.Errorf("%d shards were lost, want %d", n, losses)
		}
	})
}

// A request with one row that ends the process that computes it is set aside after two losses, although the
// rest of its prompt is harmless, and others go on.
func TestService_RowThatEndsProcesses_IsBlamedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 3, router.Config{ChunkRows: 4})
		for _, s := range m.shards {
			s.mu.Lock()
			s.poison, s.forgets = '!', true
			s.mu.Unlock()
		}
		var others sync.WaitGroup
		others.Go(func() { m.streams(6, 300) })
		for i := range 3 {
			before := m.poisoned()
			_, err := m.generate(t.Context(), greedy(fmt.Sprintf("a prompt of several chunks, %d! and more", i), 5), nil)
			if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "set aside") {
				t.Errorf("%v", err)
			}
			if n := m.poisoned() - before; n != 2 {
				t.Errorf("request %d has ended %d processes, want 2", i, n)
			}
			if err := m.service.AwaitPipelines(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
		}
		others.Wait()
	})
}

// poisoned returns how many processes have ended because of a row.
func (m *mesh) poisoned() (n int) {
	for _, s := range m.shards {
		s.mu.Lock()
		n += s.poisoned
		s.mu.Unlock()
	}
	return n
}
