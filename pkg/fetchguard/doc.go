// Package fetchguard fetches documents from addresses that nobody has checked, such as those that a model asks for.
// A request never reaches an address that is not public: loopback, private networks, link-local addresses, the
// metadata services of clouds, multicast, and the IPv6 forms of IPv4 addresses are refused.
//
// Nor does it reach this process and this machine under their public addresses: those of the machine's interfaces, of
// the process's listeners, and those that the caller names.
//
// The check is made where it cannot be evaded: between the resolution of a name and the connect of the socket, for
// every connection, and so for every redirect. Whatever a name resolves to the second time, and however an address is
// spelled, the address that the socket would be connected to decides. Proxies of the environment are not used, since
// a proxy resolves names by itself.
//
// A fetch is bounded in time, size, redirects and content types. It sends no cookies, no credentials and no referrer.
//
// The package knows nothing of HTML (see pkg/webtools) and does not log. Within a network that translates IPv4
// addresses into a prefix of its own (NAT64), the operator has to refuse private ones in the translator: by the
// address alone they look public.
package fetchguard
