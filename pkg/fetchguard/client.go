package fetchguard

import (
	"cmp"
	"context"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// The defaults of Config.
const (
	DefaultBytes     = 2 << 20
	DefaultTimeout   = 15 * time.Second
	DefaultNaming    = 5 * time.Second
	DefaultRedirects = 5
)

const (
	maxHeader = 64 << 10 // bytes of a response's header
	maxURL    = 4096     // bytes of an address
)

// Config bounds what a client fetches. Zero values mean the defaults.
type Config struct {
	Bytes   int64         // of a body, decompressed; the rest is cut off
	Timeout time.Duration // of a fetch, from the resolution of the name to the last byte of the body
	// Naming is the time that the name of a host has to resolve to an address that may be connected to. A name that
	// does not is refused when this time has passed, and not before, so that its answer tells nobody whether it exists.
	// Below 0, there is no such limit, and the answer comes at once.
	Naming    time.Duration
	Redirects int // that are followed; below 0 none
	// Types are the media types that are accepted, such as text/html. None accepts everything.
	Types []string
	// Ports are the ports that may be connected to; by default 80 and 443.
	Ports []uint16
	// Allow are networks whose addresses may be reached although they are not public, for pages of an intranet.
	Allow []netip.Prefix
	// Own returns addresses of this process, which are refused although they are public or in Allow: those of its
	// listeners, and those under which others know it. A listener on every address of the machine has the
	// unspecified address, and port 0 means all ports. nil returns none. It is called for each connection.
	Own func(ctx context.Context) []netip.AddrPort
	// Machine returns the addresses of this machine, which count as not public; nil asks the system.
	Machine func() ([]netip.Addr, error)
	// Agent is sent as User-Agent.
	Agent string
	// Resolver looks up names; nil uses that of the system.
	Resolver *net.Resolver
}

// Document is what was fetched.
type Document struct {
	URL     string            // the address after redirects
	Type    string            // the media type, such as text/html, in lower case
	Params  map[string]string // of the media type, such as charset
	Body    []byte
	Partial bool // the body was longer than the limit
}

// Client fetches documents. It may be used by several goroutines.
type Client struct {
	c    Config
	http *http.Client
}

// New returns a client. It keeps no connections, so it needs no Close.
func New(c Config) *Client {
	c.Bytes = cmp.Or(c.Bytes, DefaultBytes)
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.Naming = cmp.Or(c.Naming, DefaultNaming)
	c.Redirects = cmp.Or(c.Redirects, DefaultRedirects)
	c.Agent = cmp.Or(c.Agent, "lamina")
	if len(c.Ports) == 0 {
		c.Ports = []uint16{80, 443}
	}
	if c.Machine == nil {
		c.Machine = interfaces
	}
	f := &Client{c: c}
	dialer := &net.Dialer{
		Timeout: c.Timeout, Resolver: c.Resolver,
		// It gets the address that the socket is about to be connected to.
		ControlContext: func(ctx context.Context, _, address string, _ syscall.RawConn) error {
			err := c.check(ctx, address)
			if t, ok := ctx.Value(triedKey{}).(*tried); ok && err == nil {
				t.Store(true)
			}
			return err
		},
	}
	f.http = &http.Client{
		Transport: &http.Transport{
			Proxy: nil, DialContext: f.dial(dialer), DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader,
			TLSHandshakeTimeout: c.Timeout, ResponseHeaderTimeout: c.Timeout,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > max(0, c.Redirects) {
				return fault.New(fault.FailedPrecondition, "follow %s: more than %d redirects", r.URL.Redacted(),
					max(0, c.Redirects))
			}
			r.Header.Del("Referer")
			if t, ok := r.Context().Value(triedKey{}).(*tried); ok {
				t.Store(false)
			}
			if err := checkURL(r.URL); err != nil {
				return err
			}
			return c.checkPort(r.URL)
		},
	}
	return f
}

// dial returns a function that connects to a host as d does. If no address of its name may be connected to when the
// time of Naming has passed, it returns an error then: the time is the same for every such name.
func (f *Client) dial(d *net.Dialer) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		connects, ok := ctx.Value(triedKey{}).(*tried)
		host, _, err := net.SplitHostPort(address)
		if err != nil || !ok || f.c.Naming < 0 {
			return d.DialContext(ctx, network, address)
		}
		if _, err := netip.ParseAddr(host); err == nil { // everybody knows what an address is for
			return d.DialContext(ctx, network, address)
		}
		resolving, cancel := context.WithCancel(ctx)
		defer cancel()
		passed := make(chan struct{})
		timer := time.AfterFunc(f.c.Naming, func() {
			if !connects.Load() {
				cancel()
			}
			close(passed)
		})
		defer timer.Stop()
		conn, err := d.DialContext(resolving, network, address)
		if err == nil || connects.Load() {
			return conn, err
		}
		select {
		case <-passed:
		case <-ctx.Done():
		}
		return nil, err
	}
}

// tried says whether an address of the host that is asked now may be connected to.
type tried = atomic.Bool

type triedKey struct{}

// ParseURL parses an address that may be fetched: one of http or https with a host and without credentials.
func ParseURL(text string) (*url.URL, error) {
	if len(text) > maxURL {
		return nil, fault.Field("url", "it has %d bytes, more than %d", len(text), maxURL)
	}
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil {
		return nil, fault.Field("url", "%v", errors.Unwrap(err))
	}
	return u, checkURL(u)
}

func checkURL(u *url.URL) error {
	switch {
	case len(u.String()) > maxURL:
		return fault.Field("url", "it has more than %d bytes", maxURL)
	case u.Scheme != "http" && u.Scheme != "https":
		return fault.Field("url", "want an address that begins with http:// or https://, got %q", u.Redacted())
	case u.Hostname() == "":
		return fault.Field("url", "%q names no host", u.Redacted())
	case u.User != nil:
		return fault.Field("url", "%q has credentials", u.Redacted())
	case disguised(u.Hostname()):
		return fault.Field("url", "%q is no name and no address in its usual form", u.Hostname())
	}
	return nil
}

// checkPort refuses ports before a name is resolved, so that the answer does not depend on the name.
func (c *Config) checkPort(u *url.URL) error {
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fault.Field("url", "%.20q is no port", port)
	}
	if !slices.Contains(c.Ports, uint16(n)) {
		return fault.New(fault.PermissionDenied, "fetch %s: ports other than %v are not allowed", u.Redacted(), c.Ports).
			Because(ReasonAddress)
	}
	return nil
}

// disguised reports whether a host is an IPv4 address in a form that only some resolvers understand, such as
// 0x7f.1 or 2130706433. As in browsers, a host whose last label is a number is an address.
func disguised(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	labels := strings.Split(strings.TrimSuffix(strings.ToLower(host), "."), ".")
	last := labels[len(labels)-1]
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		last, digits = hex, "0123456789abcdef"
	}
	return strings.Trim(last, digits) == ""
}

// Get fetches an address. It returns PermissionDenied with ReasonAddress for one that is not public and for a name that
// does not resolve, Invalid for one that is malformed, and FailedPrecondition for an answer that is not accepted.
func (f *Client) Get(ctx context.Context, address string) (*Document, error) {
	u, err := ParseURL(address)
	if err == nil {
		err = f.c.checkPort(u)
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.c.Timeout)
	defer cancel()
	connects := &tried{}
	ctx = context.WithValue(ctx, triedKey{}, connects)
	u.Fragment = ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fault.Field("url", "%v", err)
	}
	req.Header.Set("User-Agent", f.c.Agent)
	if len(f.c.Types) > 0 {
		req.Header.Set("Accept", strings.Join(f.c.Types, ", "))
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return nil, f.explain(ctx, u, connects.Load(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fault.New(fault.FailedPrecondition, "fetch %s: the server answered %s", u.Redacted(), resp.Status)
	}
	out := &Document{URL: resp.Request.URL.String()}
	kind := cmp.Or(resp.Header.Get("Content-Type"), "text/plain")
	if out.Type, out.Params, err = mime.ParseMediaType(kind); err != nil {
		return nil, fault.Wrap(fault.FailedPrecondition, err, "fetch %s: read its content type", u.Redacted())
	}
	if len(f.c.Types) > 0 && !slices.Contains(f.c.Types, out.Type) {
		return nil, fault.New(fault.FailedPrecondition, "fetch %s: its type is %s, want one of %s", u.Redacted(), out.Type,
			strings.Join(f.c.Types, ", "))
	}
	if out.Body, err = io.ReadAll(io.LimitReader(resp.Body, f.c.Bytes+1)); err != nil {
		return nil, f.explain(ctx, u, connects.Load(), err)
	}
	if int64(len(out.Body)) > f.c.Bytes {
		out.Body, out.Partial = out.Body[:f.c.Bytes], true
	}
	return out, nil
}

// explain returns the fault of a fetch that failed. The error of the client repeats the address, which is left out.
//
// Whoever asks may not know which names the network of this process has, and where they lead to. So there is one answer
// for a host of which no address may be connected to, whether its name does not resolve, resolves to an address that is
// refused, or to one that this machine has no sockets for; dial sees to it that it comes after the same time. Why
// stands in the cause, which is no fault and thus not in fault.Public.
func (f *Client) explain(ctx context.Context, u *url.URL, tried bool, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fault.Wrap(fault.Canceled, ctx.Err(), "fetch %s", u.Redacted())
	}
	var about *url.Error
	if errors.As(err, &about) {
		err = about.Err
	}
	var known *fault.Error
	refused := errors.As(err, &known) && known.Reason == ReasonAddress && known.Err != nil
	var network *net.OpError // of the dialer, with a refusal, too
	switch {
	case refused, !tried && (errors.As(err, &network) || ctx.Err() != nil):
		return fault.Wrap(fault.PermissionDenied, errors.New(err.Error()), "fetch %s: its host has no address that "+
			"may be reached", u.Redacted()).Because(ReasonAddress)
	case known != nil:
		return known
	case ctx.Err() != nil:
		return fault.New(fault.DeadlineExceeded, "fetch %s: it took longer than %v", u.Redacted(), f.c.Timeout)
	}
	return fault.Wrap(fault.Unavailable, err, "fetch %s: the server does not answer as it should", u.Redacted())
}
