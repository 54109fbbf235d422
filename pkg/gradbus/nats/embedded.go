package nats

import (
	"errors"
	"net"
	"os"
	"reflect"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of an embedded server's JetStream.
const (
	embeddedMemory = 4 << 30
	embeddedStore  = 16 << 30
	embeddedStart  = 10 * time.Second
)

// Embedded is a NATS server inside this process. It opens no network ports unless NewLoopback made it.
type Embedded struct {
	server *server.Server
	temp   string // removed by Close
}

// NewEmbedded starts a server whose JetStream keeps its files in dir. If dir is empty, it uses a
// temporary directory that Close removes.
func NewEmbedded(dir string) (*Embedded, error) { return embed(dir, &server.Options{DontListen: true}) }

// NewLoopback starts an embedded server that also listens on a free port of 127.0.0.1, without
// credentials, for other processes of this machine.
func NewLoopback(dir string) (*Embedded, error) {
	return embed(dir, &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT})
}

// URL returns the address of a server that NewLoopback made.
func (e *Embedded) URL() string { return e.server.ClientURL() }

func embed(dir string, o *server.Options) (*Embedded, error) {
	e := &Embedded{}
	if dir == "" {
		temp, err := os.MkdirTemp("", "lamina-nats-")
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "start embedded nats")
		}
		e.temp, dir = temp, temp
	}
	var err error
	o.ServerName, o.JetStream, o.StoreDir, o.NoSigs, o.NoLog = "lamina", true, dir, true, true
	o.JetStreamMaxMemory, o.JetStreamMaxStore = embeddedMemory, embeddedStore
	e.server, err = server.NewServer(o)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, errors.Join(err, e.clean()), "start embedded nats")
	}
	e.server.Start()
	if !e.server.ReadyForConnections(embeddedStart) {
		return nil, fault.Wrap(fault.Unavailable, e.Close(), "start embedded nats: it was not ready after %v",
			embeddedStart)
	}
	return e, nil
}

// embeddedURL is a name only: connections to the embedded server have no address.
const embeddedURL = "nats://embedded"

// Listeners returns the addresses of all listeners of the server.
func (e *Embedded) Listeners() []string {
	var addrs []string
	for _, addr := range []net.Addr{e.server.Addr(), e.server.MonitorAddr(), e.server.ClusterAddr(),
		e.server.ProfilerAddr()} {
		if v := reflect.ValueOf(addr); addr != nil && (v.Kind() != reflect.Pointer || !v.IsNil()) {
			addrs = append(addrs, addr.String())
		}
	}
	return addrs
}

// Connect connects to the embedded server without a socket.
func (e *Embedded) Connect(c Config) (*Bus, error) {
	c.URL = embeddedURL
	return connect(c, nats.InProcessServer(e.server))
}

// Dial returns a connection to the embedded server, for others that use it.
func (e *Embedded) Dial() (*nats.Conn, error) {
	return dial(Config{URL: embeddedURL}, nats.InProcessServer(e.server))
}

// Close stops the server. Close the connections to it first.
func (e *Embedded) Close() error {
	e.server.Shutdown()
	e.server.WaitForShutdown()
	return e.clean()
}

func (e *Embedded) clean() error {
	if e.temp == "" {
		return nil
	}
	return os.RemoveAll(e.temp)
}
