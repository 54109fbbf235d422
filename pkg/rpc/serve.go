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

type serving struct {
	drain time.Duration
	await func(context.Context) error
}

// Await keeps the services' health at NOT_SERVING until f returns: f waits for what they
// need from elsewhere. Its error ends Serve. The server takes calls meanwhile.
func Await(f func(context.Context) error) ServeOption { return func(s *serving) { s.await = f } }

// DrainLimit says how long calls may still run after a stop. Streams that last as
// long as their peers want take all of it, so who serves such ends them when it is
// told to stop.
func DrainLimit(d time.Duration) ServeOption { return func(s *serving) { s.drain = d } }

// Serve registers health and reflection on a server and runs it until ctx ends;
// then it reports itself as not serving, stops taking calls, lets running ones
// finish for a while, and cuts them. ready, if not nil, is called when the services'
// health says SERVING. Serve closes the listener and returns nil after a stop.
func Serve(ctx context.Context, s *grpc.Server, l net.Listener, ready func(), options ...ServeOption) error {
	o := serving{drain: drainLimit}
	for _, set := range options {
		set(&o)
	}
	h := health.NewServer()
	healthv1.RegisterHealthServer(s, h)
	reflection.Register(s)
	report := func(status healthv1.HealthCheckResponse_ServingStatus) {
		h.SetServingStatus("", status)
		for name := range s.GetServiceInfo() {
			h.SetServingStatus(name, status)
		}
	}
	report(healthv1.HealthCheckResponse_NOT_SERVING)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	awaited := make(chan error, 1)
	waiting, cancel := context.WithCancel(ctx)
	go func() { // ends with waiting at the latest
		if o.await == nil {
			awaited <- nil
			return
		}
		awaited <- o.await(waiting)
	}()
	var failed error // of what was awaited
	select {
	case err := <-served:
		cancel()
		<-awaited
		return err
	case failed = <-awaited:
	}
	cancel()
	if failed == nil && ctx.Err() == nil {
		report(healthv1.HealthCheckResponse_SERVING)
		if ready != nil {
			ready()
		}
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
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
	err := <-served
	if errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
		err = nil
	}
	if failed != nil && ctx.Err() == nil {
		return errors.Join(failed, err)
	}
	return err
}
