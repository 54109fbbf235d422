package integration_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// gate stands in front of a shard and forwards every gRPC call. While it is wedged it answers health
// checks and descriptions, opens inference streams and takes their frames, but no work reaches the
// shard: a stage that looks healthy on every socket and computes nothing.
type gate struct {
	addr string

	mu     sync.Mutex
	conn   *grpc.ClientConn
	wedged bool
	stuck  int // frames that were swallowed
}

func newGate(t *testing.T) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{addr: l.Addr().String()}
	// As a shard does, it lets routers ping often.
	pings := keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}
	s := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(g.forward),
		grpc.KeepaliveEnforcementPolicy(pings))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // ends with Stop
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
		g.aim("")
	})
	return g
}

// aim sets the address of the shard.
func (g *gate) aim(addr string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn != nil {
		_ = g.conn.Close()
		g.conn = nil
	}
	if addr != "" { // an address without a scheme is always valid
		g.conn, _ = grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	}
}

func (g *gate) wedge(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wedged = on
}

// swallowed returns the number of frames that were swallowed so far.
func (g *gate) swallowed() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stuck
}

// swallow reports whether a frame of a stream is swallowed. The first one, `open`, always passes.
func (g *gate) swallow(method string, number int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.wedged || !strings.HasSuffix(method, "ShardService/Infer") || number == 0 {
		return false
	}
	g.stuck++
	return true
}

// forward handles calls of all methods.
func (g *gate) forward(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	g.mu.Lock()
	conn := g.conn
	g.mu.Unlock()
	if conn == nil {
		return status.Error(codes.Unavailable, "the shard has not started")
	}
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	out, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	go func() { // ends with the stream
		for n := 0; ; n++ {
			var frame []byte
			if err := in.RecvMsg(&frame); errors.Is(err, io.EOF) {
				_ = out.CloseSend()
				return
			} else if err != nil || ctx.Err() != nil {
				cancel()
				return
			}
			if g.swallow(method, n) {
				continue
			}
			if out.SendMsg(&frame) != nil {
				return // the receiver below has the status
			}
		}
	}()
	for {
		var frame []byte
		err := out.RecvMsg(&frame)
		if err == nil {
			err = in.SendMsg(&frame)
		}
		if errors.Is(err, io.EOF) {
			in.SetTrailer(out.Trailer())
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// rawCodec passes messages on as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
