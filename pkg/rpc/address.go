package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// Files names the PEM files of mutual TLS between services.
type Files struct{ Cert, Key, CA string }

// Config reads the files and returns a configuration for TLS 1.3 in which both sides show a
// certificate of the CA. Without files it returns nil, which means plaintext.
func (f Files) Config() (*tls.Config, error) {
	if f == (Files{}) {
		return nil, nil
	}
	for flag, path := range map[string]string{"tls-cert": f.Cert, "tls-key": f.Key, "tls-ca": f.CA} {
		if path == "" {
			return nil, fault.Field(flag, "give all of --tls-cert, --tls-key and --tls-ca, or none")
		}
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read TLS certificate %s", f.Cert)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read TLS authority %s", f.CA)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "read TLS authority %s: it has no certificate", f.CA)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}, nil
}

// memPrefix begins the addresses of the in-process network.
const memPrefix = "mem:"

// InProcess reports whether an address belongs to the network within this process.
func InProcess(addr string) bool { return strings.HasPrefix(addr, memPrefix) }

// ListenOptions says how Listen may open an address.
type ListenOptions struct {
	Net      *memnet.Network // for "mem:" addresses
	TLS      bool            // the server speaks TLS
	Insecure bool            // the operator gave --insecure-listen
}

// Listen opens an address. A host that is not loopback needs TLS, unless the operator has
// allowed plaintext with --insecure-listen.
func Listen(addr string, o ListenOptions) (net.Listener, error) {
	if name, ok := strings.CutPrefix(addr, memPrefix); ok {
		if o.Net == nil {
			return nil, fault.New(fault.Invalid, "listen on %s: there is no in-memory network", addr)
		}
		return o.Net.Listen(name)
	}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return listenUnix(path)
	}
	if !o.TLS && !o.Insecure && !Loopback(addr) {
		return nil, fault.New(fault.FailedPrecondition, "listen on %s: anyone who reaches it could use it: "+
			"give --tls-cert, --tls-key and --tls-ca, or --insecure-listen", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen on %s", addr)
	}
	return l, nil
}

// listenUnix listens on a Unix socket. It replaces a socket file that a terminated process has
// left, and fails when a process still listens on it.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if !errors.Is(err, syscall.EADDRINUSE) {
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "listen on unix:%s", path)
		}
		return l, nil
	}
	conn, dialed := net.DialTimeout("unix", path, time.Second)
	if dialed == nil {
		_ = conn.Close()
	}
	if !errors.Is(dialed, syscall.ECONNREFUSED) {
		return nil, fault.Wrap(fault.Unavailable, err, "listen on unix:%s: another process listens on it", path)
	}
	if err := os.Remove(path); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen on unix:%s: remove the socket of a terminated process",
			path)
	}
	if l, err = net.Listen("unix", path); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen on unix:%s", path)
	}
	return l, nil
}

// Loopback reports whether a "host:port" can only be reached over the loopback interface.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// DialOptions says how a Dialer reaches other services.
type DialOptions struct {
	Net *memnet.Network // for "mem:" addresses
	TLS *tls.Config     // nil for plaintext
}

// Dialer keeps one connection to each address. It is safe for concurrent use.
type Dialer struct {
	options DialOptions
	mu      sync.Mutex
	conns   map[string]*grpc.ClientConn
}

// NewDialer returns a dialer without connections.
func NewDialer(o DialOptions) *Dialer {
	return &Dialer{options: o, conns: map[string]*grpc.ClientConn{}}
}

// Dial returns the connection to an address, which is shared and stays open until Close. It
// does not wait for the connection: the first call reports whether the address can be reached.
func (d *Dialer) Dial(addr string) (*grpc.ClientConn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conns == nil {
		return nil, fault.New(fault.Canceled, "dial %s: the dialer is closed", addr)
	}
	if conn := d.conns[addr]; conn != nil {
		return conn, nil
	}
	conn, err := d.dial(addr)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "dial %s", addr)
	}
	d.conns[addr] = conn
	return conn, nil
}

func (d *Dialer) dial(addr string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithReadBufferSize(bufferSize), grpc.WithWriteBufferSize(bufferSize),
		grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
				MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithChainUnaryInterceptor(sendUnary), grpc.WithChainStreamInterceptor(sendStream),
	}
	creds := insecure.NewCredentials()
	if d.options.TLS != nil {
		creds = credentials.NewTLS(d.options.TLS)
	}
	target := addr
	if name, ok := strings.CutPrefix(addr, memPrefix); ok {
		network := d.options.Net
		if network == nil {
			return nil, errors.New("there is no in-memory network")
		}
		creds = insecure.NewCredentials()
		target = "passthrough:///" + name
		options = append(options,
			grpc.WithContextDialer(func(ctx context.Context, name string) (net.Conn,
				error) {
				return network.Dial(ctx, name)
			}))
	} else if !strings.HasPrefix(addr, "unix:") {
		target = "passthrough:///" + addr
	}
	return grpc.NewClient(target, append(options, grpc.WithTransportCredentials(creds))...)
}

// Close closes every connection.
func (d *Dialer) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, conn := range d.conns {
		errs = append(errs, conn.Close())
	}
	d.conns = nil
	return errors.Join(errs...)
}
