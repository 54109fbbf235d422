package shard

import (
	"context"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// Limits of pings. All addresses together take two seconds at most.
const (
	maxPayload   = 256 << 10
	maxAddresses = 16
	smallPings   = 3
	pingLimit    = 2 * time.Second
	// leastRate is the smallest time for the bytes of a large ping that says anything.
	leastRate = 50 * time.Microsecond
)

// Ping answers at once, or pings the shards at other addresses.
func (s *Service) Ping(ctx context.Context, r *shardv1.PingRequest) (*shardv1.PingResponse, error) {
	if n := len(r.GetPayload()); n > maxPayload {
		return nil, fault.Field("payload", "ping: want at most %d bytes, got %d", maxPayload, n)
	}
	if n := len(r.GetAddresses()); n > maxAddresses {
		return nil, fault.Field("addresses", "ping: want at most %d, got %d", maxAddresses, n)
	}
	out := &shardv1.PingResponse{
		Times: make([]*shardv1.PingTime, len(r.GetAddresses())), DeviceHost: s.deviceHost(),
	}
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	var wg sync.WaitGroup
	for i, addr := range r.GetAddresses() {
		wg.Go(func() { out.Times[i] = s.ping(ctx, addr) })
	}
	wg.Wait()
	return out, nil
}

// ping measures the way to another shard. The shortest of some round trips is least disturbed by other work.
func (s *Service) ping(ctx context.Context, addr string) *shardv1.PingTime {
	out := &shardv1.PingTime{Address: addr}
	conn, err := s.cfg.Dialer.Dial(addr)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	client := shardv1.NewShardServiceClient(conn)
	once := func(payload []byte) (time.Duration, error) {
		start := time.Now()
		_, err := client.Ping(ctx, &shardv1.PingRequest{Payload: payload})
		return time.Since(start), rpc.FromStatus(err)
	}
	var best time.Duration
	for i := range smallPings + 1 { // the first one may have to connect
		took, err := once(nil)
		if err != nil {
			out.Error = err.Error()
			return out
		}
		if i == 1 || i > 1 && took < best {
			best = took
		}
	}
	out.RoundTripMs = best.Seconds() * 1000
	if large, err := once(make([]byte, maxPayload)); err == nil && large-best > leastRate {
		out.BandwidthMbps = maxPayload * 8 / (large - best).Seconds() / 1e6
	}
	return out
}
