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

// drainLimit is how long calls may still run after a stop. The option DrainLimit overrides it.
const drainLimit = 10 * time.Second

// ServeOption is an option of Serve.
type ServeOption func(*serving)

type serving struct {
	drain time.Duration
	await func(context.Context) error
}

// Await keeps the health of the services at NOT_SERVING until f returns. f waits for what they
// need from other processes; an error of f ends Serve. Meanwhile the server takes calls.
func Await(f func(context.Context) error) ServeOption { return func(s *serving) { s.await = f } }

// DrainLimit sets how long calls may still run after a stop. A stream that its peer keeps open
// uses up the whole limit, so a service with such streams should end them when it is told to stop.
func DrainLimit(d time.Duration) ServeOption { return func(s *serving) { s.drain = d } }

// Serve registers the health and reflection services on a server and runs it until ctx ends.
// Then it sets the health to NOT_SERVING, stops taking calls, gives running calls until the
// drain limit, and cuts those that are left. ready, if not nil, is called when the health
// becomes SERVING. Serve closes the listener and returns nil after a stop.
func Serve(ctx context.Context, s *Server, l net.Listener, ready func(), options ...ServeOption) error {
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
	go func() { // ends at the latest when waiting does
		if o.await == nil {
			awaited <- nil
			return
		}
		awaited <- o.await(waiting)
	}()
	var failed error // of o.await
	select {
	case err := <-served:
		cancel()
		<-awaited //nolint:errcheck // the wait was cancelled above
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
		s.Stop() // GracefulStop alone waits forever for a client that has stopped reading
		<-drained
	}
	err := <-served
	if errors.Is(err, grpc.ErrServerStopped) { // stopped before it had started
		err = nil
	}
	if failed != nil && ctx.Err() == nil {
		return errors.Join(failed, err)
	}
	return err
}
