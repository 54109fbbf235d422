package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/lamina-mesh/lamina/pkg/obs"
)

// sendRequestID puts the id of the request that ctx belongs to into the metadata of a call, so
// that the log lines of the called service carry it too.
func sendRequestID(ctx context.Context) context.Context {
	id := obs.RequestID(ctx)
	if id == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, obs.RequestIDHeader, id)
}

// takeRequestID copies the ids of the request and the session from the metadata of a received call into its context.
func takeRequestID(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	if ids := md.Get(obs.SessionIDHeader); len(ids) == 1 {
		ctx = obs.WithSessionID(ctx, ids[0])
	}
	if ids := md.Get(obs.RequestIDHeader); len(ids) == 1 && obs.ValidRequestID(ids[0]) {
		return obs.WithRequestID(ctx, ids[0])
	}
	return ctx
}

func sendUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker,
	o ...grpc.CallOption) error {
	return invoke(sendRequestID(ctx), method, req, reply, cc, o...)
}

func sendStream(
	ctx context.Context,
	desc *grpc.StreamDesc,
	cc *grpc.ClientConn,
	method string,
	streamer grpc.Streamer,
	o ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return streamer(sendRequestID(ctx), desc, cc, method, o...)
}

func takeUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	return handler(takeRequestID(ctx), req)
}

// identified is a stream with a context of its own.
type identified struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the context.
func (s identified) Context() context.Context { return s.ctx }

func takeStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if ctx := takeRequestID(ss.Context()); ctx != ss.Context() {
		ss = identified{ss, ctx}
	}
	return handler(srv, ss)
}
