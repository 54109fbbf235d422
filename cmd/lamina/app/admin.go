package app

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/gate"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/obs/admin"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// AdminConfig is the listener for administrators (pkg/obs/admin).
type AdminConfig struct {
	// Addr is "host:port"; without a host it is 127.0.0.1. Empty means no listener.
	Addr    string
	Version string
	Level   *slog.LevelVar        // nil if the log level cannot be changed
	Config  func(io.Writer) error // writes the effective configuration without secrets; nil for none
	Bound   func(addr string)     // called with the address that was bound; nil for none
}

// address returns the address to listen on. Beyond loopback the process must be able to tell who is an operator,
// whatever the operator has waived for its other listeners.
func (c AdminConfig) address(guarded bool) (string, error) {
	host, port, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return "", fault.Field("admin-addr", "want HOST:PORT or :PORT, got %q", c.Addr)
	}
	addr := net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port)
	if !guarded && !rpc.Loopback(addr) {
		return "", fault.New(fault.FailedPrecondition,
			"listen on %s for administrators: anyone who reaches it could use "+
				"it: give --auth-keys, --auth-tokens or certificates, or an address of loopback", addr)
	}
	return addr, nil
}

// buildAdmin adds the listener for administrators. Where callers say who they are, it needs an operator.
func (p *process) buildAdmin() error {
	c := p.set.admin
	if c.Addr == "" {
		return nil
	}
	addr, err := c.address(p.guard != nil)
	if err != nil {
		return err
	}
	h := gate.New(admin.Handler(admin.Options{Version: c.Version, Started: time.Now(), Level: c.Level, Config: c.Config,
		Log: p.log}), gate.Options{Guard: p.guard, Log: p.log, Routes: auth.AdminRoutes(), AnyHost: p.guard != nil,
		Hosts: p.set.access.Hosts})
	p.add(lifecycle.Part{Name: "admin", Run: func(ctx context.Context, ready func()) error {
		l, err := p.listen(addr)
		if err != nil {
			return err
		}
		if c.Bound != nil {
			c.Bound(l.Addr().String())
		}
		if config := p.serverTLS("h2", "http/1.1"); config != nil {
			l = tls.NewListener(l, config)
		}
		ready()
		return obs.ServeHTTP(ctx, l, obs.RequestIDs(h), drain)
	}})
	return nil
}
