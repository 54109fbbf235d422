package issue_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/issue"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func authority(t *testing.T, now time.Time, valid time.Duration) (*issue.Authority, string) {
	t.Helper()
	dir := t.TempDir()
	ca, err := issue.NewAuthority("lamina", now, valid)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	return ca, dir
}

// list reads the list of revoked certificates.
func list(t *testing.T, dir string) *x509.RevocationList {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, issue.RevokedFile))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	l, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAuthority_ExpiredOneSignsNothing(t *testing.T) {
	now := time.Now()
	ca, dir := authority(t, now, time.Hour)
	id := issue.ID{Service: auth.ShardService}
	for _, c := range []struct {
		at     time.Time
		reason string
	}{{now.Add(time.Hour), "AUTHORITY_EXPIRED"}, {now.Add(24 * time.Hour), "AUTHORITY_EXPIRED"},
		{now.Add(-time.Hour), "AUTHORITY_NOT_VALID_YET"}} {
		_, revoked := ca.Revoke(dir, nil, c.at)
		for _, err := range []error{ca.Issue(dir, id, nil, c.at, time.Hour), revoked} {
			f, ok := err.(*fault.Error)
			if !ok || f.Code != fault.FailedPrecondition || f.Reason != c.reason {
				t.Errorf("at %v: %v", c.at.Sub(now), err)
			}
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 2 {
		t.Errorf("%v, %v: want the authority alone", files, err)
	}
	if err := ca.Issue(dir, id, nil, now.Add(59*time.Minute), time.Hour); err != nil {
		t.Errorf("a minute before its end: %v", err)
	}
	if until := leaf(t, dir, "shard").NotAfter; until.After(ca.Expires()) {
		t.Errorf("valid until %v, and its authority until %v", until, ca.Expires())
	}
}

func TestAuthority_RevokesWhatItHasIssued(t *testing.T) {
	now := time.Now()
	ca, dir := authority(t, now, 1000*time.Hour)
	shard, router := issue.ID{Service: auth.ShardService}, issue.ID{Service: auth.RouterService}
	var serials []string
	for range 3 {
		for _, id := range []issue.ID{shard, router} {
			if err := ca.Issue(dir, id, nil, now, time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		serials = append(serials, leaf(t, dir, "shard").SerialNumber.Text(16))
	}
	replaced, err := ca.Select(dir, shard, true, now)
	if err != nil || len(replaced) != 2 || replaced[0].Serial != serials[0] || replaced[1].Serial != serials[1] ||
		replaced[0].ID != "spiffe://lamina/service/shard" {
		t.Fatalf("%+v, %v", replaced, err)
	}
	if added, err := ca.Revoke(dir, replaced, now); err != nil || len(added) != 2 {
		t.Fatalf("%v, %v", added, err)
	}
	all, err := ca.Select(dir, shard, false, now)
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	added, err := ca.Revoke(dir, all, now)
	if err != nil || len(added) != 1 || added[0].Serial != serials[2] {
		t.Errorf("revoked again: %v, %v", added, err)
	}
	l := list(t, dir)
	if len(l.RevokedCertificateEntries) != 3 || l.Number.Int64() != 2 || !l.NextUpdate.Equal(ca.Expires()) {
		t.Errorf("%d entries, number %v, until %v", len(l.RevokedCertificateEntries), l.Number, l.NextUpdate)
	}
	one, err := ca.Certificate(filepath.Join(dir, "router.pem"))
	if err != nil {
		t.Fatal(err)
	}
	// A day after they have expired, certificates leave the list.
	if _, err := ca.Revoke(dir, []issue.Issued{one}, now.Add(26*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if l = list(t, dir); len(l.RevokedCertificateEntries) != 1 {
		t.Errorf("%d entries after the others have expired", len(l.RevokedCertificateEntries))
	}
	if _, err := ca.Select(dir, shard, false, now.Add(2*time.Hour)); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("expired ones: %v", err)
	}
}

func TestAuthority_RevokesNothingOfOthers(t *testing.T) {
	now := time.Now()
	ca, dir := authority(t, now, time.Hour)
	other, elsewhere := authority(t, now, time.Hour)
	id := issue.ID{Service: auth.ShardService}
	if err := other.Issue(elsewhere, id, nil, now, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Certificate(filepath.Join(elsewhere, "shard.pem")); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a certificate of another authority: %v", err)
	}
	for _, serial := range []string{"", "0", "-1", "x", strings.Repeat("f", 41)} {
		if _, err := ca.Revoke(dir, []issue.Issued{{Serial: serial}}, now); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("serial %q: %v", serial, err)
		}
	}
	if _, err := other.Revoke(elsewhere, nil, now); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(elsewhere, issue.RevokedFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, issue.RevokedFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Revoke(dir, nil, now); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("on the list of another authority: %v", err)
	}
	for line, want := range map[string]string{"{": "line 1", `{"serial":"zz"}`: "line 1"} {
		if err := os.WriteFile(filepath.Join(dir, "issued.jsonl"), []byte(line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := issue.ReadIssued(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", line, err)
		}
	}
}
