package integration_test

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// planner reads the plan of a fleet from its registry.
type planner struct {
	f        *fleet
	registry *consul.Registry

	mu   sync.Mutex
	seen []*plan.Document // each version that was seen, in their order
}

// newPlanner follows the plan until the test ends.
func newPlanner(f *fleet) *planner {
	f.t.Helper()
	registry, err := consul.New(consul.Config{Addr: f.registry.Addr()})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context()))
	p := &planner{f: f, registry: registry}
	versions, err := registry.Follow(ctx, "plan")
	if err != nil {
		cancel()
		f.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		for e := range versions {
			if _, err := p.take(e); err != nil {
				f.t.Error(err)
			}
		}
	}()
	f.t.Cleanup(func() {
		cancel()
		<-ended
		_ = registry.Close()
	})
	return p
}

// take keeps a version of the plan, which is empty before the first one.
func (p *planner) take(e discovery.Entry) (*plan.Document, error) {
	if e.Version == 0 {
		return &plan.Document{}, nil
	}
	d, err := plan.ParseDocument(e.Value)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i, known := slices.BinarySearchFunc(p.seen, d.Version, func(d *plan.Document, version uint64) int {
		return cmp.Compare(d.Version, version)
	})
	if !known {
		p.seen = slices.Insert(p.seen, i, d)
	}
	return d, nil
}

// versions returns the versions of the plan that were seen.
func (p *planner) versions() []*plan.Document {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

// read returns the newest plan, which is empty before the first one.
func (p *planner) read() *plan.Document {
	ctx, cancel := context.WithTimeout(p.f.t.Context(), 10*time.Second)
	defer cancel()
	e, err := p.registry.Get(ctx, "plan")
	if err != nil {
		return &plan.Document{}
	}
	d, err := p.take(e)
	if err != nil {
		p.f.t.Fatal(err)
	}
	return d
}

// moved returns the bytes that the repairs of the plan after a version move. known is false if a version was missed, or
// if the plan was changed for another reason meanwhile: it may have been repaired before that was carried out.
func (p *planner) moved(after uint64) (bytes int64, known bool) {
	last := after
	var before *plan.Document
	for _, d := range p.versions() {
		if d.Version <= after {
			before = d
			continue
		}
		// The first version of all has no plan.
		if d.Version != last+1 && (last != 0 || d.Version != 2) {
			return 0, false
		}
		last = d.Version
		// A new placer, and a correction of what is expected, write the last change again.
		if before == nil || d.Reason != before.Reason || d.MoveBytes != before.MoveBytes {
			if d.MoveBytes > 0 && !strings.HasPrefix(d.Reason, "repair") {
				return 0, false
			}
			bytes += d.MoveBytes
		}
		before = d
	}
	return bytes, true
}

// checkMoved compares the bytes that hosts have loaded since a version of the plan with those that the plans move.
func (p *planner) checkMoved(what string, after uint64, loaded int64) {
	p.f.t.Helper()
	planned, known := p.moved(after)
	if !known {
		p.f.t.Logf("%s: the hosts have loaded %d bytes; the plan was not only repaired, or not all versions were seen", what,
			loaded)
		return
	}
	p.f.t.Logf("%s: the plans move %d bytes, and the hosts have loaded %d", what, planned, loaded)
	if planned != loaded {
		p.f.t.Errorf("%s: the hosts have loaded %d bytes, and the plans move %d", what, loaded, planned)
	}
}
