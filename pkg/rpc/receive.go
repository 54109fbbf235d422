package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	// receiveLimit is how long a message may take from its first byte to its last, and the only request of a call from
	// the beginning of the call.
	receiveLimit = 30 * time.Second
	// receivePiece is how much of a message a client may send before there has to be room for more.
	receivePiece = 256 << 10
)

// Server is a gRPC server that knows its callers before it receives what they send, and bounds what it holds of it.
//
// gRPC itself bounds single messages: it receives the request of a unary call before any interceptor, and as many at
// once as there are calls. So the server receives the messages itself: all requests of calls that have only one, and
// those of streams if it is public. Streams between services, which carry the tensors, receive as gRPC does.
type Server struct {
	*grpc.Server
	guard     guard
	receiving receiving
	recovered func(context.Context, any) error // logs a panic and returns its error
}

// RegisterService registers a service like grpc.Server.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods = slices.Clone(desc.Methods)
	for i, m := range d.Methods {
		d.Methods[i].Handler = s.unary("/"+d.ServiceName+"/"+m.MethodName, m.Handler)
	}
	s.Server.RegisterService(&d, impl)
}

// unary returns the handler of a unary call that is judged before its request is received. The request of a caller who
// is known and may not call the method is received too, since the audit log says what it is about.
func (s *Server) unary(method string, handler grpc.MethodHandler) grpc.MethodHandler {
	return func(
		srv any, ctx context.Context, _ func(any) error, intercept grpc.UnaryServerInterceptor,
	) (resp any, err error) {
		var v verdict
		fail := func(err error) (any, error) {
			return intercept(context.WithValue(ctx, verdictKey{}, v), nil,
				&grpc.UnaryServerInfo{Server: srv, FullMethod: method},
				func(context.Context, any) (any, error) { return nil, err })
		}
		defer func() { // from what runs before the interceptors, which recover from panics of the method
			if p := recover(); p != nil {
				resp, err = fail(s.recovered(ctx, p))
			}
		}()
		v = s.guard.judge(ctx, method)
		ctx = context.WithValue(ctx, verdictKey{}, v)
		if v.err != nil && v.principal == nil {
			return fail(v.err)
		}
		r := s.receiving.of(ctx, v.tenant, true)
		defer r.close()
		var failed error
		resp, err = handler(srv, ctx, func(m any) error {
			failed = r.receive(m)
			return failed
		}, intercept)
		if failed != nil { // no interceptor has seen it
			return fail(failed)
		}
		return resp, err
	}
}

// receiving is how a server receives messages.
type receiving struct {
	bodies  *Bodies
	streams bool // the messages of streams are counted, too
}

type cutKey struct{}

// begin lets a call be cut while the server waits for its messages.
func (receiving) begin(ctx context.Context, _ *tap.Info) (context.Context, error) {
	ctx, cut := context.WithCancel(ctx) // the context above it ends with the call
	return context.WithValue(ctx, cutKey{}, cut), nil
}

// counts reports whether the messages of a stream are counted.
func (g receiving) counts(info *grpc.StreamServerInfo) bool { return g.streams || !info.IsClientStream }

// of returns the receiver of a call, which has one request or a stream of them.
func (g receiving) of(ctx context.Context, tenant string, single bool) *receiver {
	return &receiver{
		wire: grpc.ServerTransportStreamFromContext(ctx).(wire), cut: ctx.Value(cutKey{}).(context.CancelFunc),
		body: g.bodies.Body(tenant), single: single,
	}
}

// wire is what gRPC reads the messages of a call from: its stream has these methods, though no public interface names
// them. No call would work if it lost them.
type wire interface {
	ReadMessageHeader([]byte) error
	Read(n int) (mem.BufferSlice, error)
	RecvCompress() string
}

// receiver receives the messages of a call. A message counts until the next one is received or the call ends. One
// goroutine at a time receives.
type receiver struct {
	wire   wire
	cut    context.CancelFunc // ends the call's context
	body   *Body
	single bool
}

func (r *receiver) close() { r.body.Close() }

// counted is a stream whose messages count.
type counted struct {
	grpc.ServerStream
	*receiver
}

// RecvMsg receives a message.
func (c counted) RecvMsg(m any) error { return c.receive(m) }

// receive receives a message. Its errors are io.EOF or have a status.
func (r *receiver) receive(m any) error {
	r.body.Clear()
	var limit *time.Timer
	begin := func() { limit = time.AfterFunc(receiveLimit, r.cut) }
	if r.single {
		begin()
	}
	var head [5]byte
	err := r.wire.ReadMessageHeader(head[:])
	if err == nil {
		if !r.single {
			begin()
		}
		err = r.read(m, head)
	}
	switch late := limit != nil && !limit.Stop(); {
	case late:
		err = fault.New(fault.DeadlineExceeded, "receive the request: it has to arrive within %v", receiveLimit)
	case errors.Is(err, io.EOF) && r.single:
		err = status.Error(codes.Internal, "receive the request: the call has ended without one")
	case errors.Is(err, io.EOF):
		return io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = status.Error(codes.Internal, "receive the request: the call has ended in the middle of it")
	}
	return ToStatus(err)
}

// read reads the rest of a message, whose header says whether it is compressed and how long it is.
func (r *receiver) read(m any, head [5]byte) error {
	length := binary.BigEndian.Uint32(head[1:])
	if length > MaxMessage {
		return tooLong()
	}
	n := int(length)
	var data mem.BufferSlice
	defer func() { data.Free() }()
	for n > 0 {
		piece := min(n, receivePiece)
		if !r.body.Add(int64(piece)) {
			return NoRoom(fault.Exhausted)
		}
		part, err := r.wire.Read(piece)
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		data, n = append(data, part...), n-piece
	}
	if head[0] != 0 {
		plain, err := r.decompress(data)
		if err != nil {
			return err
		}
		data.Free()
		data = mem.BufferSlice{mem.SliceBuffer(plain)}
	}
	if err := encoding.GetCodecV2(proto.Name).Unmarshal(data, m); err != nil {
		return status.Errorf(codes.Internal, "decode the request: %v", err)
	}
	if !r.single {
		return nil
	}
	switch err := r.wire.ReadMessageHeader(head[:]); {
	case err == nil:
		return status.Error(codes.Internal, "receive the request: the call has more than one")
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// decompress returns the message that was compressed.
func (r *receiver) decompress(data mem.BufferSlice) ([]byte, error) {
	c := encoding.GetCompressor(r.wire.RecvCompress())
	if c == nil {
		return nil, status.Errorf(codes.Internal, "decompress the request: it does not say how it is compressed")
	}
	z, err := c.Decompress(data.Reader())
	var plain []byte
	if err == nil {
		plain, err = io.ReadAll(r.body.Reader(io.LimitReader(z, MaxMessage+1), fault.Exhausted))
	}
	var full *fault.Error
	switch {
	case errors.As(err, &full):
		return nil, full
	case err != nil:
		return nil, status.Errorf(codes.Internal, "decompress the request: %v", err)
	case len(plain) > MaxMessage:
		return nil, tooLong()
	}
	return plain, nil
}

func tooLong() error {
	return fault.New(fault.Exhausted, "receive the request: a message has at most %d bytes", MaxMessage)
}
