package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/auth"
)

// Ports checks that addresses can be listened on.
func Ports(addrs ...string) Check {
	return Check{"ports", func(ctx context.Context) (out []Finding) {
		for _, addr := range addrs {
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
			switch {
			case err == nil:
				if err = l.Close(); err != nil {
					out = append(out, fail("look at the message", "%s: %v", addr, err))
					continue
				}
				out = append(out, ok("%s is free", addr))
			case errors.Is(err, syscall.EADDRINUSE):
				out = append(out, warn("if that is not Lamina, choose another address by its flag", "%s is in use", addr))
			case errors.Is(err, fs.ErrPermission):
				out = append(out, fail("choose a port above 1023", "%s: this user may not listen there", addr))
			default:
				out = append(out, fail("choose an address of this machine", "%s: %v", addr, err))
			}
		}
		return out
	}}
}

// soon is how long before its end a certificate should be replaced.
const soon = 14 * 24 * time.Hour

// Certificates checks a certificate, its key and its authority at a moment. All are PEM files; without a certificate
// nothing is found.
func Certificates(cert, key, ca string, now time.Time) Check {
	return Check{"certificate", func(context.Context) []Finding {
		if cert == "" && key == "" && ca == "" {
			return []Finding{ok("none is given, so listeners are for this machine only")}
		}
		const again = "make a new one with lamina certs issue"
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return []Finding{fail("give --tls-cert and the --tls-key that belongs to it", "%v", err)}
		}
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			return []Finding{fail(again, "%s: %v", cert, err)}
		}
		out := []Finding{expiry(cert, leaf, now, again)}
		if _, err := auth.PrincipalOf(leaf.URIs, ""); err != nil {
			out = append(out, warn("services refuse each other without one: "+again, "%s: %v", cert, err))
		}
		if ca == "" {
			return out
		}
		roots, authority, err := pool(ca)
		if err != nil {
			return append(out, fail("give the file that lamina certs init has written", "%v", err))
		}
		out = append(out, expiry(ca, authority, now, "make a new authority with lamina certs init, and new certificates"))
		inner := x509.NewCertPool()
		for _, raw := range pair.Certificate[1:] {
			if c, err := x509.ParseCertificate(raw); err == nil {
				inner.AddCert(c)
			}
		}
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inner, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err != nil {
			out = append(out, fail("use certificate and authority of one lamina certs init",
				"%s is not signed by %s: %v", cert, ca, err))
		}
		return out
	}}
}

func pool(ca string) (*x509.CertPool, *x509.Certificate, error) {
	text, err := os.ReadFile(ca)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	block, _ := pem.Decode(text)
	if block == nil || !roots.AppendCertsFromPEM(text) {
		return nil, nil, fmt.Errorf("%s holds no certificate", ca)
	}
	first, err := x509.ParseCertificate(block.Bytes)
	return roots, first, err
}

func expiry(name string, c *x509.Certificate, now time.Time, next string) Finding {
	left := c.NotAfter.Sub(now)
	switch {
	case now.Before(c.NotBefore):
		return fail("set this machine's clock", "%s is not valid before %s", name, c.NotBefore.Format(time.DateTime))
	case left <= 0:
		return fail(next, "%s has expired on %s", name, c.NotAfter.Format(time.DateTime))
	case left < soon:
		return warn(next, "%s expires in %s", name, plural.Of(int(left.Hours()/24), "day"))
	}
	return ok("%s is valid for %s", name, plural.Of(int(left.Hours()/24), "day"))
}

// maxSkew is the largest difference of clocks that is no trouble: certificates are valid from a minute before they
// were made.
const maxSkew = 30 * time.Second

// Clock compares this machine's clock with those of others. remote returns the time there, and a name for it.
func Clock(remote map[string]func(context.Context) (time.Time, error)) Check {
	return Check{"clock", func(ctx context.Context) (out []Finding) {
		for name, read := range remote {
			before := time.Now()
			there, err := read(ctx)
			if err != nil {
				continue // its own check tells why it does not answer
			}
			here := before.Add(time.Since(before) / 2)
			if d := here.Sub(there).Round(time.Second); d.Abs() > maxSkew {
				out = append(out, fail("run a time service such as chrony on both machines", "differs from %s by %v", name,
					d))
			} else {
				out = append(out, ok("agrees with %s", name))
			}
		}
		if len(out) == 0 {
			out = append(out, ok("%s; nothing to compare it with", time.Now().UTC().Format(time.DateTime)))
		}
		return out
	}}
}

// Server checks a server of another vendor: Consul or NATS. version asks for its version, and floor is the oldest one
// without known holes. asked says that the user named the address, so that a server that is not there is a failure.
func Server(name, addr, floor string, asked bool, older func(version, than string) bool,
	version func(context.Context) (string, error),
) Check {
	return Check{name, func(ctx context.Context) []Finding {
		v, err := version(ctx)
		switch {
		case err != nil && asked:
			return []Finding{fail("start it, or correct its address and credentials", "%s: %v", addr, err)}
		case err != nil:
			return []Finding{warn("start it for services in several processes; lamina up needs none",
				"%s does not answer", addr)}
		case older(v, floor):
			return []Finding{warn("upgrade to "+floor+" or later", "%s at %s has known holes", v, addr)}
		}
		return []Finding{ok("%s at %s", v, addr)}
	}}
}

// Processor reports the instruction sets, the fastest first, and the processors that this process may use.
func Processor(instructions []string) Check {
	return Check{"processor", func(context.Context) []Finding {
		n := runtime.GOMAXPROCS(0)
		detail := fmt.Sprintf("%d of %d processors, %s/%s, kernels for %s", n, runtime.NumCPU(), runtime.GOOS,
			runtime.GOARCH, strings.Join(instructions, ", "))
		if len(instructions) < 2 {
			return []Finding{warn("use a machine with AVX2 or AVX-512: the portable kernels are several times slower",
				"%s", detail)}
		}
		return []Finding{ok("%s", detail)}
	}}
}

// Model tells whether a model can be opened; err is what opening it has given. Without a name it finds nothing.
func Model(name string, err error) Check {
	return Check{"model", func(context.Context) []Finding {
		switch {
		case name == "":
			return nil
		case err != nil:
			return []Finding{fail("name a GGUF file, a folder with a model, or one that lamina models lists; "+
				"fetch a damaged one again", "%v", err)}
		}
		return []Finding{ok("%s can be opened", name)}
	}}
}

// Memory reports the memory that is available, and whether a model of so many bytes fits. 0 bytes means no model, and
// 0 available that it is not known.
func Memory(available, model int64) Check {
	return Check{"memory", func(context.Context) []Finding {
		gib := func(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }
		switch {
		case available <= 0:
			return []Finding{warn("give shards a limit by --memory-limit", "cannot find out how much is available")}
		case model > available:
			return []Finding{fail("split the model over several machines, or quantise it: lamina quantize",
				"%s are available, and the weights have %s", gib(available), gib(model))}
		case model > available*3/4:
			return []Finding{warn("lower --kv-positions or split the model over several machines",
				"%s are available, and the weights have %s: little is left for the KV cache", gib(available), gib(model))}
		case available < 1<<30:
			return []Finding{warn("end other programs or use a small model", "%s are available", gib(available))}
		}
		return []Finding{ok("%s are available", gib(available))}
	}}
}

// fewFiles is a limit on open files below which a busy router may run out of them.
const fewFiles = 4096

// Files checks the limit on open files; 0 means that it is not known.
func Files(limit uint64) Check {
	return Check{"open files", func(context.Context) []Finding {
		switch {
		case limit == 0:
			return []Finding{ok("the limit is not known on this system")}
		case limit < fewFiles:
			return []Finding{warn(fmt.Sprintf("ulimit -n %d, or LimitNOFILE= of the unit", fewFiles),
				"at most %d: each connection of a client takes one", limit)}
		}
		return []Finding{ok("at most %d", limit)}
	}}
}

// Folder checks that a folder can be written to. An empty name means none.
func Folder(what, dir string) Check {
	return Check{what, func(context.Context) []Finding {
		f, err := os.CreateTemp(dir, ".lamina-doctor-*")
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return []Finding{ok("%s does not exist yet", dir)}
		case err != nil:
			return []Finding{fail("let this user write there, or name another folder", "%v", err)}
		}
		if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
			return []Finding{fail("look at the message", "%v", err)}
		}
		return []Finding{ok("%s can be written to", dir)}
	}}
}
