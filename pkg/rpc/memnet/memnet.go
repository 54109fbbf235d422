// Package memnet is a network inside one process: named listeners joined to
// dialers by buffered pipes. `lamina up` runs its services over it, so that nothing
// but the public ports is reachable, and tests break its links on purpose.
package memnet

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc/test/bufconn"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// pipeSize is each direction's buffer.
const pipeSize = 256 << 10

// Network is a set of named listeners. The zero value is not usable; see New.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*listener
}

// New returns an empty network.
func New() *Network { return &Network{listeners: map[string]*listener{}} }

type listener struct {
	*bufconn.Listener
	name    string
	network *Network

	mu    sync.Mutex
	conns map[*conn]bool
	cut   bool
}

// Listen takes a name.
func (n *Network) Listen(name string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[name] != nil {
		return nil, fault.New(fault.AlreadyExists, "listen on mem:%s: the name is taken", name)
	}
	l := &listener{Listener: bufconn.Listen(pipeSize), name: name, network: n, conns: map[*conn]bool{}}
	n.listeners[name] = l
	return l, nil
}

// Close gives the name back.
func (l *listener) Close() error {
	l.network.mu.Lock()
	if l.network.listeners[l.name] == l {
		delete(l.network.listeners, l.name)
	}
	l.network.mu.Unlock()
	return l.Listener.Close()
}

// Addr is the name.
func (l *listener) Addr() net.Addr { return addr(l.name) }

type addr string

func (addr) Network() string  { return "mem" }
func (a addr) String() string { return "mem:" + string(a) }

// conn is a dialed connection that Cut can break.
type conn struct {
	net.Conn
	listener *listener
}

// Close closes the connection and forgets it.
func (c *conn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// Dial connects to a name.
func (n *Network) Dial(ctx context.Context, name string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[name]
	n.mu.Unlock()
	if l == nil {
		return nil, fault.New(fault.Unavailable, "dial mem:%s: nobody listens", name)
	}
	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	if cut {
		return nil, fault.New(fault.Unavailable, "dial mem:%s: the link is cut", name)
	}
	raw, err := l.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = true
	return c, nil
}

// Cut breaks every connection to a name and refuses new ones, or allows them again.
func (n *Network) Cut(name string, cut bool) {
	n.mu.Lock()
	l := n.listeners[name]
	n.mu.Unlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	l.cut = cut
	var broken []*conn
	for c := range l.conns {
		broken = append(broken, c)
	}
	l.mu.Unlock()
	if cut {
		for _, c := range broken {
			c.Close()
		}
	}
}
