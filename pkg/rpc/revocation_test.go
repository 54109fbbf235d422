package rpc_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lamina-mesh/lamina/pkg/auth/issue"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// revoke revokes the certificate of a name.
func (f fleet) revoke(name string) {
	f.t.Helper()
	ca, err := issue.LoadAuthority(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	cert, err := ca.Certificate(filepath.Join(f.dir, name+".pem"))
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := ca.Revoke(f.dir, []issue.Issued{cert}, time.Now()); err != nil {
		f.t.Fatal(err)
	}
}

// watched returns the files of a name with the list of what is revoked.
func (f fleet) watched(name string) rpc.Files {
	files := f.files(name)
	files.Revoked = filepath.Join(f.dir, issue.RevokedFile)
	return files
}

// watch runs the certificates until the test ends.
func watch(t *testing.T, c *rpc.Certificates) *rpc.Certificates {
	t.Helper()
	ctx, done := t.Context(), make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx) // never fails
	}()
	t.Cleanup(func() { <-done }) // the context has ended before
	return c
}

// echoes runs a server of the shard's certificate that sends messages back, and returns its address.
func echoes(t *testing.T, certs *rpc.Certificates) string {
	t.Helper()
	l, err := rpc.Listen("127.0.0.1:0", rpc.ListenOptions{TLS: true})
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerOptions{TLS: certs.Server(tls.RequireAndVerifyClientCert, "h2"),
		Certificates: certs})
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
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return l.Addr().String()
}

// echo returns a function that sends one message over a stream and waits for its answer.
func echo(t *testing.T, addr string, certs *rpc.Certificates) func() error {
	t.Helper()
	stream, err := dial(t, addr, rpc.DialOptions{TLS: certs.Client()}).NewStream(t.Context(),
		&grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/x.Echo/Echo")
	if err != nil {
		t.Fatal(err)
	}
	send := func() error {
		if err := stream.SendMsg(wrapperspb.Int64(7)); err != nil {
			return err
		}
		return stream.RecvMsg(&wrapperspb.Int64Value{})
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	return send
}

// TestCertificates_ARevokedClientLosesItsStream revokes a client while its stream and that of another one run.
func TestCertificates_ARevokedClientLosesItsStream(t *testing.T) {
	f := newFleet(t, "mesh")
	f.revoke("monitor") // there is a list
	addr := echoes(t, watch(t, open(t, f.watched("shard"))))
	router, trainer := echo(t, addr, open(t, f.files("router"))), echo(t, addr, open(t, f.files("trainer")))
	f.revoke("router")
	for end := time.Now().Add(time.Minute); router() == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the stream of a revoked certificate goes on after a minute")
		}
	}
	for name, want := range map[string]codes.Code{"router": codes.Unavailable, "monitor": codes.Unavailable,
		"trainer": codes.Unimplemented} {
		got := call(t.Context(), dial(t, addr, rpc.DialOptions{TLS: open(t, f.files(name)).Client()}),
			"/x.Echo/Nothing")
		if got != want {
			t.Errorf("a new connection of %s: %v, want %v", name, got, want)
		}
	}
	if err := trainer(); err != nil {
		t.Errorf("the stream of another one: %v", err)
	}
}

// TestCertificates_ClientsLeaveARevokedServer does the same for the certificate of a server.
func TestCertificates_ClientsLeaveARevokedServer(t *testing.T) {
	f := newFleet(t, "mesh")
	f.revoke("monitor")
	addr := echoes(t, open(t, f.files("shard")))
	client := watch(t, open(t, f.watched("router")))
	send := echo(t, addr, client)
	f.revoke("shard")
	for end := time.Now().Add(time.Minute); send() == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the stream to a revoked certificate goes on after a minute")
		}
	}
	if got := call(t.Context(), dial(t, addr, rpc.DialOptions{TLS: client.Client()}), "/x.Echo/Nothing"); got !=
		codes.Unavailable {
		t.Errorf("a new connection: %v", got)
	}
}

func TestFiles_RefusesListsThatItCannotTrust(t *testing.T) {
	f, other := newFleet(t, "mesh"), newFleet(t, "mesh")
	f.revoke("router")
	other.revoke("router")
	own, err := os.ReadFile(f.watched("shard").Revoked)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(other.watched("shard").Revoked)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(f.files("shard").CA)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"another authority":  {string(foreign), "not signed"},
		"a second authority": {string(own) + string(foreign), "list 1 is not signed"},
		"empty":              {"", "want PEM"},
		"no list":            {"revoked", "want PEM"},
		"a certificate":      {string(ca), "X509 CRL"},
		"cut":                {string(own[:len(own)/2]), "cut or damaged"},
		"more behind it":     {string(own) + "-----BEGIN X509 CRL-----\nAAAA", "cut or damaged"},
		"damaged":            {strings.Replace(string(own), "A", "B", 3), ""},
	} {
		files := f.files("shard")
		files.Revoked = filepath.Join(t.TempDir(), "crl.pem")
		if err := os.WriteFile(files.Revoked, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Open(nil); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, files := range map[string]rpc.Files{
		"a missing list": {CA: f.files("shard").CA, Revoked: filepath.Join(f.dir, "nothing")},
		"no authority":   {Revoked: f.watched("shard").Revoked},
	} {
		if _, err := files.Open(nil); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.watched("shard").Open(nil); err != nil {
		t.Error(err)
	}
}

func FuzzFiles_Revoked(f *testing.F) {
	dir := f.TempDir()
	ca, err := issue.NewAuthority("mesh", time.Now(), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	if err := ca.Save(dir); err != nil {
		f.Fatal(err)
	}
	if _, err := ca.Revoke(dir, []issue.Issued{{Serial: "7"}}, time.Now()); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, issue.RevokedFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("0\x00"))
	files := rpc.Files{CA: filepath.Join(dir, "ca.pem"), Revoked: filepath.Join(dir, "fuzzed.pem")}
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(files.Revoked, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Open(nil); err != nil && fault.CodeOf(err) != fault.Invalid {
			t.Error(err)
		}
	})
}
