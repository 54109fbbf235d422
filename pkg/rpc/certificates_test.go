package rpc_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// copyFiles replaces the files of a certificate by those of another.
func copyFiles(t *testing.T, to, from rpc.Files) {
	t.Helper()
	for _, pair := range [][2]string{{to.CA, from.CA}, {to.Key, from.Key}, {to.Cert, from.Cert}} {
		text, err := os.ReadFile(pair[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(pair[0]+".new", text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(pair[0]+".new", pair[0]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCertificates_RotateWithoutDroppingAStream replaces authority and certificates of a server and a client, while a
// stream between them runs.
func TestCertificates_RotateWithoutDroppingAStream(t *testing.T) {
	before, after := newFleet(t, "mesh"), newFleet(t, "mesh")
	dir := t.TempDir()
	live := func(name string) rpc.Files {
		return rpc.Files{Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key"),
			CA: filepath.Join(dir, name+"-ca.pem")}
	}
	copyFiles(t, live("server"), before.files("shard"))
	copyFiles(t, live("client"), before.files("router"))
	client := open(t, live("client"))
	l, err := rpc.Listen("127.0.0.1:0", rpc.ListenOptions{TLS: true})
	if err != nil {
		t.Fatal(err)
	}
	warned := make(chan error, 8)
	certs, err := live("server").Open(func(err error) {
		select {
		case warned <- err:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerOptions{TLS: certs.Server(tls.RequireAndVerifyClientCert, "h2")})
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "x.Echo", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Echo", ClientStreams: true, ServerStreams: true,
			Handler: func(_ any, ss grpc.ServerStream) error {
				for {
					var m wrapperspb.Int64Value
					if err := ss.RecvMsg(&m); err != nil {
						return err
					}
					if err := ss.SendMsg(&m); err != nil {
						return err
					}
				}
			}}}}, nil)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		server.Stop()
		<-served
	}()
	addr := l.Addr().String()
	stream, err := dial(t, addr, rpc.DialOptions{TLS: client.Client()}).NewStream(t.Context(),
		&grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/x.Echo/Echo")
	if err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	echo := func() {
		t.Helper()
		n++
		var back wrapperspb.Int64Value
		if err := stream.SendMsg(wrapperspb.Int64(n)); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&back); err != nil || back.GetValue() != n {
			t.Fatalf("the stream has ended at message %d: %v", n, err)
		}
	}
	echo()
	old := rpc.DialOptions{TLS: open(t, before.files("router")).Client()}
	if got := call(t.Context(), dial(t, addr, old), "/x.Echo/Nothing"); got != codes.Unimplemented {
		t.Fatalf("before the rotation: %v", got)
	}
	copyFiles(t, live("server"), after.files("shard"))
	copyFiles(t, live("client"), after.files("router"))
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		echo()
		fresh := call(t.Context(), dial(t, addr, rpc.DialOptions{TLS: client.Client()}), "/x.Echo/Nothing")
		stale := call(t.Context(), dial(t, addr, old), "/x.Echo/Nothing")
		if fresh == codes.Unimplemented && stale == codes.Unavailable {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after the rotation: new files %v, old files %v", fresh, stale)
		}
	}
	if err := os.WriteFile(live("server").Cert, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); len(warned) == 0; time.Sleep(20 * time.Millisecond) {
		echo()
		got := call(t.Context(), dial(t, addr, rpc.DialOptions{TLS: client.Client()}), "/x.Echo/Nothing")
		if got != codes.Unimplemented || time.Now().After(end) {
			t.Fatalf("with a damaged file: %v", got)
		}
	}
}

func TestFiles_AllOrNoneForServices(t *testing.T) {
	if err := (rpc.Files{Cert: "a", Key: "b"}).Mutual(); err == nil {
		t.Error("no authority")
	}
	if err := (rpc.Files{}).Mutual(); err != nil {
		t.Error(err)
	}
	if _, err := (rpc.Files{Cert: "a"}).Open(nil); err == nil {
		t.Error("a certificate without a key")
	}
}
