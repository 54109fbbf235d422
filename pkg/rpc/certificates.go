package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Files names the PEM files of TLS.
type Files struct {
	Cert, Key, CA string
	// Revoked is a file of certificate revocation lists of the authorities; empty for none.
	Revoked string
}

// paths returns all of them.
func (f Files) paths() [4]string { return [4]string{f.Cert, f.Key, f.CA, f.Revoked} }

// checkFiles is the shortest time between two looks at the files.
const checkFiles = time.Second

// Certificates holds a certificate, an authority and what was revoked, which are read again when their files change. A
// handshake uses the files of its time, and connections that exist go on, so that certificates rotate without dropping
// a stream; Run closes those of revoked certificates. While files are damaged, the ones that were read last stay. It is
// safe for concurrent use.
type Certificates struct {
	files Files
	warn  func(error)

	mu      sync.Mutex
	config  *tls.Config  // the snapshot
	revoked *revocations // nil for none
	stamps  [4]os.FileInfo
	checked time.Time
	failed  string
	conns   map[*tracked]struct{}
}

// same reports whether two looks at a file show the same content.
func same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// Open reads the files. Without any it returns nil, which means plaintext. An authority alone is enough for clients,
// and a certificate with its key for servers whose clients show none. warn is called when files that have changed
// cannot be used; nil ignores that.
func (f Files) Open(warn func(error)) (*Certificates, error) {
	if f == (Files{}) {
		return nil, nil
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, fault.Field("tls-cert", "give --tls-cert and --tls-key together")
	}
	if warn == nil {
		warn = func(error) {}
	}
	c := &Certificates{files: f, warn: warn, checked: time.Now()}
	c.stamps = c.stat()
	var err error
	c.config, c.revoked, err = f.load()
	return c, err
}

// Mutual returns an error unless the files let both sides of a connection show a certificate, as services do.
func (f Files) Mutual() error {
	if f == (Files{}) {
		return nil
	}
	for _, named := range []struct{ flag, path string }{{"tls-cert", f.Cert}, {"tls-key", f.Key}, {"tls-ca", f.CA}} {
		if named.path == "" {
			return fault.Field(named.flag, "give all of --tls-cert, --tls-key and --tls-ca, or none")
		}
	}
	return nil
}

// load reads the files into a configuration for both sides.
func (f Files) load() (*tls.Config, *revocations, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	if f.Revoked != "" && f.CA == "" {
		return nil, nil, fault.Field("tls-revoked", "give --tls-ca, the authority that has signed the list")
	}
	if f.Cert != "" {
		cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, nil, fault.Wrap(fault.Invalid, err, "read TLS certificate %s", f.Cert)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	if f.CA == "" {
		return config, nil, nil
	}
	text, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Invalid, err, "read TLS authority %s", f.CA)
	}
	pool := x509.NewCertPool()
	authorities := parseCertificates(text)
	for _, ca := range authorities {
		pool.AddCert(ca)
	}
	if len(authorities) == 0 {
		return nil, nil, fault.New(fault.Invalid, "read TLS authority %s: it has no certificate", f.CA)
	}
	config.RootCAs, config.ClientCAs = pool, pool
	if f.Revoked == "" {
		return config, nil, nil
	}
	revoked, err := readRevocations(f.Revoked, authorities, time.Now())
	if err != nil {
		return nil, nil, err
	}
	config.VerifyConnection = func(s tls.ConnectionState) error { return revoked.check(s.VerifiedChains) }
	return config, revoked, nil
}

// parseCertificates returns the certificates of a PEM file. Other blocks and what cannot be read are left out.
func parseCertificates(text []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return out
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, cert)
		}
	}
}

func (c *Certificates) stat() (stamps [4]os.FileInfo) {
	for i, path := range c.files.paths() {
		if path != "" {
			stamps[i], _ = os.Stat(path) // a missing file counts as changed, and load tells why it fails
		}
	}
	return stamps
}

// current returns the configuration of the files as they are now.
func (c *Certificates) current() *tls.Config {
	config, _ := c.snapshot()
	return config
}

// snapshot also returns what is revoked; nil for nothing.
func (c *Certificates) snapshot() (*tls.Config, *revocations) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) < checkFiles {
		return c.config, c.revoked
	}
	c.checked = time.Now()
	stamps, changed := c.stat(), false
	for i, path := range c.files.paths() {
		changed = changed || path != "" && !same(c.stamps[i], stamps[i])
	}
	if !changed {
		return c.config, c.revoked
	}
	config, revoked, err := c.files.load()
	if err != nil { // perhaps only some of the files are new: the next handshake looks again
		if text := err.Error(); text != c.failed {
			c.failed = text
			c.warn(err)
		}
		return c.config, c.revoked
	}
	c.config, c.revoked, c.stamps, c.failed = config, revoked, stamps, ""
	return c.config, c.revoked
}

// Server returns the configuration of a server. With clients set to tls.RequireAndVerifyClientCert both sides show a
// certificate of the authority.
func (c *Certificates) Server(clients tls.ClientAuthType, protocols ...string) *tls.Config {
	at := func() *tls.Config {
		config := c.current().Clone()
		config.ClientAuth, config.NextProtos = clients, protocols
		if config.ClientCAs == nil {
			config.ClientAuth = tls.NoClientCert
		}
		return config
	}
	config := at()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return at(), nil }
	return config
}

// Authority reports whether there is an authority that can verify clients.
func (c *Certificates) Authority() bool { return c.files.CA != "" }

// URIs returns the URIs of the certificate, among which is its SPIFFE id.
func (c *Certificates) URIs() []*url.URL {
	if certs := c.current().Certificates; len(certs) > 0 && certs[0].Leaf != nil {
		return certs[0].Leaf.URIs
	}
	return nil
}

// Client returns the credentials of a client.
func (c *Certificates) Client() credentials.TransportCredentials {
	return &rotating{TransportCredentials: credentials.NewTLS(c.current().Clone()), certificates: c}
}

// rotating are credentials whose handshakes use the files of their time.
type rotating struct {
	credentials.TransportCredentials
	certificates *Certificates
}

// ClientHandshake shakes hands with a server.
func (r *rotating) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn,
	credentials.AuthInfo, error) {
	secured, info, err := credentials.NewTLS(r.certificates.current().Clone()).ClientHandshake(ctx, authority, conn)
	if err != nil {
		return secured, info, err
	}
	return r.certificates.track(secured, info), info, nil
}

// Clone returns credentials with the same files.
func (r *rotating) Clone() credentials.TransportCredentials {
	return &rotating{TransportCredentials: r.TransportCredentials.Clone(), certificates: r.certificates}
}
