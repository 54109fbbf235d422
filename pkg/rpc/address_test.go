package rpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

func TestListen_OpenHostNeedsTLSOrTheOperatorsWord(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "example.org:0"} {
		_, err := rpc.Listen(addr, rpc.ListenOptions{})
		if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "--insecure-listen") ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", addr, err)
		}
		for _, o := range []rpc.ListenOptions{{TLS: true}, {Guarded: true}} {
			if _, err := rpc.Listen(addr, o); fault.CodeOf(err) != fault.FailedPrecondition {
				t.Errorf("%s, %+v: %v", addr, o, err)
			}
		}
	}
	for name, c := range map[string]struct {
		addr    string
		options rpc.ListenOptions
	}{
		"loopback":       {"127.0.0.1:0", rpc.ListenOptions{}},
		"localhost":      {"localhost:0", rpc.ListenOptions{}},
		"open, TLS":      {"0.0.0.0:0", rpc.ListenOptions{TLS: true, Guarded: true}},
		"open, insecure": {"0.0.0.0:0", rpc.ListenOptions{Insecure: true}},
	} {
		l, err := rpc.Listen(c.addr, c.options)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		l.Close()
	}
}

func TestListen_NamesTheFormOfAnAddress(t *testing.T) {
	for _, addr := range []string{"7070", "localhost", "::1", ""} {
		if _, err := rpc.Listen(addr, rpc.ListenOptions{}); fault.CodeOf(err) != fault.Invalid ||
			!strings.Contains(err.Error(), "want HOST:PORT") {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

func TestListen_UnixKeepsAFileThatIsNoSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(path, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.Listen("unix:"+path, rpc.ListenOptions{}); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("listened on a file: %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "keep" {
		t.Errorf("the file has %q, %v", text, err)
	}
}

func TestListen_UnixTakesOverWhatAGoneProcessLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	gone, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	gone.SetUnlinkOnClose(false)
	gone.Close()
	l, err := rpc.Listen("unix:"+path, rpc.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := rpc.Listen("unix:"+path, rpc.ListenOptions{}); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a live socket: %v", err)
	}
}

// authority signs certificates for tests.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key, a.cert = a.sign(name, nil)
	return a
}

// sign writes NAME.pem and NAME.key.
func (a *authority) sign(name string, parent *authority) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: parent == nil, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	signer, signKey := template, key
	if parent != nil {
		signer, signKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, signKey)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for ext, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der},
		".key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(a.dir, name+ext), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert
}

// files returns a new certificate of the authority, with ca as the authority to trust.
func (a *authority) files(name string, ca *authority) rpc.Files {
	a.sign(name, a)
	return rpc.Files{Cert: filepath.Join(a.dir, name+".pem"), Key: filepath.Join(a.dir, name+".key"),
		CA: filepath.Join(ca.dir, "ca.pem")}
}

func TestServer_TLSIsMutual(t *testing.T) {
	ours, theirs := newAuthority(t, "ca"), newAuthority(t, "ca")
	serverTLS := open(t, ours.files("server", ours)).Server(tls.RequireAndVerifyClientCert, "h2")
	l, err := rpc.Listen("127.0.0.1:0", rpc.ListenOptions{TLS: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, rpc.NewServer(rpc.ServerOptions{TLS: serverTLS}), l, nil) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	client := func(f rpc.Files) credentials.TransportCredentials { return open(t, f).Client() }
	none := rpc.Files{CA: ours.files("other", ours).CA}
	for _, c := range []struct {
		name string
		tls  credentials.TransportCredentials
		ok   bool
	}{
		{"same authority", client(ours.files("client", ours)), true},
		{"plaintext", nil, false},
		{"no certificate", client(none), false},
		{"client of another authority", client(theirs.files("client", ours)), false},
		{"server of another authority", client(ours.files("client2", theirs)), false},
	} {
		dialer := rpc.NewDialer(rpc.DialOptions{TLS: c.tls})
		conn, err := dialer.Dial(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := dialer.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFiles_NeedAllOrNone(t *testing.T) {
	if c, err := (rpc.Files{}).Open(nil); c != nil || err != nil {
		t.Errorf("no files: %v, %v", c, err)
	}
	if err := (rpc.Files{Cert: "a", Key: "b"}).Mutual(); fault.CodeOf(err) != fault.Invalid ||
		!strings.Contains(err.Error(), "tls-ca") {
		t.Errorf("no authority: %v", err)
	}
	a := newAuthority(t, "ca")
	f := a.files("server", a)
	f.CA = f.Key
	if _, err := f.Open(nil); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), f.CA) {
		t.Errorf("a CA file without a certificate: %v", err)
	}
}
