package router

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// tokenizerLimit is how long one call of a tokenizer may take. A text of the largest size takes a small part of it, so
// a tokenizer that needs longer hangs, and another one is asked.
const tokenizerLimit = 15 * time.Second

// limitedConn gives each call a deadline of its own, and says that the other side is not available when that passes
// and not the deadline of the caller.
type limitedConn struct {
	grpc.ClientConnInterface
	limit time.Duration
}

// within returns the error of a call with the context limited below that of the caller, ctx.
func within(ctx context.Context, err error) error {
	if ctx.Err() == nil && (status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded)) {
		return status.Error(codes.Unavailable, "the tokenizer has not answered in time")
	}
	return err
}

// Invoke makes a call.
func (c limitedConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	limited, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	return within(ctx, c.ClientConnInterface.Invoke(limited, method, args, reply, opts...))
}

// NewStream begins a stream, which has to end within the limit.
func (c limitedConn) NewStream(
	ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	limited, cancel := context.WithTimeout(ctx, c.limit)
	stream, err := c.ClientConnInterface.NewStream(limited, desc, method, opts...)
	if err != nil {
		cancel()
		return nil, within(ctx, err)
	}
	return &limitedStream{stream, ctx, cancel}, nil
}

// limitedStream releases its timer when it ends.
type limitedStream struct {
	grpc.ClientStream
	caller context.Context //nolint:containedctx // the stream belongs to the call that has this context
	cancel context.CancelFunc
}

// RecvMsg receives a message.
func (s *limitedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		return nil
	}
	err = within(s.caller, err)
	s.cancel()
	return err
}
