package issue

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	// RevokedFile is the name of the list of revoked certificates in the folder of an authority.
	RevokedFile = "crl.pem"
	// issuedFile is the name of the list of issued certificates there, one JSON object a line.
	issuedFile = "issued.jsonl"
	// keepRevoked is how long a certificate stays on the list after it has expired, for clocks that differ.
	keepRevoked = 24 * time.Hour
)

// Issued is a certificate that the authority has signed.
type Issued struct {
	Serial string    `json:"serial"` // in hexadecimal
	Name   string    `json:"name"`   // as ID.Name
	ID     string    `json:"id"`     // SPIFFE id
	Until  time.Time `json:"until"`
}

// describe returns the entry of a certificate.
func describe(cert *x509.Certificate) Issued {
	i := Issued{Serial: cert.SerialNumber.Text(16), Name: cert.Subject.CommonName, Until: cert.NotAfter.UTC()}
	if len(cert.URIs) > 0 {
		i.ID = cert.URIs[0].String()
	}
	return i
}

// record adds a certificate to the list of those that were issued, before anyone can have it.
func record(dir string, cert *x509.Certificate) error {
	line, err := json.Marshal(describe(cert))
	if err != nil {
		return fault.Wrap(fault.Internal, err, "record certificate")
	}
	f, err := os.OpenFile(filepath.Join(dir, issuedFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "record certificate")
	}
	_, err = f.Write(append(line, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fault.Wrap(fault.Unavailable, err, "record certificate")
	}
	return nil
}

// ReadIssued returns the certificates that the authority of a folder has signed. An error names the line.
func ReadIssued(dir string) ([]Issued, error) {
	f, err := os.Open(filepath.Join(dir, issuedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "read issued certificates")
	}
	defer f.Close()
	var out []Issued
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		var i Issued
		if err := json.Unmarshal(lines.Bytes(), &i); err != nil {
			return nil, fault.New(fault.Invalid, "read issued certificates: line %d of %s: want a JSON object", n,
				f.Name())
		}
		if _, err := serialOf(i.Serial); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "read issued certificates: line %d of %s", n, f.Name())
		}
		out = append(out, i)
	}
	if err := lines.Err(); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "read issued certificates")
	}
	return out, nil
}

func serialOf(text string) (*big.Int, error) {
	n, ok := new(big.Int).SetString(text, 16)
	if !ok || n.Sign() <= 0 || n.BitLen() > 160 {
		return nil, fault.Field("serial", "want up to 40 hexadecimal digits, got %.64q", text)
	}
	return n, nil
}

// Certificate reads a certificate of this authority from a PEM file.
func (a *Authority) Certificate(path string) (Issued, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Issued{}, fault.Wrap(fault.CodeOf(err), err, "read certificate")
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return Issued{}, fault.New(fault.Invalid, "read certificate %s: want a PEM block of type CERTIFICATE", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Issued{}, fault.Wrap(fault.Invalid, err, "read certificate %s", path)
	}
	if err := cert.CheckSignatureFrom(a.cert); err != nil {
		return Issued{}, fault.New(fault.Invalid, "read certificate %s: another authority has signed it", path)
	}
	return describe(cert), nil
}

// Revoke adds certificates to the list of revoked ones in a folder, and returns those that were not on it. It signs
// the whole list anew; services read it again when the file changes. Certificates that have expired leave it.
func (a *Authority) Revoke(dir string, certs []Issued, now time.Time) ([]Issued, error) {
	if err := a.usable(now, "sign list of revoked certificates"); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, RevokedFile)
	old, err := a.readRevoked(path)
	if err != nil {
		return nil, err
	}
	issued, err := ReadIssued(dir)
	if err != nil {
		return nil, err
	}
	until := map[string]time.Time{}
	for _, i := range issued {
		until[i.Serial] = i.Until
	}
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-backdate), NextUpdate: a.cert.NotAfter}
	if old != nil {
		list.Number = new(big.Int).Add(old.Number, big.NewInt(1))
		for _, e := range old.RevokedCertificateEntries {
			if end, known := until[e.SerialNumber.Text(16)]; !known || now.Before(end.Add(keepRevoked)) {
				list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, e)
			}
		}
	}
	var added []Issued
	for _, c := range certs {
		serial, err := serialOf(c.Serial)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
			return e.SerialNumber.Cmp(serial) == 0
		}) {
			continue
		}
		added = append(added, c)
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now.UTC()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "sign list of revoked certificates")
	}
	return added, write(path, "X509 CRL", der, 0o644)
}

// readRevoked reads the list of revoked certificates; nil if there is none.
func (a *Authority) readRevoked(path string) (*x509.RevocationList, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "read list of revoked certificates")
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "X509 CRL" {
		return nil, fault.New(fault.Invalid, "read list of revoked certificates %s: want a PEM block of type X509 CRL",
			path)
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err == nil {
		err = list.CheckSignatureFrom(a.cert)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read list of revoked certificates %s", path)
	}
	return list, nil
}

// usable returns an error unless the authority is valid at a time: what it signs later or earlier is valid nowhere.
func (a *Authority) usable(now time.Time, what string) error {
	if now.Before(a.cert.NotBefore) {
		return fault.New(fault.FailedPrecondition,
			"%s: the authority is valid from %s on: set the clock of this machine",
			what, a.cert.NotBefore.Format(time.RFC3339)).Because("AUTHORITY_NOT_VALID_YET")
	}
	if !now.Before(a.cert.NotAfter) {
		return fault.New(fault.FailedPrecondition,
			"%s: the authority has expired at %s: make another one with lamina certs "+
				"init in a new folder", what, a.cert.NotAfter.Format(time.RFC3339)).Because("AUTHORITY_EXPIRED")
	}
	return nil
}

// Expires is when the authority expires, and with it all that it has signed.
func (a *Authority) Expires() time.Time { return a.cert.NotAfter }

// write writes a PEM file under a temporary name, and then gives it its name.
func write(path, kind string, der []byte, mode os.FileMode) error {
	var text bytes.Buffer
	if err := pem.Encode(&text, &pem.Block{Type: kind, Bytes: der}); err != nil {
		return fault.Wrap(fault.Internal, err, "encode %s", path)
	}
	temp := path + ".tmp"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "write %s", path)
	}
	err := os.WriteFile(temp, text.Bytes(), mode)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "write %s", path)
	}
	return nil
}

// Select returns the certificates of an id that have not expired. With replaced it leaves out the one that is in the
// folder now.
func (a *Authority) Select(dir string, id ID, replaced bool, now time.Time) ([]Issued, error) {
	issued, err := ReadIssued(dir)
	if err != nil {
		return nil, err
	}
	present, err := a.Certificate(filepath.Join(dir, id.Name()+".pem"))
	switch {
	case err == nil:
		issued = append(issued, present) // from before there was a list; Revoke leaves out what it knows
	case fault.CodeOf(err) != fault.NotFound:
		return nil, err
	case replaced:
		return nil, fault.Wrap(fault.NotFound, err, "find the certificate that is not to be revoked")
	}
	var out []Issued
	for _, i := range issued {
		if i.Name == id.Name() && now.Before(i.Until) && (!replaced || i.Serial != present.Serial) &&
			!slices.ContainsFunc(out, func(o Issued) bool { return o.Serial == i.Serial }) {
			out = append(out, i)
		}
	}
	if len(out) == 0 {
		return nil, fault.New(fault.NotFound, "find certificates of %s: %s has none to revoke", id.Name(),
			fmt.Sprint(filepath.Join(dir, issuedFile)))
	}
	return out, nil
}
