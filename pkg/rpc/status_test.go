package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// torn is the error type of another package.
type torn struct{}

func (torn) Error() string         { return "read a.gguf" }
func (torn) FaultCode() fault.Code { return fault.DataLoss }

func TestCode_EveryCodeGoesThereAndBack(t *testing.T) {
	for c := fault.Invalid; c <= fault.Internal; c++ {
		if got := rpc.FaultCode(rpc.Code(c)); got != c {
			t.Errorf("%v came back as %v", c, got)
		}
		if h := rpc.HTTPStatus(c); h < 400 || h > 599 {
			t.Errorf("%v is HTTP %d", c, h)
		}
	}
	for c := codes.OK + 1; c <= codes.Unauthenticated; c++ {
		if got := rpc.FaultCode(c); got == fault.Unspecified {
			t.Errorf("FaultCode maps gRPC's %v to no fault code", c)
		}
	}
}

func TestToStatus_Codes(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want codes.Code
	}{
		{"nil", nil, codes.OK},
		{"fault", fault.New(fault.Exhausted, "x"), codes.ResourceExhausted},
		{"wrapped fault", fmt.Errorf("load: %w", fault.New(fault.NotFound, "x")), codes.NotFound},
		{"own type", fmt.Errorf("load: %w", torn{}), codes.DataLoss},
		{"own type around nothing inside a fault", fault.Wrap(fault.Invalid, torn{}, "x"), codes.InvalidArgument},
		{"status", status.Error(codes.OutOfRange, "x"), codes.OutOfRange},
		{"canceled", fmt.Errorf("wait: %w", context.Canceled), codes.Canceled},
		{"deadline", context.DeadlineExceeded, codes.DeadlineExceeded},
		{"unknown", errors.New("odd"), codes.Internal},
	} {
		if got := status.Code(rpc.ToStatus(c.err)); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestFromStatus_KeepsWhatIsNoStatus(t *testing.T) {
	own := fault.New(fault.Invalid, "x")
	for _, err := range []error{nil, io.EOF, own} {
		if got := rpc.FromStatus(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	if got := rpc.FromStatus(status.Error(codes.Canceled, "x")); !errors.Is(got, context.Canceled) {
		t.Errorf("a canceled call is %v", got)
	}
	if got := rpc.FromStatus(status.Error(codes.DeadlineExceeded, "x")); !errors.Is(got, context.DeadlineExceeded) {
		t.Errorf("a call after its deadline is %v", got)
	}
	if got := rpc.FromStatus(status.Error(codes.Unknown, "x")); fault.CodeOf(got) != fault.Internal {
		t.Errorf("an unknown error is %v", got)
	}
}
