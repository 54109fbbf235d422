package router_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// TestLowest_OthersAreServedFirst lets requests at the lowest priority fill the queue of a pipeline that holds one
// request at a time. Requests that come after them end before all but the one that runs. What such a request asks for
// itself does not help it.
func TestLowest_OthersAreServedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1, 1, router.Config{}, 8)
		m.takes(time.Millisecond, 50*time.Microsecond)
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		run := func(ctx context.Context, name string, priority int32) {
			wg.Go(func() {
				r := greedy(fmt.Sprint(name, strings.Repeat(" prompt", 12)), 8)
				r.Priority = priority
				err := m.service.Backend().Generate(ctx, r, func(*routerv1.GenerateResponse) error { return nil })
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
			})
		}
		ctx := patient(t)
		for i := range 6 {
			run(router.Lowest(ctx), fmt.Sprint("low ", i), -100)
		}
		synctest.Wait()
		for i := range 3 {
			run(ctx, fmt.Sprint("normal ", i), 0)
		}
		wg.Wait()
		early := order[:4]
		for i := range 3 {
			if !slices.Contains(early, fmt.Sprint("normal ", i)) {
				t.Errorf("the requests ended as %q", order)
				break
			}
		}
	})
}
