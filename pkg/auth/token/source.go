package token

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	fetchLimit  = 10 * time.Second // for one request
	pollEvery   = time.Second      // between two looks at a file
	retryEvery  = 10 * time.Second // default of Options.Retry
	unknownWait = 3 * time.Second  // for a token whose key is not known
	staleAfter  = 24 * time.Hour   // how long keys are used that could not be fetched again
)

// source holds the keys of an issuer and reads them again. It is safe for concurrent use.
type source struct {
	issuer Issuer
	log    *slog.Logger
	now    func() time.Time
	client *http.Client // nil for a file
	retry  time.Duration
	wake   chan struct{}

	mu      sync.Mutex
	running bool
	set     *KeySet
	fetched time.Time // when the set was read last
	tried   time.Time
	next    chan struct{} // closed after the next attempt
	seen    os.FileInfo
}

func newSource(c Issuer, log *slog.Logger, now func() time.Time, retry time.Duration) (*source, error) {
	s := &source{issuer: c, log: log, now: now, retry: retry, wake: make(chan struct{}, 1), next: make(chan struct{})}
	if !s.remote() {
		return s, s.read(context.Background()) // a file that is missing is a mistake of the configuration
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "read authority of issuer %s", c.Issuer)
		}
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.Invalid, "read authority of issuer %s: %s has no certificate", c.Issuer, c.CA)
		}
	}
	s.client = &http.Client{
		Timeout: fetchLimit,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, TLSHandshakeTimeout: fetchLimit,
			MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("it redirects: name the address of the keys itself")
		},
	}
	return s, nil
}

// remote reports whether the keys come from a server.
func (s *source) remote() bool { return s.issuer.Keys == "" || strings.Contains(s.issuer.Keys, "://") }

// run reads the keys again from time to time until ctx ends. Keys that were read before stay while that fails.
func (s *source) run(ctx context.Context) {
	s.runs(true)
	defer s.runs(false)
	failed := ""
	for {
		wait := pollEvery
		if s.remote() {
			wait = s.issuer.Refresh
		}
		if err := s.attempt(ctx); err != nil && ctx.Err() == nil {
			wait = min(wait, s.retry)
			if text := err.Error(); text != failed {
				failed = text
				s.log.Error("read the keys of an issuer: the ones from before stay", "issuer", s.issuer.Issuer, "error",
					err)
			}
		} else {
			failed = ""
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-s.wake:
			timer.Stop()
		}
	}
}

func (s *source) runs(running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = running
}

// attempt reads the keys and wakes those who wait for that.
func (s *source) attempt(ctx context.Context) error {
	err := s.read(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried = s.now()
	close(s.next)
	s.next = make(chan struct{})
	return err
}

// keys returns the keys; nil if there are none yet, or if they are too old to be trusted.
func (s *source) keys() *KeySet {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.remote() && s.now().Sub(s.fetched) > max(staleAfter, 2*s.issuer.Refresh) {
		return nil
	}
	return s.set
}

// again has the keys read again and waits for that, but not long, and not soon after the last time.
func (s *source) again() {
	s.mu.Lock()
	next, idle := s.next, !s.running || s.now().Sub(s.tried) < s.retry
	s.mu.Unlock()
	if idle {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	timer := time.NewTimer(unknownWait)
	defer timer.Stop()
	select {
	case <-next:
	case <-timer.C:
	}
}

// read reads the keys from the file, if it has changed, or from the server.
func (s *source) read(ctx context.Context) error {
	text, info, err := s.text(ctx)
	if err != nil || text == nil {
		return err
	}
	set, skipped, err := ParseKeys(text)
	if err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "read the keys of issuer %s", s.issuer.Issuer)
	}
	for _, why := range skipped {
		s.log.Debug("read the keys of an issuer", "issuer", s.issuer.Issuer, "error", why)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set, s.fetched, s.seen = set, s.now(), info
	return nil
}

// text returns the key set as text. It is nil for a file that has not changed.
func (s *source) text(ctx context.Context) ([]byte, os.FileInfo, error) {
	if s.remote() {
		text, err := s.fetch(ctx)
		return text, nil, err
	}
	info, err := os.Stat(s.issuer.Keys) // before reading, so that a later change is noticed
	if err != nil {
		return nil, nil, fault.Wrap(fault.CodeOf(err), err, "read the keys of issuer %s", s.issuer.Issuer)
	}
	s.mu.Lock()
	seen := s.seen
	s.mu.Unlock()
	if seen != nil && os.SameFile(info, seen) && info.Size() == seen.Size() && info.ModTime().Equal(seen.ModTime()) {
		return nil, nil, nil
	}
	f, err := os.Open(s.issuer.Keys)
	if err != nil {
		return nil, nil, fault.Wrap(fault.CodeOf(err), err, "read the keys of issuer %s", s.issuer.Issuer)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeySet+1))
	if err != nil {
		return nil, nil, fault.Wrap(fault.Unavailable, err, "read the keys of issuer %s", s.issuer.Issuer)
	}
	return text, info, nil
}

// fetch gets the key set from its server, whose address discovery tells if the configuration does not.
func (s *source) fetch(ctx context.Context) ([]byte, error) {
	address := s.issuer.Keys
	if address == "" {
		text, err := s.get(ctx, strings.TrimSuffix(s.issuer.Issuer, "/")+"/.well-known/openid-configuration")
		if err != nil {
			return nil, err
		}
		var found struct {
			Issuer string `json:"issuer"`
			Keys   string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(text, &found); err != nil {
			return nil, fault.New(fault.Unavailable, "discover issuer %s: the answer is no JSON object",
				s.issuer.Issuer)
		}
		if found.Issuer != s.issuer.Issuer {
			return nil, fault.New(fault.FailedPrecondition,
				"discover issuer %s: it calls itself %.255q: set issuer to that",
				s.issuer.Issuer, found.Issuer)
		}
		if err := secureURL(found.Keys); err != nil {
			return nil, fault.New(fault.FailedPrecondition, "discover issuer %s: jwks_uri: %v", s.issuer.Issuer, err)
		}
		address = found.Keys
	}
	return s.get(ctx, address)
}

func (s *source) get(ctx context.Context, address string) ([]byte, error) {
	fail := func(err error, format string, args ...any) ([]byte, error) {
		return nil, fault.Wrap(fault.Unavailable, err, "fetch %s: "+format, append([]any{address}, args...)...)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fail(err, "make the request")
	}
	r.Header.Set("Accept", "application/json")
	resp, err := s.client.Do(r)
	if err != nil {
		return fail(err, "ask the server")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fail(nil, "the server answers %s", resp.Status)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxKeySet+1))
	if err != nil {
		return fail(err, "read the answer")
	}
	if len(text) > maxKeySet {
		return fail(nil, "the answer has more than %d bytes", maxKeySet)
	}
	return text, nil
}
