// Package memnet is a network inside one process: buffered pipes connect dialers to named
// listeners. `lamina up` runs its services over it, so that only the public ports can be reached
// from outside.
//
// Tests inject faults into the links to a name: Cut breaks connections and refuses new ones, as
// a dead host does; Silence holds all data back without an error, as a black-holed link does;
// Delay delays every write. The test that injects a fault also removes it. No fault drops single
// bytes: the pipes stand for TCP, where a lost segment only causes a delay.
package memnet

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// pipeSize is the size of the buffer of each direction in bytes.
const pipeSize = 64 << 10

// Network is a set of named listeners and the state of the links to them. It is
// safe for concurrent use. The zero value is not usable; see New.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*listener
	links     map[string]*link
	making    sync.Mutex // held while a pipe is made
}

// New returns an empty network.
func New() *Network {
	return &Network{listeners: map[string]*listener{}, links: map[string]*link{}}
}

// Listen reserves a name and returns its listener. Closing the listener frees the name.
func (n *Network) Listen(name string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[name] != nil {
		return nil, fault.New(fault.AlreadyExists, "listen on mem:%s: the name is taken", name)
	}
	l := &listener{name: name, network: n, dialed: make(chan net.Conn), closed: make(chan struct{})}
	n.listeners[name] = l
	return l, nil
}

// listener is the listener of a name.
type listener struct {
	name    string
	network *Network
	dialed  chan net.Conn // the listener's ends of connections
	once    sync.Once
	closed  chan struct{}
}

// Accept waits for a dialer. The faults of the link apply to both ends of the connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	case raw := <-l.dialed:
		return l.network.link(l.name).join(raw), nil
	}
}

// Close closes the listener and frees its name.
func (l *listener) Close() error {
	l.network.mu.Lock()
	if l.network.listeners[l.name] == l {
		delete(l.network.listeners, l.name)
	}
	l.network.mu.Unlock()
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns the address, which is "mem:" and the name.
func (l *listener) Addr() net.Addr { return addr(l.name) }

type addr string

func (addr) Network() string  { return "mem" }
func (a addr) String() string { return "mem:" + string(a) }

// link returns the state of the links to a name, which outlives its listeners.
func (n *Network) link(name string) *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[name]
	if l == nil {
		l = &link{conns: map[*conn]bool{}, changed: make(chan struct{})}
		n.links[name] = l
	}
	return l
}

// Dial connects to a name. If nobody listens on it or its links are cut, Dial returns Unavailable
// at once. If its links are silent, Dial waits until ctx ends.
func (n *Network) Dial(ctx context.Context, name string) (net.Conn, error) {
	link := n.link(name)
	for {
		f, changed := link.state()
		if f.cut {
			return nil, fault.New(fault.Unavailable, "dial mem:%s: the link is cut", name)
		}
		if !f.silent {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "dial mem:%s", name)
		}
	}
	n.mu.Lock()
	l := n.listeners[name]
	n.mu.Unlock()
	if l == nil {
		return nil, fault.New(fault.Unavailable, "dial mem:%s: nobody listens", name)
	}
	raw, other, err := n.pipe()
	if err == nil {
		select {
		case l.dialed <- other:
			return link.join(raw), nil
		case <-l.closed:
			err = net.ErrClosed
		case <-ctx.Done():
			err = ctx.Err()
		}
		_, _ = raw.Close(), other.Close() // closing a pipe does not fail
	}
	return nil, fault.Wrap(fault.Unavailable, err, "dial mem:%s", name)
}

// pipe returns both ends of a connection. One is made at a time, because bufconn makes timers that are due at once: in
// a bubble of testing/synctest these run where they are made, and in Go 1.26 the race detector crashes when two
// goroutines do that at the same moment.
func (n *Network) pipe() (dialer, listener net.Conn, err error) {
	n.making.Lock()
	defer n.making.Unlock()
	l := bufconn.Listen(pipeSize)
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	dialer, err = l.Dial()
	if err = errors.Join(err, l.Close()); err != nil {
		return nil, nil, err
	}
	return dialer, <-accepted, nil
}

// Cut breaks all connections to a name and refuses new ones, or allows them again.
func (n *Network) Cut(name string, cut bool) {
	l := n.link(name)
	l.set(func(f *faults) { f.cut = cut })
	if cut {
		l.breakAll()
	}
}

// Silence holds back all data to and from a name, with no error on either side, or lets it flow
// again.
func (n *Network) Silence(name string, silent bool) {
	n.link(name).set(func(f *faults) { f.silent = silent })
}

// Delay delays each write to and from a name by d; 0 removes the delay.
func (n *Network) Delay(name string, d time.Duration) {
	n.link(name).set(func(f *faults) { f.delay = d })
}

// faults are the injected faults of a link.
type faults struct {
	cut, silent bool
	delay       time.Duration
}

// link is the state that all connections to one name share.
type link struct {
	mu      sync.Mutex
	faults  faults
	changed chan struct{} // closed and replaced at each change
	conns   map[*conn]bool
}

func (l *link) state() (faults, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.faults, l.changed
}

func (l *link) set(change func(*faults)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.faults)
	close(l.changed)
	l.changed = make(chan struct{})
}

// join wraps one end of a pipe, so that the faults of the link apply to it.
func (l *link) join(raw net.Conn) net.Conn {
	c := &conn{Conn: raw, link: l, closed: make(chan struct{})}
	l.mu.Lock()
	l.conns[c] = true
	cut := l.faults.cut
	l.mu.Unlock()
	if cut { // the link was cut during the dial
		_ = c.Close()
	}
	return c
}

func (l *link) breakAll() {
	l.mu.Lock()
	broken := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		broken = append(broken, c)
	}
	l.mu.Unlock()
	for _, c := range broken {
		_ = c.Close()
	}
}

// conn is one end of a connection.
type conn struct {
	net.Conn
	link   *link
	once   sync.Once
	closed chan struct{}
}

// Write waits as long as the faults of the link demand and then writes.
func (c *conn) Write(p []byte) (int, error) {
	var late <-chan time.Time
	for {
		f, changed := c.link.state()
		switch {
		case f.silent:
			late = nil
		case f.delay > 0 && late == nil:
			late = time.After(f.delay)
		case f.delay <= 0:
			return c.Conn.Write(p)
		}
		select {
		case <-changed:
		case <-late:
			return c.Conn.Write(p)
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
}

// Close closes this end. The other end reads what is left and then io.EOF.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.link.mu.Lock()
		delete(c.link.conns, c)
		c.link.mu.Unlock()
	})
	return c.Conn.Close()
}
