// Package issue makes the certificates of a first fleet: an authority of its own, and leaf certificates whose
// SPIFFE ids name a service or a role. A fleet that has a certificate authority already needs nothing of this: any
// certificate with such an id will do.
//
// The folder of an authority also has a list of what it has issued, and the signed list of what it has revoked since.
//
// Keys are ECDSA P-256. Files are replaced at once, the key before the certificate, and a service that reads a new key
// with an old certificate keeps what it has until both fit.
package issue

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// backdate is how long before their creation certificates are valid, for clocks that differ.
const backdate = 5 * time.Minute

// ID is a service or a role.
type ID struct {
	Service auth.Service
	Role    auth.Role
}

// All returns the ids of all services and roles.
func All() []ID {
	var ids []ID
	for _, s := range auth.Services() {
		ids = append(ids, ID{Service: s})
	}
	for _, r := range auth.Roles() {
		ids = append(ids, ID{Role: r})
	}
	return ids
}

// ParseID returns the id of a service or a role, one of which is empty.
func ParseID(s auth.Service, r auth.Role) (ID, error) {
	if id := (ID{s, r}); slices.Contains(All(), id) {
		return id, nil
	}
	return ID{}, fault.Field("service", "%q and role %q: want one that exists", s, r)
}

// Name is the name of the files of a certificate: that of the service, or the role with "client-" before it.
func (id ID) Name() string {
	if id.Service != "" {
		return string(id.Service)
	}
	return "client-" + string(id.Role)
}

// URI returns the SPIFFE id.
func (id ID) URI(domain string) *url.URL {
	if id.Service != "" {
		return id.Service.SpiffeID(domain)
	}
	return id.Role.SpiffeID(domain)
}

// Authority signs certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority for a trust domain.
func NewAuthority(domain string, now time.Time, valid time.Duration) (*Authority, error) {
	id := &url.URL{Scheme: "spiffe", Host: domain}
	if parsed, err := url.Parse(id.String()); err != nil || domain == "" || parsed.Hostname() != domain {
		return nil, fault.Field("domain", "want a name such as lamina or example.org, got %q", domain)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "make a key")
	}
	template, err := template(domain+" mesh authority", now, valid)
	if err != nil {
		return nil, err
	}
	template.URIs, template.IsCA, template.MaxPathLenZero = []*url.URL{id}, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "sign the authority")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "read the authority")
	}
	return &Authority{cert: cert, key: key}, nil
}

func template(name string, now time.Time, valid time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "draw a serial number")
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: now.Add(-backdate), NotAfter: now.Add(valid),
	}, nil
}

// Domain returns the trust domain.
func (a *Authority) Domain() string { return auth.Domain(a.cert.URIs) }

// Save writes ca.pem and ca.key to a folder. It never replaces an authority.
func (a *Authority) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Unavailable, err, "make folder of certificates")
	}
	for _, name := range []string{"ca.pem", "ca.key"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.AlreadyExists,
				"make authority: %s exists: lamina certs issue makes more certificates, or choose another --dir",
				filepath.Join(dir, name))
		}
	}
	return save(dir, "ca", a.cert.Raw, a.key)
}

// LoadAuthority reads what Save has written.
func LoadAuthority(dir string) (*Authority, error) {
	block := func(name, kind string) ([]byte, error) {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "read authority: lamina certs init makes one")
		}
		b, _ := pem.Decode(text)
		if b == nil || b.Type != kind {
			return nil, fault.New(fault.Invalid, "read authority %s: want a PEM block of type %s",
				filepath.Join(dir, name), kind)
		}
		return b.Bytes, nil
	}
	der, err := block("ca.pem", "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read authority")
	}
	if der, err = block("ca.key", "PRIVATE KEY"); err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read key of authority")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fault.New(
			fault.Invalid,
			"read key of authority: it does not fit %s",
			filepath.Join(dir, "ca.pem"),
		)
	}
	return &Authority{cert: cert, key: key}, nil
}

// Issue writes a new key and certificate for an id, NAME.pem and NAME.key. hosts are names and addresses of a service
// besides those of this machine; without any, those of the certificate that is replaced stay. A certificate is never
// valid for longer than the authority, and one that has expired issues none.
func (a *Authority) Issue(dir string, id ID, hosts []string, now time.Time, valid time.Duration) error {
	if err := a.usable(now, "sign certificate of "+id.Name()); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "make a key")
	}
	template, err := template(id.Name(), now, valid)
	if err != nil {
		return err
	}
	template.URIs = []*url.URL{id.URI(a.Domain())}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if id.Service != "" {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		template.DNSNames = []string{"localhost"}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
		if len(hosts) == 0 {
			hosts = hostsOf(filepath.Join(dir, id.Name()+".pem"))
		}
		for _, host := range hosts {
			if ip := net.ParseIP(host); ip != nil {
				template.IPAddresses = append(template.IPAddresses, ip)
			} else if !slices.Contains(template.DNSNames, host) {
				template.DNSNames = append(template.DNSNames, host)
			}
		}
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "sign certificate of %s", id.Name())
	}
	cert, err := x509.ParseCertificate(der)
	if err == nil {
		err = record(dir, cert)
	}
	if err != nil {
		return err
	}
	return save(dir, id.Name(), der, key)
}

// hostsOf returns the names and addresses of a certificate, or none if there is no certificate.
func hostsOf(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	hosts := cert.DNSNames
	for _, ip := range cert.IPAddresses {
		if !ip.IsLoopback() {
			hosts = append(hosts, ip.String())
		}
	}
	return hosts
}

// save writes a key, and then its certificate.
func save(dir, name string, der []byte, key *ecdsa.PrivateKey) error {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "encode key of %s", name)
	}
	for _, file := range []struct {
		name, kind string
		data       []byte
		mode       os.FileMode
	}{{name + ".key", "PRIVATE KEY", private, 0o600}, {name + ".pem", "CERTIFICATE", der, 0o644}} {
		if err := write(filepath.Join(dir, file.name), file.kind, file.data, file.mode); err != nil {
			return err
		}
	}
	return nil
}
