// Package self knows the addresses at which this process can be reached: those of its listeners, and those by which
// others know it. pkg/fetchguard refuses them, so that a page of the web cannot make the process ask itself.
package self

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	resolveTime = 2 * time.Second
	resolveAge  = time.Minute // how long the addresses of a name are used
)

// Addresses are those of this process. The zero value has none. It is safe for concurrent use.
type Addresses struct {
	mu        sync.Mutex
	listeners []netip.AddrPort
	names     map[string][]netip.Addr // by which others reach this process, with what they were resolved to
	until     time.Time               // when names are resolved again
}

// Bound adds the address of a listener. Others than those of TCP cannot be reached by pages.
func (o *Addresses) Bound(a net.Addr) {
	if tcp, ok := a.(*net.TCPAddr); ok {
		at := tcp.AddrPort()
		o.mu.Lock()
		o.listeners = append(o.listeners, netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port()))
		o.mu.Unlock()
	}
}

// Known adds names and addresses, with or without a port, by which others reach this process, perhaps through a
// translation of addresses. They belong to it whatever the port is.
func (o *Addresses) Known(names ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.names == nil {
		o.names = map[string][]netip.Addr{}
	}
	for _, name := range names {
		if host, _, err := net.SplitHostPort(name); err == nil {
			name = host
		}
		if name = strings.Trim(name, "[]"); name != "" {
			o.names[name] = nil
		}
	}
}

// List returns all addresses. A name that cannot be resolved now has those of before.
func (o *Addresses) List(ctx context.Context) []netip.AddrPort {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); !now.Before(o.until) {
		// The end of this caller's request must not leave names without addresses for others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolveTime)
		defer cancel()
		for name := range o.names {
			if found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name); err == nil {
				o.names[name] = found
			}
		}
		o.until = now.Add(resolveAge)
	}
	out := slices.Clone(o.listeners)
	for _, found := range o.names {
		for _, a := range found {
			out = append(out, netip.AddrPortFrom(a.Unmap().WithZone(""), 0))
		}
	}
	return out
}
