package rpc_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	testv1 "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

func TestServer_TakesRequestIDsOver(t *testing.T) {
	var out logtest.Buffer
	var got []string
	s := &service{
		call: func(ctx context.Context) error {
			got = append(got, obs.RequestID(ctx))
			return nil
		},
		duplex: func(stream testv1.TestService_FullDuplexCallServer) error {
			got = append(got, obs.RequestID(stream.Context()))
			return nil
		},
	}
	log := slog.New(obs.LogRequestIDs(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	conn, stop := serve(t, rpc.ServerOptions{Log: log}, s)
	client := testv1.NewTestServiceClient(conn)
	for _, id := range []string{"a-1", "", "no blanks"} {
		ctx := t.Context()
		if id != "" {
			ctx = obs.WithRequestID(ctx, id)
		}
		if _, err := client.EmptyCall(ctx, &testv1.Empty{}); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := client.FullDuplexCall(obs.WithRequestID(t.Context(), "b-2"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = stream.Recv() // its end
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || got[0] != "a-1" || got[1] != "" || got[2] != "" || got[3] != "b-2" {
		t.Errorf("the handlers saw %q", got)
	}
	for _, id := range []string{"request_id=a-1", "request_id=b-2"} {
		if strings.Count(out.String(), id) != 1 {
			t.Errorf("the log lacks %s: %s", id, out.String())
		}
	}
}

func TestServer_TakesTheTenantOver(t *testing.T) {
	var got []string
	s := &service{
		call: func(ctx context.Context) error {
			got = append(got, auth.Tenant(ctx))
			return nil
		},
		duplex: func(stream testv1.TestService_FullDuplexCallServer) error {
			got = append(got, auth.Tenant(stream.Context()))
			return nil
		},
	}
	conn, stop := serve(t, rpc.ServerOptions{}, s)
	client := testv1.NewTestServiceClient(conn)
	as := func(tenant string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), auth.TenantKey, tenant)
	}
	if _, err := client.EmptyCall(as("a"), &testv1.Empty{}); err != nil {
		t.Fatal(err)
	}
	for _, ctx := range []context.Context{as("b"), t.Context()} {
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = stream.Recv() // its end
	}
	_, err := client.EmptyCall(as(strings.Repeat("x", 65)), &testv1.Empty{})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), auth.TenantKey) {
		t.Errorf("a name that is too long: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", ""}; !slices.Equal(got, want) {
		t.Errorf("the handlers saw %q, want %q", got, want)
	}
}
