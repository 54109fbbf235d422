package doctor_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/doctor"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/issue"
)

// findings runs a check.
func findings(t *testing.T, c doctor.Check) (worst doctor.Status, text string) {
	t.Helper()
	var b strings.Builder
	worst, err := doctor.Run(t.Context(), time.Minute, []doctor.Check{c}, func(f doctor.Finding) error {
		if (f.Next == "") != (f.Status == doctor.OK) {
			t.Errorf("%v does not say what to do", f)
		}
		return doctor.Print(&b, f)
	})
	if err != nil {
		t.Fatal(err)
	}
	return worst, b.String()
}

func expect(t *testing.T, c doctor.Check, status doctor.Status, texts ...string) {
	t.Helper()
	worst, text := findings(t, c)
	if worst != status {
		t.Errorf("%s, want %s:\n%s", worst, status, text)
	}
	for _, want := range texts {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

func TestPorts_InUseAndFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	expect(t, doctor.Ports(l.Addr().String()), doctor.Warn, l.Addr().String()+" is in use", "> if that is not Lamina")
	expect(t, doctor.Ports("127.0.0.1:0"), doctor.OK, "is free")
	expect(t, doctor.Ports("192.0.2.1:7070"), doctor.Fail, "choose an address of this machine")
}

func TestCertificates_ExpiryKeysAndAuthority(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	now := makeCertificates(t, dir)
	cert, key, ca := file("shard.pem"), file("shard.key"), file("ca.pem")
	expect(t, doctor.Certificates(cert, key, ca, now), doctor.OK, "shard.pem is valid for")
	expect(t, doctor.Certificates("", "", "", now), doctor.OK, "none is given")
	expect(t, doctor.Certificates(cert, file("ca.key"), ca, now), doctor.Fail, "--tls-key that belongs to it")
	expect(t, doctor.Certificates(cert, key, key, now), doctor.Fail, "")
	expect(t, doctor.Certificates(cert, key, ca, now.AddDate(-1, 0, 0)), doctor.Fail, "set this machine's clock")
	expect(t, doctor.Certificates(cert, key, ca, now.AddDate(100, 0, 0)), doctor.Fail, "has expired")
	other := t.TempDir()
	makeCertificates(t, other)
	expect(t, doctor.Certificates(cert, key, filepath.Join(other, "ca.pem"), now), doctor.Fail, "is not signed by")
	if err := os.WriteFile(file("empty.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, doctor.Certificates(cert, key, file("empty.pem"), now), doctor.Fail, "holds no certificate")
}

func TestClock_ComparesWithOthers(t *testing.T) {
	at := func(d time.Duration) map[string]func(context.Context) (time.Time, error) {
		return map[string]func(context.Context) (time.Time, error){
			"consul": func(context.Context) (time.Time, error) { return time.Now().Add(d), nil },
		}
	}
	expect(t, doctor.Clock(at(0)), doctor.OK, "agrees with consul")
	expect(t, doctor.Clock(at(-time.Hour)), doctor.Fail, "differs from consul by 1h0m0s", "chrony")
	expect(t, doctor.Clock(nil), doctor.OK, "nothing to compare")
}

func TestServer_VersionAndAbsence(t *testing.T) {
	older := func(v, than string) bool { return v < than }
	says := func(v string, err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return v, err }
	}
	gone := errors.New("connection refused")
	expect(t, doctor.Server("consul", "a:1", "2.1", true, older, says("2.2", nil)), doctor.OK, "2.2 at a:1")
	expect(t, doctor.Server("consul", "a:1", "2.1", true, older, says("1.9", nil)), doctor.Warn, "upgrade to 2.1")
	expect(t, doctor.Server("consul", "a:1", "2.1", true, older, says("", gone)), doctor.Fail, "connection refused")
	expect(t, doctor.Server("consul", "a:1", "2.1", false, older, says("", gone)), doctor.Warn, "lamina up needs none")
}

func TestMachine_ProcessorMemoryFilesAndFolders(t *testing.T) {
	const gib = 1 << 30
	expect(t, doctor.Processor([]string{"avx2", "portable"}), doctor.OK, "avx2, portable")
	expect(t, doctor.Processor([]string{"portable"}), doctor.Warn, "AVX2 or AVX-512")
	expect(t, doctor.Model("m.gguf", nil), doctor.OK, "m.gguf can be opened")
	expect(t, doctor.Model("m.gguf", errors.New("cut")), doctor.Fail, "cut")
	expect(t, doctor.Memory(8*gib, 0), doctor.OK, "8.0 GiB")
	expect(t, doctor.Memory(8*gib, 7*gib), doctor.Warn, "--kv-positions")
	expect(t, doctor.Memory(8*gib, 9*gib), doctor.Fail, "split the model")
	expect(t, doctor.Memory(gib/2, 0), doctor.Warn, "0.5 GiB")
	expect(t, doctor.Memory(0, 0), doctor.Warn, "--memory-limit")
	expect(t, doctor.Files(1024), doctor.Warn, "ulimit -n 4096")
	expect(t, doctor.Files(1<<20), doctor.OK)
	expect(t, doctor.Folder("runs", t.TempDir()), doctor.OK, "can be written to")
	expect(t, doctor.Folder("runs", filepath.Join(t.TempDir(), "none")), doctor.OK, "does not exist yet")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, doctor.Folder("runs", file), doctor.Fail, "another folder")
}

// makeCertificates makes an authority and the certificate of a shard, and returns a moment at which they are valid.
func makeCertificates(t *testing.T, dir string) time.Time {
	t.Helper()
	now := time.Now()
	ca, err := issue.NewAuthority("lamina", now, 100*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	id, err := issue.ParseID(auth.ShardService, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ca.Save(dir), ca.Issue(dir, id, nil, now, 90*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	return now.Add(time.Minute)
}
