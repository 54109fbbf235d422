package rpc

import (
	"io"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	// MaxBodies bounds the bodies of all requests that run on a listener, since each is in memory from its first byte
	// until its request ends.
	MaxBodies = 256 << 20
	// servicesBodies is the bound where services call each other: what four routers may hold for their callers. The
	// routers divide it between tenants, and say none.
	servicesBodies = 4 * MaxBodies
	// SmallBody is what every request may have beside that.
	SmallBody = 64 << 10
)

// Bodies bounds the memory that the bodies of HTTP requests or the messages of gRPC calls take together. A tenant has
// at most as much of it as it leaves free: half of it while others need none, and less when they do. So those that
// take all that they may get leave some for the next one. It is safe for concurrent use.
type Bodies struct {
	most  int64
	whole bool // a tenant may have all of it

	mu     sync.Mutex
	used   int64
	tenant map[string]int64
}

// NewBodies returns room for a number of bytes.
func NewBodies(most int64) *Bodies { return &Bodies{most: most, tenant: map[string]int64{}} }

// newServicesBodies returns room for the calls of services, which say no tenant.
func newServicesBodies() *Bodies {
	b := NewBodies(servicesBodies)
	b.whole = true
	return b
}

func (b *Bodies) take(tenant string, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	free := b.most - b.used - n
	if free < 0 || !b.whole && b.tenant[tenant]+n > free {
		return false
	}
	b.used += n
	b.tenant[tenant] += n
	return true
}

func (b *Bodies) give(tenant string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	if b.tenant[tenant] -= n; b.tenant[tenant] == 0 {
		delete(b.tenant, tenant)
	}
}

// Body is what the body of one request takes. Whoever makes one closes it. It is safe for concurrent use.
type Body struct {
	bodies *Bodies
	tenant string

	mu     sync.Mutex
	read   int64 // bytes of the body
	taken  int64
	closed bool
}

// Body returns a body of a tenant that has no bytes yet.
func (b *Bodies) Body(tenant string) *Body { return &Body{bodies: b, tenant: tenant} }

// Add counts bytes that have arrived, or are about to. It reports whether there was room for them.
func (y *Body) Add(n int64) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.read += n
	if more := y.read - SmallBody - y.taken; more > 0 {
		if y.closed || !y.bodies.take(y.tenant, more) {
			return false
		}
		y.taken += more
	}
	return true
}

// Reader returns a reader whose bytes count as they are read. It fails with code when there is no room.
func (y *Body) Reader(from io.Reader, code fault.Code) io.Reader { return bodyReader{from, y, code} }

type bodyReader struct {
	io.Reader
	body *Body
	code fault.Code
}

// Read reads bytes.
func (r bodyReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if !r.body.Add(int64(n)) {
		return 0, NoRoom(r.code)
	}
	return n, err
}

// Clear gives the room back. The next bytes are those of another body.
func (y *Body) Clear() {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.taken > 0 {
		y.bodies.give(y.tenant, y.taken)
	}
	y.read, y.taken = 0, 0
}

// Close gives the room back for good.
func (y *Body) Close() {
	y.mu.Lock()
	y.closed = true
	y.mu.Unlock()
	y.Clear()
}

// NoRoom is the error of a request for whose body there is no room.
func NoRoom(code fault.Code) error {
	return fault.New(code, "read the body: those of requests that run take all of the room").
		After(time.Second).Because("BODIES_TOO_LARGE")
}
