package rpc_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	testv1 "google.golang.org/grpc/interop/grpc_testing"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

func TestMain(m *testing.M) { leak.Main(m) }

// service answers calls with a function.
type service struct {
	testv1.UnimplementedTestServiceServer
	call   func(context.Context) error
	duplex func(testv1.TestService_FullDuplexCallServer) error
}

func (s *service) EmptyCall(ctx context.Context, _ *testv1.Empty) (*testv1.Empty, error) {
	return &testv1.Empty{}, s.call(ctx)
}

func (s *service) UnaryCall(_ context.Context, r *testv1.SimpleRequest) (*testv1.SimpleResponse, error) {
	return &testv1.SimpleResponse{Payload: r.GetPayload()}, nil
}

func (s *service) FullDuplexCall(stream testv1.TestService_FullDuplexCallServer) error {
	return s.duplex(stream)
}

// serve runs a service on an in-memory network until the test ends or stop is
// called, and returns a connection to it.
func serve(t *testing.T, o rpc.ServerOptions, s *service, options ...rpc.ServeOption) (conn *grpc.ClientConn,
	stop func() error) {
	t.Helper()
	network := memnet.New()
	l, err := rpc.Listen("mem:test", rpc.ListenOptions{Net: network})
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(o)
	testv1.RegisterTestServiceServer(server, s)
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- rpc.Serve(ctx, server, l, func() { close(ready) }, options...) }()
	<-ready
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	dialer := rpc.NewDialer(rpc.DialOptions{Net: network})
	t.Cleanup(func() {
		if err := dialer.Close(); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	if conn, err = dialer.Dial("mem:test"); err != nil {
		t.Fatal(err)
	}
	if again, err := dialer.Dial("mem:test"); err != nil || again != conn {
		t.Fatalf("a second dial gives another connection, %v", err)
	}
	return conn, stop
}

func TestServer_FaultsCrossTheWire(t *testing.T) {
	want := fault.Field("max_tokens", "%d is above %d", 9, 8).After(3 * time.Second)
	want.Op = "generate"
	s := &service{call: func(context.Context) error { return want }}
	conn, _ := serve(t, rpc.ServerOptions{}, s)
	_, err := testv1.NewTestServiceClient(conn).EmptyCall(t.Context(), &testv1.Empty{})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatalf("got %v", err)
	}
	got, ok := rpc.FromStatus(err).(*fault.Error)
	if !ok || got.Code != fault.Invalid || got.Field != "max_tokens" || got.Msg != "9 is above 8" ||
		got.RetryAfter != 3*time.Second {
		t.Errorf("got %+v", got)
	}
}

func TestServer_StreamFaultsCrossTheWire(t *testing.T) {
	s := &service{duplex: func(testv1.TestService_FullDuplexCallServer) error {
		return fault.New(fault.Aborted, "step 4: epoch 2 is over")
	}}
	conn, _ := serve(t, rpc.ServerOptions{}, s)
	stream, err := testv1.NewTestServiceClient(conn).FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); fault.CodeOf(rpc.FromStatus(err)) != fault.Aborted {
		t.Errorf("got %v", err)
	}
}

func TestServer_PanicIsInternalLoggedAndCounted(t *testing.T) {
	var log logtest.Buffer
	registry := prometheus.NewRegistry()
	s := &service{call: func(context.Context) error { panic("shape [2 3]") }}
	conn, stop := serve(t, rpc.ServerOptions{Log: slog.New(slog.NewTextHandler(&log, nil)), Metrics: registry}, s)
	client := testv1.NewTestServiceClient(conn)
	if _, err := client.EmptyCall(t.Context(), &testv1.Empty{}); status.Code(err) != codes.Internal {
		t.Errorf("a panic is %v", err)
	}
	if _, err := client.UnaryCall(t.Context(), &testv1.SimpleRequest{}); err != nil {
		t.Errorf("the call after a panic: %v", err)
	}
	if err := stop(); err != nil { // calls are logged when their handlers have returned
		t.Fatal(err)
	}
	if text := log.String(); !strings.Contains(text, "shape [2 3]") || !strings.Contains(text, "rpc_test.go") {
		t.Errorf("the log lacks the panic or its stack: %s", text)
	}
	counts := map[string]uint64{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "code" {
					counts[l.GetValue()] += m.GetHistogram().GetSampleCount()
				}
			}
		}
	}
	if counts["Internal"] != 1 || counts["OK"] != 1 {
		t.Errorf("counted %v", counts)
	}
}

func TestServer_RefusesMessagesAboveTheCap(t *testing.T) {
	conn, _ := serve(t, rpc.ServerOptions{}, &service{})
	client := testv1.NewTestServiceClient(conn)
	call := func(n int) error {
		_, err := client.UnaryCall(t.Context(), &testv1.SimpleRequest{Payload: &testv1.Payload{Body: make([]byte, n)}},
			grpc.MaxCallSendMsgSize(2*rpc.MaxMessage))
		return err
	}
	if err := call(rpc.MaxMessage - 1024); err != nil {
		t.Errorf("a message below the limit: %v", err)
	}
	if err := call(rpc.MaxMessage + 1); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message above the limit: %v", err)
	}
}

func TestServe_HasHealthAndReflection(t *testing.T) {
	conn, _ := serve(t, rpc.ServerOptions{}, &service{})
	for _, name := range []string{"", "grpc.testing.TestService"} {
		r, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: name})
		if err != nil || r.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", name, r.GetStatus(), err)
		}
	}
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(
		&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}},
	); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil || !strings.Contains(r.String(), "grpc.testing.TestService") {
		t.Errorf("reflection lists %v, %v", r, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("reflection ends with %v", err)
	}
}

func TestServe_LetsCallsFinish(t *testing.T) {
	in, out := make(chan struct{}), make(chan struct{})
	s := &service{call: func(context.Context) error {
		close(in)
		<-out
		return nil
	}}
	conn, stop := serve(t, rpc.ServerOptions{}, s)
	called := make(chan error, 1)
	go func() {
		_, err := testv1.NewTestServiceClient(conn).EmptyCall(context.Background(), &testv1.Empty{})
		called <- err
	}()
	<-in
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	close(out)
	if err := <-called; err != nil {
		t.Errorf("a running call ends with %v", err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestServe_CutsCallsThatDoNotFinish(t *testing.T) {
	in := make(chan struct{})
	s := &service{duplex: func(stream testv1.TestService_FullDuplexCallServer) error {
		close(in)
		<-stream.Context().Done()
		return stream.Context().Err()
	}}
	conn, stop := serve(t, rpc.ServerOptions{}, s, rpc.DrainLimit(20*time.Millisecond))
	stream, err := testv1.NewTestServiceClient(conn).FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-in
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a cut stream ends with %v", err)
	}
}

func TestDialer_ClosedDialsNothing(t *testing.T) {
	d := rpc.NewDialer(rpc.DialOptions{})
	if _, err := d.Dial("mem:a"); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("without a network: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Dial("127.0.0.1:1"); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("after close: %v", err)
	}
}
