package httpapi

import (
	"context"
	"net/http"

	"github.com/lamina-mesh/lamina/pkg/auth"
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
