package httpapi

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	// maxBodies bounds the bodies of all requests that run, since each is in memory from its first byte until its
	// request ends. A tenant has at most as much of it as it leaves free: half of it while others need none, and less
	// when they do. So those that take all that they may get leave some for the next one.
	maxBodies = 256 << 20
	// smallBody is what every request may have beside that.
	smallBody = 64 << 10
)

// bodies bounds the memory that the bodies of requests take. It is safe for concurrent use.
type bodies struct {
	most int64

	mu     sync.Mutex
	used   int64
	tenant map[string]int64
}

func newBodies(most int64) *bodies { return &bodies{most: most, tenant: map[string]int64{}} }

// take takes room for n bytes. It reports whether there was enough.
func (b *bodies) take(tenant string, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tenant[tenant]+n > b.most-b.used-n {
		return false
	}
	b.used += n
	b.tenant[tenant] += n
	return true
}

func (b *bodies) give(tenant string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	if b.tenant[tenant] -= n; b.tenant[tenant] == 0 {
		delete(b.tenant, tenant)
	}
}

type roomKey struct{}

// room is what the body of one request takes. One goroutine at a time uses it.
type room struct {
	bodies *bodies
	tenant string
	read   int64 // bytes of the body
	taken  int64
}

// hold lets a handler read bodies that count until it returns.
func (b *bodies) hold(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m := &room{bodies: b, tenant: auth.Tenant(r.Context())}
		defer func() {
			if m.taken > 0 {
				b.give(m.tenant, m.taken)
			}
		}()
		next(w, r.WithContext(context.WithValue(r.Context(), roomKey{}, m)))
	}
}

// counted is a body that takes room as it is read, so that a request which only announces a long one takes none.
type counted struct {
	io.Reader
	room *room // nil if nobody counts
}

// Read returns Exhausted if there is no room.
func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.room == nil || n == 0 {
		return n, err
	}
	c.room.read += int64(n)
	if more := c.room.read - smallBody - c.room.taken; more > 0 {
		if !c.room.bodies.take(c.room.tenant, more) {
			return 0, fault.New(fault.Unavailable, "read the body: those of requests that run take all of the room").
				After(time.Second).Because("BODIES_TOO_LARGE")
		}
		c.room.taken += more
	}
	return n, err
}
