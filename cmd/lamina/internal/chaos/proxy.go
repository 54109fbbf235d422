package chaos

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Bounds of what a proxy holds for one direction of a connection.
const (
	proxyChunk = 32 << 10
	proxyQueue = 128 // chunks
)

// proxy forwards TCP connections to a member. It can hold back the bytes of a direction, as a network
// that lost its packets would, deliver them later, or reset connections. In a partition no byte is
// lost: TCP would send it again, so it arrives when the partition ends, unless one side has given up.
type proxy struct {
	listener net.Listener

	mu      sync.Mutex
	target  string
	holdIn  bool // bytes to the member
	holdOut bool // bytes from the member
	delay   time.Duration
	refuse  bool
	changed chan struct{} // closed and replaced when the settings change
	conns   map[net.Conn]bool
	closed  bool
	work    sync.WaitGroup
}

func newProxy() (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen for a proxy")
	}
	p := &proxy{listener: l, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.work.Go(p.accept)
	return p, nil
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

// change changes the settings and wakes all that wait for them.
func (p *proxy) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *proxy) setTarget(addr string) { p.change(func() { p.target = addr }) }

// hold holds back the bytes to the member, from it, or both.
func (p *proxy) hold(in, out bool) { p.change(func() { p.holdIn, p.holdOut = in, out }) }

func (p *proxy) setDelay(d time.Duration) { p.change(func() { p.delay = d }) }

// setRefuse resets all connections, and those that come until it is called with false.
func (p *proxy) setRefuse(refuse bool) {
	p.change(func() {
		p.refuse = refuse
		if refuse {
			for c := range p.conns {
				abort(c)
			}
		}
	})
}

// abort closes a connection with a reset.
func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // the close below then sends a reset
	}
	_ = c.Close()
}

func (p *proxy) close() {
	p.change(func() {
		p.closed = true
		_ = p.listener.Close()
		for c := range p.conns {
			_ = c.Close()
		}
	})
	p.work.Wait()
}

// keep adds a connection unless the proxy is closed or refuses connections.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.refuse {
		abort(c)
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) drop(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return // the listener is closed
		}
		if p.keep(c) {
			p.work.Go(func() { p.forward(c) })
		}
	}
}

// forward connects a client with the member and copies bytes both ways until one side ends.
func (p *proxy) forward(client net.Conn) {
	defer p.drop(client)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if !p.open(ctx, true) {
		return
	}
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	var dialer net.Dialer
	dialer.Timeout = time.Second
	server, err := dialer.DialContext(ctx, "tcp", target)
	if err != nil {
		abort(client)
		return
	}
	if !p.keep(server) {
		return
	}
	defer p.drop(server)
	var both sync.WaitGroup
	both.Go(func() {
		p.copy(ctx, server, client, true)
		cancel()
		abort(server)
		abort(client)
	})
	both.Go(func() {
		p.copy(ctx, client, server, false)
		cancel()
		abort(server)
		abort(client)
	})
	both.Wait()
}

// open waits until the direction is not held. It returns false when the proxy is closed or ctx ends.
func (p *proxy) open(ctx context.Context, in bool) bool {
	for {
		p.mu.Lock()
		held, closed, changed := in && p.holdIn || !in && p.holdOut, p.closed, p.changed
		p.mu.Unlock()
		if closed {
			return false
		}
		if !held {
			return ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// delayed is a chunk and when it may be delivered.
type delayed struct {
	bytes []byte
	due   time.Time
}

// copy copies one direction. A reader and a writer with a queue between them let a delay add latency
// without limiting the throughput to one chunk per delay.
func (p *proxy) copy(ctx context.Context, to io.Writer, from io.Reader, in bool) {
	ctx, cancel := context.WithCancel(ctx)
	queue := make(chan delayed, proxyQueue)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(queue)
		for {
			chunk := make([]byte, proxyChunk)
			n, err := from.Read(chunk)
			if n > 0 {
				p.mu.Lock()
				d := delayed{chunk[:n], time.Now().Add(p.delay)}
				p.mu.Unlock()
				select {
				case queue <- d:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for d := range queue {
		if wait := time.Until(d.due); wait > 0 && !sleep(ctx, wait) {
			break
		}
		if !p.open(ctx, in) {
			break
		}
		if _, err := to.Write(d.bytes); err != nil {
			break
		}
	}
	cancel()
	if c, ok := from.(net.Conn); ok {
		_ = c.Close() // wakes the reader
	}
	reading.Wait()
}

// sleep waits and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
