package app

import (
	"context"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/inventory"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
)

// Directory returns the members that a Consul agent knows, and a function that closes the connection.
func Directory(addr, token string) (discovery.Directory, func(), error) {
	registry, err := consul.New(consul.Config{Addr: addr, Token: token})
	if err != nil {
		return nil, nil, err
	}
	return registry, func() { _ = registry.Close() }, nil
}

// Limits of LiveInventory.
const (
	describeTime = 3 * time.Second
	hopTime      = 3 * time.Second
)

// Live is what a fleet that runs says to a plan.
type Live struct {
	Shards []inventory.Shard
	// Calibration is what the placer had learned when it last wrote the plan. Before any stream has run its RouterMS is
	// the way to a sampler and back, as it is for the placer.
	Calibration plan.Calibration
}

// LiveInventory asks all shards that a Consul agent lists what they have to offer, measures the way to them as the
// placer does, and reads what the placer has learned. Shards that do not answer are left out.
func LiveInventory(ctx context.Context, addr, token string, dialer *rpc.Dialer) (*Live, error) {
	registry, err := consul.New(consul.Config{Addr: addr, Token: token})
	if err != nil {
		return nil, err
	}
	defer registry.Close()
	members, err := registry.Members(ctx)
	if err != nil {
		return nil, err
	}
	out := &Live{}
	doc, err := router.ReadPlan(ctx, registry)
	if err != nil {
		return nil, err
	}
	if doc != nil {
		out.Calibration = doc.Calibration
	}
	addrs := map[string]string{}
	var mu sync.Mutex
	var failed error // one of those that did not answer
	var work sync.WaitGroup
	sampler := ""
	for _, m := range members {
		if m.Service == "sampler" && m.Healthy {
			sampler = m.Addr
		}
		if m.Service != "shard" || !m.Healthy {
			continue
		}
		work.Go(func() {
			description, err := describe(ctx, dialer, m.Addr)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = fault.Wrap(fault.CodeOf(err), err, "shard %s at %s", m.ID, m.Addr)
				return
			}
			out.Shards = append(out.Shards, inventory.Shard{ID: m.ID, Description: description})
			addrs[m.ID] = m.Addr
		})
	}
	work.Wait()
	switch {
	case len(out.Shards) > 0:
	case failed != nil:
		return nil, fault.Wrap(fault.CodeOf(failed), failed, "read the inventory from consul at %s: no shard answers", addr)
	default:
		return nil, fault.New(fault.NotFound, "read the inventory from consul at %s: it lists no shard", addr)
	}
	ctx, cancel := context.WithTimeout(ctx, hopTime)
	defer cancel()
	for i := range out.Shards {
		work.Go(func() { out.hop(ctx, dialer, i, addrs) })
	}
	if out.Calibration.Tokens == 0 && sampler != "" {
		work.Go(func() { out.Calibration.RouterMS, _ = router.MeasureSampler(ctx, dialer, sampler) })
	}
	work.Wait()
	return out, nil
}

// hop measures the way to a shard, from here and from some others. A time that is not known counts as none.
func (l *Live) hop(ctx context.Context, dialer *rpc.Dialer, i int, addrs map[string]string) {
	s := &l.Shards[i]
	var others []string
	for k := 1; k < len(l.Shards) && k <= router.Pairs; k++ {
		others = append(others, addrs[l.Shards[(i+k)%len(l.Shards)].ID])
	}
	s.HopMS, s.Mbps, _ = router.MeasureHop(ctx, dialer, addrs[s.ID], others)
}

// describe asks a shard what it has.
func describe(ctx context.Context, dialer *rpc.Dialer, addr string) (*shardv1.DescribeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTime)
	defer cancel()
	conn, err := dialer.Dial(addr)
	if err != nil {
		return nil, err
	}
	out, err := shardv1.NewShardServiceClient(conn).Describe(ctx, &shardv1.DescribeRequest{})
	return out, rpc.FromStatus(err)
}
