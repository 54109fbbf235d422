package router

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

const (
	pings          = 4
	pingBytes      = 128 << 10
	leastBandwidth = 50 * time.Microsecond // of a large ping; what takes less time says nothing of the bandwidth
	// Pairs is the number of other hosts that measure the way to a host.
	Pairs = 3
)

var errNoPing = errors.New("the shard could not ping its neighbour")

// MeasureHop measures the way to a shard: the mean of that from here and from some other shards, by address. A plan
// does not know yet which host will be the one before. The bandwidth is 0 if it was too high to measure.
func MeasureHop(ctx context.Context, d Dialer, to string, others []string) (ms, mbps float64, err error) {
	own, err := ping(ctx, d, "", to)
	if err != nil {
		return 0, 0, err
	}
	hops := []hopTime{own}
	for _, from := range others {
		if other, err := ping(ctx, d, from, to); err == nil {
			hops = append(hops, other)
		}
	}
	mean := meanHop(hops)
	return mean.ms, mean.mbps, nil
}

// MeasureSampler measures the way to a sampler and back, in milliseconds.
func MeasureSampler(ctx context.Context, d Dialer, addr string) (float64, error) {
	conn, err := d.Dial(addr)
	if err != nil {
		return 0, err
	}
	client := grpc_health_v1.NewHealthClient(conn)
	best, err := fastest(func() error {
		_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return err
	})
	return best.Seconds() * 1000, err
}

// fastest returns the shortest time of some calls.
func fastest(call func() error) (time.Duration, error) {
	best := time.Duration(0)
	for i := range pings {
		start := time.Now()
		if err := call(); err != nil {
			return 0, rpc.FromStatus(err)
		}
		if took := time.Since(start); i == 1 || i > 1 && took < best { // the first one may have to connect
			best = took
		}
	}
	return best, nil
}

// ping measures a hop: from a shard to another, or from here if there is no sender.
func ping(ctx context.Context, d Dialer, from, to string) (hopTime, error) {
	if from != "" {
		conn, err := d.Dial(from)
		if err != nil {
			return hopTime{}, err
		}
		resp, err := shardv1.NewShardServiceClient(conn).Ping(ctx, &shardv1.PingRequest{Addresses: []string{to}})
		if err != nil {
			return hopTime{}, rpc.FromStatus(err)
		}
		for _, t := range resp.GetTimes() {
			if t.GetError() == "" && t.GetRoundTripMs() > 0 {
				return hopTime{ms: t.GetRoundTripMs() / 2, mbps: t.GetBandwidthMbps(), at: time.Now()}, nil
			}
		}
		return hopTime{}, errNoPing
	}
	conn, err := d.Dial(to)
	if err != nil {
		return hopTime{}, err
	}
	client := shardv1.NewShardServiceClient(conn)
	best, err := fastest(func() error {
		_, err := client.Ping(ctx, &shardv1.PingRequest{})
		return err
	})
	if err != nil {
		return hopTime{}, err
	}
	start := time.Now()
	large := hopTime{ms: best.Seconds() * 1000 / 2, at: time.Now()}
	if _, err := client.Ping(ctx, &shardv1.PingRequest{Payload: make([]byte, pingBytes)}); err != nil {
		return hopTime{}, rpc.FromStatus(err)
	}
	if more := time.Since(start) - best; more > leastBandwidth {
		large.mbps = pingBytes * 8 / more.Seconds() / 1e6
	}
	return large, nil
}

// meanHop returns the mean of some hops. Bandwidths that were too high to measure, which are 0, do not count.
func meanHop(hops []hopTime) hopTime {
	var out hopTime
	known := 0.0
	for _, h := range hops {
		out.ms += h.ms / float64(len(hops))
		if h.mbps > 0 {
			out.mbps, known = out.mbps+h.mbps, known+1
		}
	}
	if known > 0 {
		out.mbps /= known
	}
	return out
}

// measureHop measures the way to a host.
func (p *placer) measureHop(ctx context.Context, h *placed) {
	ctx, cancel := context.WithTimeout(ctx, describeLimit)
	defer cancel()
	ms, mbps, err := MeasureHop(ctx, p.s.cfg.Dialer, h.addr, p.others(h))
	p.mu.Lock()
	defer p.mu.Unlock()
	h.hop.measuring = false
	if err == nil {
		h.hop = hopTime{ms: ms, mbps: mbps}
	}
	h.hop.at = time.Now()
}

// others returns the addresses of some hosts that answer.
func (p *placer) others(h *placed) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, other := range p.hosts {
		if other != h && other.alive() && len(out) < Pairs {
			out = append(out, other.addr)
		}
	}
	return out
}

// measureSampler measures the way to a sampler and back.
func (p *placer) measureSampler(ctx context.Context) {
	p.s.mu.Lock()
	samplers := p.s.instances["sampler"]
	p.s.mu.Unlock()
	if len(samplers) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, describeLimit)
	defer cancel()
	if ms, err := MeasureSampler(ctx, p.s.cfg.Dialer, samplers[0].Addr); err == nil {
		p.mu.Lock()
		p.samplerMS = ms
		p.mu.Unlock()
	}
}
