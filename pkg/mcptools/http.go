package mcptools

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

func checkURL(field, text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return fault.Field(field+".url", "want an address of http or https without credentials")
	}
	return nil
}

// token reads a bearer token; empty without a file.
func token(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fault.Wrap(fault.FailedPrecondition, err, "read the token of an MCP server")
	}
	out := strings.TrimSpace(string(text))
	if out == "" || strings.ContainsAny(out, "\r\n") {
		return "", fault.Wrap(fault.FailedPrecondition, fmt.Errorf("its file is %s", file),
			"read the token of an MCP server: want one line")
	}
	return out, nil
}

// httpClient returns the client of one server.
func httpClient(tokenFile string) *http.Client {
	return &http.Client{
		Transport: &bearer{file: tokenFile, next: &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true,
			TLSHandshakeTimeout: 10 * time.Second,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the server redirects") },
	}
}

// bearer adds the token to requests and bounds the bodies of answers.
type bearer struct {
	file string
	next http.RoundTripper
}

// RoundTrip sends a request.
func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	secret, err := token(b.file)
	if err != nil {
		return nil, err
	}
	if secret != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	resp, err := b.next.RoundTrip(r)
	if err == nil && !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		resp.Body = &bounded{resp.Body, maxMessage}
	}
	return resp, err
}

// bounded is a body that fails after a number of bytes.
type bounded struct {
	io.ReadCloser
	left int
}

// Read reads what is left.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("the answer is too long")
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// maxLine bounds the lines of a program that are logged.
const maxLine = 1024

// lines logs what a program writes to its standard error, line by line, at level debug.
type lines struct {
	log *slog.Logger

	mu   sync.Mutex
	rest []byte
}

// Write never fails.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		line, more, whole := bytes.Cut(p, []byte("\n"))
		l.rest = append(l.rest, line[:min(len(line), maxLine-min(maxLine, len(l.rest)))]...)
		if p = more; whole {
			l.log.Debug("MCP server writes", "line", string(l.rest))
			l.rest = l.rest[:0]
		}
	}
	return n, nil
}
