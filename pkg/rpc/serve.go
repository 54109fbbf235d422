package rpc

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
)

// drainLimit is how long calls may still run after a stop.
const drainLimit = 10 * time.Second

// Serve registers health and reflection on a server and runs it until ctx ends;
// then it stops taking calls, lets running ones finish for a while, and cuts them.
// ready, if not nil, is called when the server has begun to serve.
func Serve(ctx context.Context, s *grpc.Server, l net.Listener, ready func()) error {
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
	limit := time.NewTimer(drainLimit)
	defer limit.Stop()
	select {
	case <-drained:
	case <-limit.C:
		s.Stop() // GracefulStop alone waits for ever on a stalled reader
		<-drained
	}
	return <-served
}
