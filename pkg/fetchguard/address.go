package fetchguard

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// refused4 are the IPv4 networks that are not public, by the registry of special-purpose addresses (RFC 6890) and its
// updates. The last one is the host of Azure's metadata, which has a public address.
var refused4 = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
	"192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
	"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
)

// global6 is the only IPv6 network with public addresses. Everything else is refused: loopback, IPv4-mapped and
// IPv4-compatible addresses, NAT64 (64:ff9b::/96 and 64:ff9b:1::/48), unique local and link-local addresses,
// site-local ones and multicast.
var global6 = netip.MustParsePrefix("2000::/3")

// refused6 are the networks within global6 that are not public: protocol assignments, which include Teredo
// (2001::/32), documentation, and 6to4, whose addresses contain an IPv4 address.
var refused6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "2620:4f:8000::/48")

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		out[i] = netip.MustParsePrefix(text)
	}
	return out
}

// Public reports whether an address is one of the public internet.
func Public(a netip.Addr) bool {
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	switch {
	case !a.IsValid() || a.Zone() != "":
		return false
	case a.Is4():
		return !slices.ContainsFunc(refused4, in)
	}
	return global6.Contains(a) && !slices.ContainsFunc(refused6, in)
}

// ReasonAddress is the reason of errors about addresses that are refused.
const ReasonAddress = "ADDRESS_REFUSED"

// check returns an error unless a connection to the address is allowed. Ports other than those of the configuration
// are refused, and so are addresses of this process, and those that are neither public nor in one of the networks of
// Allow.
func (c *Config) check(ctx context.Context, address string) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil { // the dialer resolves names before it asks
		return fault.Wrap(fault.PermissionDenied, err, "connect: refused").Because(ReasonAddress)
	}
	at := fmt.Errorf("it is %s", to) // for the operator: whoever has asked for a name may not know its address
	refuse := func(why string) error {
		return fault.Wrap(fault.PermissionDenied, at, "connect: refused, %s", why).Because(ReasonAddress)
	}
	if !slices.Contains(c.Ports, to.Port()) {
		return refuse(fmt.Sprintf("ports other than %v are not allowed", c.Ports))
	}
	machine, err := c.Machine()
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "connect: list the addresses of this machine")
	}
	local := slices.Contains(machine, to.Addr())
	if c.Own != nil {
		for _, own := range c.Own(ctx) {
			same := own.Addr() == to.Addr() || own.Addr().IsUnspecified() && (local || to.Addr().IsLoopback())
			if same && (own.Port() == 0 || own.Port() == to.Port()) {
				return refuse("it is an address of this server")
			}
		}
	}
	// A prefix never contains an address with a zone or an IPv4-mapped one, so Allow has no such addresses.
	allowed := slices.ContainsFunc(c.Allow, func(p netip.Prefix) bool { return p.Contains(to.Addr()) })
	if (local || !Public(to.Addr())) && !allowed {
		return refuse("the address is not public")
	}
	return nil
}

// interfaces returns the addresses of this machine's interfaces.
func interfaces() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range found {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}
