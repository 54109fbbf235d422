package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	maxRevocations = 32 << 20 // bytes of a file of revocation lists
	maxLists       = 64       // of a file
)

// revocations are the certificates that authorities have revoked.
type revocations struct {
	serials map[string]map[string]bool // by the issuer's name (DER), then the serial number (decimal)
	stale   []string                   // lists that should have been replaced by newer ones
}

// readRevocations reads certificate revocation lists (RFC 5280), in PEM or one in DER. Each must be signed by one of
// the authorities. Lists that hold only a part of what was revoked are refused.
func readRevocations(path string, authorities []*x509.Certificate, now time.Time) (*revocations, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read revoked certificates")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRevocations+1))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "read revoked certificates of %s", path)
	}
	if len(text) > maxRevocations {
		return nil, fault.New(fault.Invalid, "read revoked certificates of %s: more than %d bytes", path,
			maxRevocations)
	}
	lists, err := revocationLists(text)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read revoked certificates of %s", path)
	}
	r := &revocations{serials: map[string]map[string]bool{}}
	for i, list := range lists {
		if !slices.ContainsFunc(authorities,
			func(ca *x509.Certificate) bool { return list.CheckSignatureFrom(ca) == nil }) {
			return nil, fault.New(fault.Invalid,
				"read revoked certificates of %s: list %d is not signed by an authority of "+
					"--tls-ca", path, i)
		}
		for _, e := range list.Extensions {
			if e.Critical {
				return nil, fault.New(fault.Invalid,
					"read revoked certificates of %s: list %d is not complete (extension %v)",
					path, i, e.Id)
			}
		}
		if !list.NextUpdate.IsZero() && now.After(list.NextUpdate) {
			r.stale = append(r.stale,
				fmt.Sprintf("list %d of %s, due %s", i, path, list.NextUpdate.Format(time.RFC3339)))
		}
		serials := r.serials[string(list.RawIssuer)]
		if serials == nil {
			serials = map[string]bool{}
			r.serials[string(list.RawIssuer)] = serials
		}
		for _, e := range list.RevokedCertificateEntries {
			serials[e.SerialNumber.String()] = true
		}
	}
	return r, nil
}

func revocationLists(text []byte) ([]*x509.RevocationList, error) {
	if !bytes.Contains(text, []byte("-----BEGIN ")) {
		list, err := x509.ParseRevocationList(text)
		if err != nil {
			return nil, fmt.Errorf("want PEM blocks of type X509 CRL, or one list in DER: %w", err)
		}
		return []*x509.RevocationList{list}, nil
	}
	var lists []*x509.RevocationList
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("block %d: want a PEM block of type X509 CRL, got %.32q", len(lists), block.Type)
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", len(lists), err)
		}
		if lists = append(lists, list); len(lists) > maxLists {
			return nil, fmt.Errorf("more than %d lists", maxLists)
		}
	}
	if len(lists) == 0 || len(bytes.TrimSpace(text)) > 0 {
		return nil, fmt.Errorf("the PEM block %d is cut or damaged", len(lists))
	}
	return lists, nil
}

// revoked reports whether a certificate was revoked.
func (r *revocations) revoked(cert *x509.Certificate) bool {
	return r != nil && r.serials[string(cert.RawIssuer)][cert.SerialNumber.String()]
}

// check returns an error if each of the verified chains of a peer has a certificate that was revoked. A peer without
// a certificate has no chains.
func (r *revocations) check(chains [][]*x509.Certificate) error {
	if r == nil || len(chains) == 0 {
		return nil
	}
	for _, chain := range chains {
		if !slices.ContainsFunc(chain, r.revoked) {
			return nil
		}
	}
	leaf := chains[0][0]
	return fault.New(fault.Unauthenticated, "verify certificate %x of %s: it was revoked", leaf.SerialNumber,
		leaf.Subject.CommonName).Because("CERTIFICATE_REVOKED")
}

// Revoked reports whether a peer's certificate is revoked now, given its verified chains.
func (c *Certificates) Revoked(chains [][]*x509.Certificate) bool {
	_, revoked := c.snapshot()
	return revoked.check(chains) != nil
}

// Run looks for changes of the files from time to time until ctx ends, and closes the connections of gRPC servers and
// clients whose peers' certificates have been revoked. Without a file of revoked certificates that is not needed, since
// handshakes look at the files themselves.
func (c *Certificates) Run(ctx context.Context) error {
	tick := time.NewTicker(checkFiles)
	defer tick.Stop()
	var last *revocations
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		_, revoked := c.snapshot()
		if revoked == last {
			continue
		}
		last = revoked
		if revoked != nil && len(revoked.stale) > 0 {
			c.warn(fault.New(fault.FailedPrecondition, "use revoked certificates: a newer list is due: %s",
				strings.Join(revoked.stale, "; ")))
		}
		for _, conn := range c.peers() {
			if err := revoked.check(conn.chains); err != nil {
				c.warn(err)
				_ = conn.Close() // the owner of the connection sees that, too
			}
		}
	}
}

// tracked is a connection whose peer has shown a certificate.
type tracked struct {
	net.Conn
	owner  *Certificates
	chains [][]*x509.Certificate
}

// Close closes the connection.
func (t *tracked) Close() error {
	t.owner.mu.Lock()
	delete(t.owner.conns, t)
	t.owner.mu.Unlock()
	return t.Conn.Close()
}

// track remembers a connection until it is closed, if its peer's certificate can be revoked.
func (c *Certificates) track(conn net.Conn, info credentials.AuthInfo) net.Conn {
	known, ok := info.(credentials.TLSInfo)
	if c.files.Revoked == "" || !ok || len(known.State.VerifiedChains) == 0 {
		return conn
	}
	t := &tracked{conn, c, known.State.VerifiedChains}
	c.mu.Lock()
	if c.conns == nil {
		c.conns = map[*tracked]struct{}{}
	}
	c.conns[t] = struct{}{}
	c.mu.Unlock()
	if c.Revoked(t.chains) { // Run may have closed the others while this one shook hands
		_ = t.Close()
	}
	return t
}

func (c *Certificates) peers() []*tracked {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*tracked, 0, len(c.conns))
	for t := range c.conns {
		out = append(out, t)
	}
	return out
}

// tracking are the credentials of a server that tracks its connections.
type tracking struct {
	credentials.TransportCredentials
	certificates *Certificates
}

// credentials returns the credentials of a server with a configuration of Server.
func (c *Certificates) credentials(config *tls.Config) credentials.TransportCredentials {
	if c == nil {
		return credentials.NewTLS(config)
	}
	return &tracking{credentials.NewTLS(config), c}
}

// ServerHandshake shakes hands with a client.
func (s *tracking) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := s.TransportCredentials.ServerHandshake(conn)
	if err != nil {
		return secured, info, err
	}
	return s.certificates.track(secured, info), info, nil
}

// Clone returns credentials with the same files.
func (s *tracking) Clone() credentials.TransportCredentials {
	return &tracking{s.TransportCredentials.Clone(), s.certificates}
}
