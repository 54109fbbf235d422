package rpc_test

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	testv1 "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// held is a service whose calls last until they are let go.
type held struct {
	testv1.UnimplementedTestServiceServer
	begun, end chan struct{}
}

func (h *held) hold() {
	h.begun <- struct{}{}
	<-h.end
}

func (h *held) UnaryCall(context.Context, *testv1.SimpleRequest) (*testv1.SimpleResponse, error) {
	h.hold()
	return &testv1.SimpleResponse{}, nil
}

func (h *held) StreamingOutputCall(
	*testv1.StreamingOutputCallRequest, grpc.ServerStreamingServer[testv1.StreamingOutputCallResponse],
) error {
	h.hold()
	return nil
}

func (h *held) FullDuplexCall(
	stream grpc.BidiStreamingServer[testv1.StreamingOutputCallRequest, testv1.StreamingOutputCallResponse],
) error {
	for {
		if _, err := stream.Recv(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		h.hold()
	}
}

// serveOn runs a service until the returned function is called, and returns a connection to it.
func serveOn(
	t *testing.T, network *memnet.Network, o rpc.ServerOptions, s testv1.TestServiceServer,
) (*grpc.ClientConn, func()) {
	t.Helper()
	server := rpc.NewServer(o)
	testv1.RegisterTestServiceServer(server, s)
	return run(t, network, server)
}

// run is serveOn for any services.
func run(t *testing.T, network *memnet.Network, server *rpc.Server) (*grpc.ClientConn, func()) {
	t.Helper()
	l, err := network.Listen("test")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	dialer := rpc.NewDialer(rpc.DialOptions{Net: network})
	conn, err := dialer.Dial("mem:test")
	if err != nil {
		t.Fatal(err)
	}
	return conn, func() {
		if err := dialer.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestServer_MessagesAreBoundedForAllAndForEachTenant has calls of each kind, whose messages share 4 MiB.
func TestServer_MessagesAreBoundedForAllAndForEachTenant(t *testing.T) {
	const small, large, room = 63 << 10, 1 << 20, 4 << 20 // a message is a little longer than what it carries
	h := &held{begun: make(chan struct{}), end: make(chan struct{})}
	conn, stop := serveOn(t, memnet.New(), rpc.ServerOptions{Public: true, Bodies: rpc.NewBodies(room)}, h)
	defer stop()
	client := testv1.NewTestServiceClient(conn)
	kinds := map[string]func(context.Context, int) error{
		"unary": func(ctx context.Context, n int) error {
			_, err := client.UnaryCall(ctx, &testv1.SimpleRequest{Payload: &testv1.Payload{Body: make([]byte, n)}})
			return err
		},
		"stream of answers": func(ctx context.Context, n int) error {
			s, err := client.StreamingOutputCall(ctx,
				&testv1.StreamingOutputCallRequest{Payload: &testv1.Payload{Body: make([]byte, n)}})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"stream of both": func(ctx context.Context, n int) error {
			s, err := client.FullDuplexCall(ctx)
			if err == nil {
				err = s.Send(&testv1.StreamingOutputCallRequest{Payload: &testv1.Payload{Body: make([]byte, n)}})
			}
			if err == nil || err == io.EOF {
				_ = s.CloseSend() // the answer says what is wrong
				_, err = s.Recv()
			}
			return err
		},
	}
	for kind, call := range kinds {
		ended := make(chan error)
		ask := func(tenant string, n int) {
			ended <- call(metadata.AppendToOutgoingContext(t.Context(), auth.TenantKey, tenant), n)
		}
		begin := func(tenant string, n int) {
			t.Helper()
			go ask(tenant, n)
			select {
			case <-h.begun:
			case err := <-ended:
				t.Fatalf("%s, %d bytes of %s: %v", kind, n, tenant, err)
			}
		}
		refused := func(tenant string, n int) {
			t.Helper()
			go ask(tenant, n)
			select {
			case <-h.begun:
				t.Fatalf("%s, %d bytes of %s are received", kind, n, tenant)
			case err := <-ended:
				got, _ := rpc.FromStatus(err).(*fault.Error)
				if got == nil || got.Code != fault.Exhausted || got.Reason != "BODIES_TOO_LARGE" ||
					got.RetryAfter != time.Second {
					t.Errorf("%s, %d bytes of %s: %+v", kind, n, tenant, err)
				}
			}
		}
		begin("a", small+large)
		begin("a", small+large/2)
		refused("a", small+large)
		begin("a", small) // takes no room
		begin("b", small+large)
		refused("b", small+large)
		begin("b", small)
		for range 5 {
			h.end <- struct{}{}
			if err := <-ended; err != nil && err != io.EOF {
				t.Errorf("%s: %v", kind, err)
			}
		}
		begin("b", room/2+small) // all of the room is there again
		h.end <- struct{}{}
		<-ended
	}
}

// TestServer_StreamsBetweenServicesAreNotCounted is what shards exchange tensors by.
func TestServer_StreamsBetweenServicesAreNotCounted(t *testing.T) {
	h := &held{begun: make(chan struct{}, 1), end: make(chan struct{})}
	close(h.end)
	conn, stop := serveOn(t, memnet.New(), rpc.ServerOptions{Bodies: rpc.NewBodies(1)}, h)
	defer stop()
	stream, err := testv1.NewTestServiceClient(conn).FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := stream.Recv()
		ended <- err
	}()
	for range 3 {
		_ = stream.Send(&testv1.StreamingOutputCallRequest{Payload: &testv1.Payload{Body: make([]byte, 1<<20)}})
		select {
		case <-h.begun:
		case err := <-ended: // it says why a message was not sent
			t.Fatal(err)
		}
	}
	_ = stream.CloseSend()
	if err := <-ended; err != io.EOF {
		t.Error(err)
	}
}

// TestServer_StrangersAreRefusedBeforeTheirRequestIsReceived has calls that never send one.
func TestServer_StrangersAreRefusedBeforeTheirRequestIsReceived(t *testing.T) {
	for _, method := range []string{"UnaryCall", "StreamingOutputCall", "FullDuplexCall"} {
		synctest.Test(t, func(t *testing.T) {
			guard := auth.NewGuard(auth.NewKeyring(nil, auth.KeyringOptions{}), "")
			conn, stop := serveOn(t, memnet.New(), rpc.ServerOptions{Public: true, Guard: guard}, &held{})
			defer stop()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
				"/grpc.testing.TestService/"+method)
			if err == nil {
				err = stream.RecvMsg(&testv1.Empty{})
			}
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s: %v", method, err)
			}
		})
	}
}

// TestServer_MessagesHaveToArrive has calls that announce a long message and send none of it. Until they are ended they
// take no more room than its first piece.
func TestServer_MessagesHaveToArrive(t *testing.T) {
	for _, method := range []string{"UnaryCall", "StreamingOutputCall", "FullDuplexCall"} {
		synctest.Test(t, func(t *testing.T) {
			network := memnet.New()
			h := &held{begun: make(chan struct{}, 1), end: make(chan struct{})}
			close(h.end)
			conn, stop := serveOn(t, network, rpc.ServerOptions{Public: true, Bodies: rpc.NewBodies(4 << 20)}, h)
			defer stop()
			raw, err := network.Dial(t.Context(), "test")
			if err != nil {
				t.Fatal(err)
			}
			answers := make(chan string, 4)
			var reading sync.WaitGroup
			defer reading.Wait()
			defer raw.Close()
			f := http2.NewFramer(raw, raw)
			reading.Go(func() { answer(f, answers) })
			if _, err := io.WriteString(raw, http2.ClientPreface); err != nil {
				t.Fatal(err)
			}
			head := fields(":method", "POST", ":scheme", "http", ":path", "/grpc.testing.TestService/"+method,
				":authority", "x", "content-type", "application/grpc", "te", "trailers")
			announced := append(binary.BigEndian.AppendUint32([]byte{0}, 1<<20), "begin"...)
			err = f.WriteSettings()
			for id := uint32(1); err == nil && id < 8; id += 2 {
				err = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head, EndHeaders: true})
				if err == nil {
					err = f.WriteData(id, false, announced)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if _, err := testv1.NewTestServiceClient(conn).UnaryCall(t.Context(),
				&testv1.SimpleRequest{Payload: &testv1.Payload{Body: make([]byte, 500<<10)}}); err != nil {
				t.Errorf("%s: a request beside those that do not arrive: %v", method, err)
			}
			begun := time.Now()
			for range 4 {
				select {
				case got := <-answers:
					if got != "4 receive the request: it has to arrive within 30s" {
						t.Errorf("%s: %s", method, got)
					}
				case <-time.After(time.Hour):
					t.Fatalf("%s: the server still waits after an hour", method)
				}
			}
			if took := time.Since(begun); took > time.Minute {
				t.Errorf("%s: after %v", method, took)
			}
		})
	}
}

// answer reads frames and sends the status of each call that ends.
func answer(f *http2.Framer, to chan<- string) {
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		if head, ok := frame.(*http2.MetaHeadersFrame); ok && head.StreamEnded() {
			var code, text string
			for _, field := range head.Fields {
				switch field.Name {
				case "grpc-status":
					code = field.Value
				case "grpc-message":
					text = field.Value
				}
			}
			to <- code + " " + text
		}
	}
}

func TestServer_ReceivesCompressedRequests(t *testing.T) {
	conn, _ := serve(t, rpc.ServerOptions{Public: true}, &service{})
	client := testv1.NewTestServiceClient(conn)
	call := func(n int) error {
		body := []byte(strings.Repeat("x", n))
		r, err := client.UnaryCall(t.Context(), &testv1.SimpleRequest{Payload: &testv1.Payload{Body: body}},
			grpc.UseCompressor(gzip.Name), grpc.MaxCallSendMsgSize(2*rpc.MaxMessage))
		if err == nil && string(r.GetPayload().GetBody()) != string(body) {
			t.Errorf("%d bytes come back as %d", n, len(r.GetPayload().GetBody()))
		}
		return err
	}
	for _, n := range []int{0, 1, rpc.MaxMessage - 1024} {
		if err := call(n); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if err := call(rpc.MaxMessage + 1); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message that is too long when it is decompressed: %v", err)
	}
}

// TestServer_UnaryCallsHaveOneRequest sends none, and two.
func TestServer_UnaryCallsHaveOneRequest(t *testing.T) {
	conn, _ := serve(t, rpc.ServerOptions{}, &service{})
	for n := range 3 {
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true},
			testv1.TestService_UnaryCall_FullMethodName)
		for range n {
			if err == nil {
				err = stream.SendMsg(&testv1.SimpleRequest{})
			}
		}
		if err == nil {
			err = stream.CloseSend()
		}
		if err != nil {
			t.Fatal(err)
		}
		want := codes.Internal
		if n == 1 {
			want = codes.OK
		}
		if err := stream.RecvMsg(&testv1.SimpleResponse{}); status.Code(err) != want {
			t.Errorf("%d requests: %v", n, err)
		}
	}
}

// damaged is a request that cannot be decoded without a panic.
type damaged struct{ *testv1.Empty }

func (damaged) ProtoReflect() protoreflect.Message { panic("a damaged message") }

// TestServer_PanicWhileARequestIsReceived_IsInternal has a panic before the interceptors, which recover from others. A
// server that does not recover from it ends its process, and this test.
func TestServer_PanicWhileARequestIsReceived_IsInternal(t *testing.T) {
	var log logtest.Buffer
	network := memnet.New()
	server := rpc.NewServer(rpc.ServerOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
	receive := func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		return nil, dec(damaged{})
	}
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "test", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Damaged", Handler: receive}}}, held{})
	conn, stop := run(t, network, server)
	defer stop()
	for range 2 {
		if err := conn.Invoke(t.Context(), "/test/Damaged", &testv1.Empty{}, &testv1.Empty{}); status.Code(err) !=
			codes.Internal || !strings.Contains(err.Error(), "a damaged message") {
			t.Errorf("got %v", err)
		}
	}
	if !strings.Contains(log.String(), "receive.go") {
		t.Errorf("the log lacks the stack of the panic: %s", log.String())
	}
}

// TestServer_MetadataIsBounded sends 64 KiB of it.
func TestServer_MetadataIsBounded(t *testing.T) {
	conn, _ := serve(t, rpc.ServerOptions{}, &service{call: func(context.Context) error { return nil }})
	call := func(n int) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-filler", strings.Repeat("x", n))
		_, err := testv1.NewTestServiceClient(conn).EmptyCall(ctx, &testv1.Empty{})
		return err
	}
	if err := call(32 << 10); err != nil {
		t.Error(err)
	}
	if err := call(64 << 10); err == nil {
		t.Error("64 KiB are received")
	}
}
