package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of every server and client.
const (
	// MaxMessage is the maximum size of a message in bytes. Tensors are sent in chunks of a
	// quarter of it.
	MaxMessage = 4 << 20
	// bufferSize is the size of the read and write buffers of a connection between services.
	bufferSize = 64 << 10
	// streamWindow and connWindow are the HTTP/2 windows between services. They are fixed, so
	// that gRPC does not spend pings on estimating the bandwidth.
	streamWindow = 4 << 20
	connWindow   = 16 << 20
	// These are the same for the connections of clients. They bound the memory that a client
	// which has stopped reading can hold.
	clientBuffer       = 32 << 10
	clientStreamWindow = 128 << 10
	clientConnWindow   = 256 << 10
	// maxStreams is the number of calls that one connection may have open.
	maxStreams = 1024
	// maxHeaders is the size of the metadata of a call, as servers over HTTP have it.
	maxHeaders = 64 << 10
)

// ServerOptions are the options of NewServer.
type ServerOptions struct {
	Log     *slog.Logger          // nil logs nothing
	Metrics prometheus.Registerer // nil measures nothing
	TLS     *tls.Config           // nil for plaintext: on loopback, or where the operator allows it
	// Certificates are those that TLS is of; with them, connections end when their certificates are revoked.
	Certificates *Certificates
	Public       bool          // small buffers, for many clients
	Stats        stats.Handler // is told of calls, for traces, and not of what Server receives itself; nil for none
	Guard        *auth.Guard   // decides who may call what; nil lets everyone call everything
	Bodies       *Bodies       // room for the requests that it holds together; nil for MaxBodies, and more for services
}

// NewServer returns a server with Lamina's limits and interceptors. Handlers return
// fault errors; a panic becomes INTERNAL and a log line with its stack. The guard is asked before the request is
// received, and what it refuses is logged and counted like other errors.
func NewServer(o ServerOptions) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m := newMetrics(o.Metrics)
	recovered := func(_ context.Context, p any) error {
		o.Log.Error("recover from panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		return fault.New(fault.Internal, "recover from panic: %v", p)
	}
	recovering := recovery.WithRecoveryHandlerContext(recovered)
	buffer, window, all := bufferSize, streamWindow, connWindow
	if o.Public {
		buffer, window, all = clientBuffer, clientStreamWindow, clientConnWindow
	}
	if o.Bodies == nil && o.Public {
		o.Bodies = NewBodies(MaxBodies)
	} else if o.Bodies == nil {
		o.Bodies = newServicesBodies()
	}
	g, receiving := guard{o.Guard}, receiving{bodies: o.Bodies, streams: o.Public}
	options := []grpc.ServerOption{
		grpc.ReadBufferSize(buffer),
		grpc.WriteBufferSize(buffer),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.StaticStreamWindowSize(int32(window)),
		grpc.StaticConnWindowSize(int32(all)),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(
			keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(takeUnary, unary(o.Log, m), recovery.UnaryServerInterceptor(recovering), g.unary),
		grpc.ChainStreamInterceptor(
			takeStream,
			stream(o.Log, m),
			recovery.StreamServerInterceptor(recovering),
			g.stream(receiving),
		),
		grpc.InTapHandle(receiving.begin),
	}
	if o.Stats != nil {
		options = append(options, grpc.StatsHandler(o.Stats))
	}
	if o.TLS != nil {
		options = append(options, grpc.Creds(o.Certificates.credentials(o.TLS)))
	}
	if o.Guard != nil {
		options = append(options, grpc.UnknownServiceHandler(unknown))
	}
	return &Server{Server: grpc.NewServer(options...), guard: g, receiving: receiving, recovered: recovered}
}

// unary returns an interceptor that maps errors to statuses, and logs and measures calls.
func unary(log *slog.Logger, m *metrics) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		start := time.Now()
		resp, err := handler(ctx, req)
		err = callStatus(ctx, err)
		observe(ctx, log, m, info.FullMethod, start, err)
		return resp, err
	}
}

// stream returns an interceptor that does the same for streams, when they end. It does not look
// at their messages.
func stream(log *slog.Logger, m *metrics) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		start := time.Now()
		err := callStatus(ss.Context(), handler(srv, ss))
		method := info.FullMethod
		if srv == nil { // the method does not exist, and clients must not be able to make up metrics
			method = "unknown"
		}
		observe(ss.Context(), log, m, method, start, err)
		return err
	}
}

// callStatus is the status of a call's error. Work that stops because the call's deadline has passed may report that it
// was canceled: the client is told why.
func callStatus(ctx context.Context, err error) error {
	err = ToStatus(err)
	if status.Code(err) == codes.Canceled && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return status.Error(codes.DeadlineExceeded, status.Convert(err).Message())
	}
	return err
}

func observe(ctx context.Context, log *slog.Logger, m *metrics, method string, start time.Time, err error) {
	code := status.Code(err)
	m.observe(method, code.String(), time.Since(start))
	level := slog.LevelDebug
	switch FaultCode(code) {
	case fault.Internal, fault.DataLoss:
		if err != nil {
			level = slog.LevelError
		}
	}
	log.LogAttrs(ctx, level, "call ended", slog.String("method", method), slog.String("code", code.String()),
		slog.Duration("took", time.Since(start)), slog.Any("error", err))
}

// metrics counts calls by method and code.
type metrics struct{ calls *prometheus.HistogramVec }

func newMetrics(r prometheus.Registerer) *metrics {
	if r == nil {
		return &metrics{}
	}
	m := &metrics{calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "lamina_grpc_call_seconds", Help: "How long calls and streams took, by method and code.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
	}, []string{"method", "code"})}
	var known prometheus.AlreadyRegisteredError
	switch err := r.Register(m.calls); {
	case errors.As(err, &known): // another server of this process has registered it
		m.calls = known.ExistingCollector.(*prometheus.HistogramVec)
	case err != nil:
		panic(err) // as MustRegister does
	}
	return m
}

func (m *metrics) observe(method, code string, took time.Duration) {
	if m.calls != nil {
		m.calls.WithLabelValues(method, code).Observe(took.Seconds())
	}
}
