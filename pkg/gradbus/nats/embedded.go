package nats

import (
	"errors"
	"os"
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

// Embedded is a NATS server inside this process that opens no network ports.
type Embedded struct {
	server *server.Server
	temp   string // removed by Close
}

// NewEmbedded starts a server whose JetStream keeps its files in dir. If dir is empty, it uses a
// temporary directory that Close removes.
func NewEmbedded(dir string) (*Embedded, error) {
	e := &Embedded{}
	if dir == "" {
		temp, err := os.MkdirTemp("", "lamina-nats-")
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "start embedded nats")
		}
		e.temp, dir = temp, temp
	}
	var err error
	e.server, err = server.NewServer(&server.Options{
		ServerName: "lamina", DontListen: true, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
		JetStreamMaxMemory: embeddedMemory, JetStreamMaxStore: embeddedStore,
	})
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
