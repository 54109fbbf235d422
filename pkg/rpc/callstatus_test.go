package rpc

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestCallStatus_ACallThatIsStoppedByItsDeadlineSaysSo(t *testing.T) {
	stopped := fault.New(fault.Canceled, "the stream was closed")
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	canceled, stop := context.WithCancel(t.Context())
	stop()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		want codes.Code
	}{
		{late, stopped, codes.DeadlineExceeded},
		{late, fault.New(fault.NotFound, "no such model"), codes.NotFound},
		{late, nil, codes.OK},
		{canceled, stopped, codes.Canceled},
		{t.Context(), stopped, codes.Canceled},
	} {
		if got := status.Code(callStatus(c.ctx, c.err)); got != c.want {
			t.Errorf("%v, %v: %v, want %v", c.ctx.Err(), c.err, got, c.want)
		}
	}
}
