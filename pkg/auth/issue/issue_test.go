package issue_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/issue"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// leaf reads a certificate and checks that its key fits.
func leaf(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func TestIssue_CertificatesAreValidForWhatTheyNameAlone(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	ca, err := issue.NewAuthority("example.org", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(text)
	for _, id := range issue.All() {
		if err := ca.Issue(dir, id, []string{"10.0.0.7", "gpu1.example.org"}, now, 2*time.Hour); err != nil {
			t.Fatal(err)
		}
		cert := leaf(t, dir, id.Name())
		p, err := auth.PrincipalOf(cert.URIs, "example.org")
		if err != nil || p.Service != id.Service || id.Role != "" && p.Roles[0] != id.Role {
			t.Errorf("%s: %+v, %v", id.Name(), p, err)
		}
		for _, host := range []string{"127.0.0.1", "localhost", "10.0.0.7", "gpu1.example.org"} {
			_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: host})
			if (err == nil) != (id.Service != "") {
				t.Errorf("%s serves %s: %v", id.Name(), host, err)
			}
		}
		client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		_, err = cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: client})
		if err != nil || cert.IsCA || cert.NotAfter.After(now.Add(time.Hour)) {
			t.Errorf("%s: %v, authority %v, until %v", id.Name(), err, cert.IsCA, cert.NotAfter)
		}
		info, err := os.Stat(filepath.Join(dir, id.Name()+".key"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", id.Name(), info.Mode(), err)
		}
	}
}

func TestIssue_AReplacedCertificateKeepsItsHosts(t *testing.T) {
	dir, now, id := t.TempDir(), time.Now(), issue.ID{Service: auth.ShardService}
	ca, err := issue.NewAuthority("lamina", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(dir, id, []string{"10.0.0.7", "gpu1"}, now, time.Hour); err != nil {
		t.Fatal(err)
	}
	before := leaf(t, dir, "shard")
	if ca, err = issue.LoadAuthority(dir); err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(dir, id, nil, now, time.Hour); err != nil {
		t.Fatal(err)
	}
	after := leaf(t, dir, "shard")
	if after.SerialNumber.Cmp(before.SerialNumber) == 0 {
		t.Error("nothing was replaced")
	}
	for _, host := range []string{"10.0.0.7", "gpu1", "localhost"} {
		if err := after.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if err := ca.Save(dir); fault.CodeOf(err) != fault.AlreadyExists {
		t.Errorf("the authority was replaced: %v", err)
	}
}

func TestNewAuthority_RefusesWhatIsNoDomain(t *testing.T) {
	for _, domain := range []string{"", "a/b", "a b", "u@a", "a:1"} {
		if _, err := issue.NewAuthority(domain, time.Now(), time.Hour); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: %v", domain, err)
		}
	}
}
