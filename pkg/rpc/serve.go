package rpc

import (
	"context"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
)

// drainLimit is how long calls may still run after a stop, unless DrainLimit says.
const drainLimit = 10 * time.Second

// ServeOption changes how Serve serves.
type ServeOption func(*serving)

type serving struct{ drain time.Duration }

// DrainLimit says how long calls may still run after a stop. Streams that last as
// long as their peers want take all of it, so who serves such ends them when it is
// told to stop.
func DrainLimit(d time.Duration) ServeOption { return func(s *serving) { s.drain = d } }

// Serve registers health and reflection on a server and runs it until ctx ends;
// then it reports itself as not serving, stops taking calls, lets running ones
// finish for a while, and cuts them. ready, if not nil, is called when the listener
// takes connections. Serve closes the listener and returns nil after a stop.
func Serve(ctx context.Context, s *grpc.Server, l net.Listener, ready func(), options ...ServeOption) error {
	o := serving{drain: drainLimit}
	for _, set := range options {
		set(&o)
	}
	h := health.NewServer()
	healthv1.RegisterHealthServer(s, h)
	reflection.Register(s)
	for name := range s.GetServiceInfo() {
		h.SetServingStatus(name, healthv1.HealthCheckResponse_SERVING)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	if ready != nil {
		ready()
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	h.Shutdown()
	drained := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(drained)
	}()
	limit := time.NewTimer(o.drain)
	defer limit.Stop()
	select {
	case <-drained:
	case <-limit.C:
		s.Stop() // GracefulStop alone waits for ever on a stalled reader
		<-drained
	}
	if err := <-served; !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
		return err
	}
	return nil
}
