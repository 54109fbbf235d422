package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of the other side.
const (
	dialTime     = 10 * time.Second
	headerTime   = 30 * time.Second // until the head of an answer
	idleTime     = 30 * time.Second // in which idleBytes have to arrive
	idleBytes    = 64 << 10
	maxRedirects = 5
	maxDocument  = 32 << 20 // of a listing or manifest
	maxRetry     = 30 * time.Second
)

// Client fetches over HTTP.
type Client struct {
	http  *http.Client
	token string // sent to the first host alone
	idle  time.Duration
}

// ClientOptions configure a client.
type ClientOptions struct {
	Token     string            // a bearer token; empty for none
	Transport http.RoundTripper // nil for a new one
	Idle      time.Duration     // how long a read may bring nothing; 0 for 30 s
}

// NewClient returns a client.
func NewClient(o ClientOptions) *Client {
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dialTime}).DialContext,
			TLSHandshakeTimeout: dialTime, ResponseHeaderTimeout: headerTime, DisableCompression: true,
			MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: idleTime, ForceAttemptHTTP2: true,
		}
	}
	if o.Idle == 0 {
		o.Idle = idleTime
	}
	return &Client{http: &http.Client{Transport: o.Transport, CheckRedirect: redirect}, token: o.Token, idle: o.Idle}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// redirect decides whether a redirect is followed.
func redirect(next *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) > maxRedirects:
		return fault.New(fault.FailedPrecondition, "follow redirects of %s: there are more than %d", first.Redacted(),
			maxRedirects)
	case next.URL.Scheme != "https" && (next.URL.Scheme != "http" || via[len(via)-1].URL.Scheme == "https"):
		return fault.New(fault.FailedPrecondition, "follow redirect of %s to %.80q: it leads away from https",
			first.Redacted(), next.URL.Redacted())
	}
	if next.URL.Host != first.Host {
		next.Header.Del("Authorization") // also where net/http would keep it: another port or a subdomain
	}
	return nil
}

// parseURL checks an address of a server.
func (c *Client) parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fault.Field(
			"source",
			"%.200q: want an address that begins with http:// or https://, without a user",
			text,
		)
	}
	if c.token != "" && u.Scheme == "http" && !loopback(u.Hostname()) {
		return nil, fault.Field("token-file", "send a token to %s without TLS: anyone on the way could read it", u.Host)
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// get asks for a file, or for bytes [from, to) of it if to > 0. The body of an answer ends with ctx, and when too
// little arrives. An answer other than 200 and 206 is an error.
func (c *Client) get(ctx context.Context, at string, from, to int64) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		cancel(nil)
		return nil, fault.Wrap(fault.Invalid, err, "pull %.200s", at)
	}
	req.Header.Set("Accept-Encoding", "identity")
	if to > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		err = reach(ctx, err, req.URL) // before cancel, which would make it look as if the caller had given up
		cancel(nil)
		return nil, err
	}
	resp.Body = newBody(resp.Body, c.idle, cancel, ctx)
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		err := status(resp, req.URL)
		_ = resp.Body.Close()
		return nil, err
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		_ = resp.Body.Close()
		return nil, fault.New(
			fault.FailedPrecondition,
			"pull %s: the server encodes the file as %.40q",
			req.URL.Redacted(),
			e,
		)
	}
	return resp, nil
}

// reach says why a server was not reached.
func reach(ctx context.Context, err error, u *url.URL) error {
	var known *fault.Error
	if errors.As(err, &known) { // of redirect
		return known
	}
	if ctx.Err() != nil && fault.CodeOf(ctx.Err()) == fault.Canceled {
		return ctx.Err()
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // without the address, which may have a signature
	}
	return fault.Wrap(fault.Unavailable, err, "pull %s", u.Redacted())
}

// status makes an error of an answer.
func status(resp *http.Response, u *url.URL) error {
	at := u.Scheme + "://" + u.Host + u.Path
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized:
		return fault.New(fault.Unauthenticated, "pull %s: the server wants a token (--token-file), or does not have "+
			"it and does not say so", at)
	case code == http.StatusForbidden:
		return fault.New(fault.PermissionDenied, "pull %s: the server refuses: the token may lack the right, or the "+
			"model's terms may have to be accepted first", at)
	case code == http.StatusNotFound || code == http.StatusGone:
		return fault.New(fault.NotFound, "pull %s: the server does not have it", at)
	case code == http.StatusTooManyRequests || code >= 500:
		err := fault.New(fault.Unavailable, "pull %s: the server answers %s", at, resp.Status)
		if s, bad := strconv.Atoi(resp.Header.Get("Retry-After")); bad == nil && s > 0 {
			err = err.After(min(time.Duration(s)*time.Second, maxRetry))
		}
		return err
	default:
		return fault.New(fault.FailedPrecondition, "pull %s: the server answers %.80q", at, resp.Status)
	}
}

// document reads a small file as a whole.
func (c *Client) document(ctx context.Context, at string) ([]byte, http.Header, error) {
	resp, err := c.get(ctx, at, 0, 0)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	switch {
	case err != nil:
		return nil, nil, fault.Wrap(fault.Unavailable, err, "pull %s", resp.Request.URL.Redacted())
	case len(text) > maxDocument:
		return nil, nil, fault.New(fault.DataLoss, "pull %s: want at most %d bytes", resp.Request.URL.Redacted(),
			maxDocument)
	}
	return text, resp.Header, nil
}

// probe finds out the size of a file, and whether the server has ranges of it.
func (c *Client) probe(ctx context.Context, at string) (size int64, tag string, ranges bool, err error) {
	resp, err := c.get(ctx, at, 0, 1)
	if err != nil {
		return 0, "", false, err
	}
	defer resp.Body.Close()
	size, ranges = resp.ContentLength, false
	if resp.StatusCode == http.StatusPartialContent {
		r, err := parseRange(resp.Header.Get("Content-Range"))
		if err != nil || r.from != 0 || r.to > 1 || r.total < 0 {
			return 0, "", false, fault.New(fault.DataLoss, "pull %s: want the range 0-0 of a known size, got %.80q", at,
				resp.Header.Get("Content-Range"))
		}
		size, ranges = r.total, true
	}
	if size < 0 {
		return 0, "", false, fault.New(fault.FailedPrecondition, "pull %s: the server does not tell its size", at)
	}
	return size, tagOf(resp.Header), ranges, nil
}

// tagOf returns what changes with the content of a file: its strong ETag, or else the time of its last change.
func tagOf(h http.Header) string {
	if tag := h.Get("ETag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		return tag
	}
	return h.Get("Last-Modified")
}

// byteRange is a Content-Range: bytes [from, to) of total, which is -1 if it is not told.
type byteRange struct{ from, to, total int64 }

// parseRange parses a Content-Range, such as "bytes 0-99/1234".
func parseRange(text string) (byteRange, error) {
	bad := func() (byteRange, error) { return byteRange{}, fmt.Errorf("parse Content-Range %.80q", text) }
	rest, ok := strings.CutPrefix(text, "bytes ")
	span, total, ok2 := strings.Cut(rest, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return bad()
	}
	from, err1 := strconv.ParseUint(first, 10, 62)
	end, err2 := strconv.ParseUint(last, 10, 62)
	r := byteRange{int64(from), int64(end) + 1, -1}
	if err1 != nil || err2 != nil || from > end {
		return bad()
	}
	if total != "*" {
		n, err := strconv.ParseUint(total, 10, 62)
		if err != nil || int64(n) < r.to {
			return bad()
		}
		r.total = int64(n)
	}
	return r, nil
}

// read opens bytes [from, to) of a file of a known size.
func (c *Client) read(ctx context.Context, f File, from, to int64) (io.ReadCloser, error) {
	resp, err := c.get(ctx, f.at, from, to)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (io.ReadCloser, error) {
		_ = resp.Body.Close()
		return nil, err
	}
	if tag := tagOf(resp.Header); f.tag != "" && tag != "" && tag != f.tag {
		return fail(&ChangedError{File: f.at})
	}
	if resp.StatusCode == http.StatusOK { // it ignores ranges
		if resp.ContentLength >= 0 && resp.ContentLength != f.Size {
			return fail(&ChangedError{File: f.at})
		}
		if _, err := io.CopyN(io.Discard, resp.Body, from); err != nil {
			return fail(fault.Wrap(fault.Unavailable, err, "pull %s", f.at))
		}
	} else {
		text := resp.Header.Get("Content-Range")
		r, err := parseRange(text)
		switch {
		case err != nil || r.from != from || r.to > to:
			return fail(fault.New(fault.DataLoss, "pull %s: want bytes %d-%d, got %.80q", f.at, from, to-1, text))
		case r.total >= 0 && r.total != f.Size:
			return fail(&ChangedError{File: f.at})
		}
	}
	return part{io.LimitReader(resp.Body, to-from), resp.Body}, nil
}

// body is the body of an answer. Reading fails when too little arrives.
type body struct {
	io.ReadCloser
	idle   time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	ctx    context.Context
	got    int64 // bytes since the timer was set
}

// errSlow is the cause of a body that ended because too little arrived.
var errSlow = errors.New("the server sends too slowly")

func newBody(b io.ReadCloser, idle time.Duration, cancel context.CancelCauseFunc, ctx context.Context) *body {
	return &body{ReadCloser: b, idle: idle, cancel: cancel, ctx: ctx, timer: time.AfterFunc(idle, func() {
		cancel(errSlow)
	})}
}

// Read reads and gives the server more time when enough has arrived.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.got += int64(n); b.got >= idleBytes && err == nil {
		b.got = 0
		b.timer.Reset(b.idle)
	}
	if err != nil && errors.Is(context.Cause(b.ctx), errSlow) {
		err = fault.Wrap(fault.Unavailable, errSlow, "read the answer of a server")
	}
	return n, err
}

// Close ends the request.
func (b *body) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
