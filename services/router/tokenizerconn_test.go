package router

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// hanging is a connection to a service that never answers.
type hanging struct{ grpc.ClientStream }

func (hanging) Invoke(ctx context.Context, _ string, _, _ any, _ ...grpc.CallOption) error {
	<-ctx.Done()
	return status.FromContextError(ctx.Err()).Err()
}

func (hanging) NewStream(
	ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return hangingStream{ctx: ctx}, nil
}

type hangingStream struct {
	grpc.ClientStream
	ctx context.Context
}

func (s hangingStream) SendMsg(any) error { return nil }
func (s hangingStream) CloseSend() error  { return nil }
func (s hangingStream) RecvMsg(any) error {
	<-s.ctx.Done()
	return status.FromContextError(s.ctx.Err()).Err()
}

// A tokenizer that hangs is one that cannot be reached, so that another one is asked. The deadline of the caller stays
// what it is.
func TestLimitedConn_ATokenizerThatHangsIsUnavailable(t *testing.T) {
	client := tokenizerv1.NewTokenizerServiceClient(limitedConn{hanging{}, 10 * time.Millisecond})
	patientClient := tokenizerv1.NewTokenizerServiceClient(limitedConn{hanging{}, time.Hour})
	for name, call := range map[string]func(context.Context, tokenizerv1.TokenizerServiceClient) error{
		"unary": func(ctx context.Context, c tokenizerv1.TokenizerServiceClient) error {
			_, err := c.Encode(ctx, &tokenizerv1.EncodeRequest{})
			return rpc.FromStatus(err)
		},
		"stream": func(ctx context.Context, c tokenizerv1.TokenizerServiceClient) error {
			_, err := fetchVocabulary(ctx, c, "digest")
			return err
		},
	} {
		if err := call(t.Context(), client); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if err := call(ctx, patientClient); fault.CodeOf(err) != fault.DeadlineExceeded {
			t.Errorf("%s by a caller whose time is over: %v", name, err)
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if err := call(ctx, client); fault.CodeOf(err) != fault.Canceled {
			t.Errorf("%s by a caller who has left: %v", name, err)
		}
	}
	if err := within(t.Context(), status.Error(codes.NotFound, "x")); status.Code(err) != codes.NotFound {
		t.Errorf("another error: %v", err)
	}
}
