package httpapi

import (
	"context"
	"io"
	"net/http"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

type roomKey struct{}

// hold lets a handler read a body that counts until it returns.
func hold(all *rpc.Bodies, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		room := all.Body(auth.Tenant(r.Context()))
		defer room.Close()
		next(w, r.WithContext(context.WithValue(r.Context(), roomKey{}, room)))
	}
}

// counted is a body that takes room as it is read, so that a request which only announces a long one takes none.
type counted struct {
	io.Reader
	room *rpc.Body // nil if nobody counts
}

// Read returns Unavailable if there is no room.
func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.room != nil && !c.room.Add(int64(n)) {
		return 0, rpc.NoRoom(fault.Unavailable)
	}
	return n, err
}
