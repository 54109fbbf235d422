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
	"github.com/lamina-mesh/lamina/pkg/rpc"
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
	pingTimes    = 4
)

// LiveInventory asks all shards that a Consul agent lists what they have to offer, and measures the way to them from
// here. Shards that do not answer are left out.
func LiveInventory(ctx context.Context, addr, token string, dialer *rpc.Dialer) ([]inventory.Shard, error) {
	registry, err := consul.New(consul.Config{Addr: addr, Token: token})
	if err != nil {
		return nil, err
	}
	defer registry.Close()
	members, err := registry.Members(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var out []inventory.Shard
	var failed error // one of those that did not answer
	var work sync.WaitGroup
	for _, m := range members {
		if m.Service != "shard" || !m.Healthy {
			continue
		}
		work.Go(func() {
			s, err := describe(ctx, dialer, m.ID, m.Addr)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = fault.Wrap(fault.CodeOf(err), err, "shard %s at %s", m.ID, m.Addr)
				return
			}
			out = append(out, s)
		})
	}
	work.Wait()
	switch {
	case len(out) > 0:
	case failed != nil:
		return nil, fault.Wrap(fault.CodeOf(failed), failed, "read the inventory from consul at %s: no shard answers", addr)
	default:
		return nil, fault.New(fault.NotFound, "read the inventory from consul at %s: it lists no shard", addr)
	}
	return out, nil
}

// describe describes a shard and measures the way to it.
func describe(ctx context.Context, dialer *rpc.Dialer, id, addr string) (inventory.Shard, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTime)
	defer cancel()
	conn, err := dialer.Dial(addr)
	if err != nil {
		return inventory.Shard{}, err
	}
	client := shardv1.NewShardServiceClient(conn)
	out := inventory.Shard{ID: id}
	if out.Description, err = client.Describe(ctx, &shardv1.DescribeRequest{}); err != nil {
		return out, rpc.FromStatus(err)
	}
	for i := range pingTimes {
		start := time.Now()
		if _, err := client.Ping(ctx, &shardv1.PingRequest{}); err != nil {
			return out, rpc.FromStatus(err)
		}
		if ms := time.Since(start).Seconds() * 1000 / 2; i == 0 || ms < out.HopMS {
			out.HopMS = ms
		}
	}
	return out, nil
}
