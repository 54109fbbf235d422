package rpc

import (
	"context"
	"errors"
	"io/fs"
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
	"google.golang.org/grpc/stats"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// memPrefix begins the addresses of the in-process network.
const memPrefix = "mem:"

// InProcess reports whether an address belongs to the network within this process.
func InProcess(addr string) bool { return strings.HasPrefix(addr, memPrefix) }

// ListenOptions says how Listen may open an address.
type ListenOptions struct {
	Net      *memnet.Network // for "mem:" addresses
	TLS      bool            // the server speaks TLS
	Guarded  bool            // callers have to show a key or a client certificate
	Insecure bool            // the operator gave --insecure-listen
}

// Listen opens an address. A host that is not loopback needs TLS and callers who say who they are, unless the
// operator has waived that with --insecure-listen.
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
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "listen on %s: want HOST:PORT, such as 127.0.0.1:7070", addr)
	}
	if !o.Insecure && !Loopback(addr) {
		switch {
		case !o.TLS:
			return nil, fault.New(fault.FailedPrecondition, "listen on %s: anyone on the way could read it: "+
				"give --tls-cert, --tls-key and --tls-ca (lamina certs init makes them), or --insecure-listen", addr)
		case !o.Guarded:
			return nil, fault.New(fault.FailedPrecondition, "listen on %s: anyone who reaches it could use it: "+
				"give --auth-keys (lamina keys create makes them), or --insecure-listen", addr)
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen on %s", addr)
	}
	return l, nil
}

// listenUnix listens on a Unix socket. It replaces a socket file that a terminated process has
// left, and fails when a process still listens on it or the file is no socket.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if !errors.Is(err, syscall.EADDRINUSE) {
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "listen on unix:%s", path)
		}
		return l, nil
	}
	if info, lookErr := os.Lstat(path); lookErr == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fault.New(fault.FailedPrecondition, "listen on unix:%s: the file exists and is no socket", path)
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

// Local reports whether an address belongs to this machine or this process.
func Local(addr string) bool {
	return InProcess(addr) || strings.HasPrefix(addr, "unix:") || Loopback(addr)
}

// bearer is the secret of an API key that is sent with every call.
type bearer string

// GetRequestMetadata returns the secret.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{bearerKey: "Bearer " + string(b)}, nil
}

// RequireTransportSecurity returns false: dial has checked the address.
func (b bearer) RequireTransportSecurity() bool { return false }

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
	Net *memnet.Network                  // for "mem:" addresses
	TLS credentials.TransportCredentials // nil for plaintext
	// Secret of an API key to send with every call; empty for none. In plaintext it is sent on this machine only,
	// unless Insecure is set.
	Secret   string
	Insecure bool
	Stats    stats.Handler // is told of calls, for traces; nil for none
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
	if d.options.Stats != nil {
		options = append(options, grpc.WithStatsHandler(d.options.Stats))
	}
	creds := insecure.NewCredentials()
	if d.options.TLS != nil {
		creds = d.options.TLS
	} else if d.options.Secret != "" && !d.options.Insecure && !Local(addr) {
		return nil, fault.New(fault.FailedPrecondition,
			"send an API key without TLS: anyone on the way could read it: give --server-ca, or --insecure-key")
	}
	if secret := d.options.Secret; secret != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(secret)))
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
