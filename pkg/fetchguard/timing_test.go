package fetchguard_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/fetchguard"
)

// slowResolver asks a server of names without sockets, so that a test can have its own clock. A name that has "-2s-" in
// it is answered after that time, and one that begins with "silent" never.
func slowResolver() *net.Resolver {
	serve := func(conn net.Conn) {
		defer func() { _ = conn.Close() }()
		for {
			var size uint16
			if binary.Read(conn, binary.BigEndian, &size) != nil {
				return
			}
			query := make([]byte, size)
			if _, err := io.ReadFull(conn, query); err != nil {
				return
			}
			out := (&names{public: netip.MustParseAddr(publicAddr)}).answer(query)
			if strings.Contains(string(query), "silent") {
				_, _ = io.Copy(io.Discard, conn) // until the caller gives up
				return
			}
			if strings.Contains(string(query), "-2s-") {
				time.Sleep(2 * time.Second)
			}
			if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
				return
			}
		}
	}
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe() // streams have the length of a message before it
		go serve(there)           // until here is closed
		return here, nil
	}}
}

// TestClient_RefusalsTellNothingByTheirTime asks for names that exist within the network and for names that do not,
// whose server answers at once, later, or not at all. Each is refused after the same time.
func TestClient_RefusalsTellNothingByTheirTime(t *testing.T) {
	// The first lookup of a process makes what all have in common, which must not belong to a bubble.
	_, _ = slowResolver().LookupHost(t.Context(), "absent.evil.test")
	for _, limit := range []time.Duration{fetchguard.DefaultTimeout, 3 * time.Second} {
		for _, host := range []string{
			"absent.evil.test", "absent-2s-.evil.test", "v4-10-0-0-5.evil.test", "both.evil.test", "both-2s-.evil.test",
			"v6-3.evil.test", "silent.evil.test",
		} {
			synctest.Test(t, func(t *testing.T) {
				client := fetchguard.New(fetchguard.Config{Resolver: slowResolver(), Timeout: limit})
				began := time.Now()
				_, err := client.Get(t.Context(), "http://"+host+"/")
				took, want := time.Since(began), min(limit, fetchguard.DefaultNaming)
				if took != want {
					t.Errorf("%s, with a limit of %v: refused after %v, want %v: %v", host, limit, took, want, err)
				}
				if text := fault.Public(err); !strings.HasSuffix(text, "its host has no address that may be reached") {
					t.Errorf("%s: a caller sees %q", host, text)
				}
				time.Sleep(time.Hour) // the resolver gives up by itself
			})
		}
	}
	synctest.Test(t, func(t *testing.T) {
		client := fetchguard.New(fetchguard.Config{Resolver: slowResolver()})
		began := time.Now()
		_, err := client.Get(t.Context(), "http://10.0.0.5/")
		if !refused(err) || time.Since(began) != 0 {
			t.Errorf("an address in numbers: %v after %v, want a refusal at once", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = client.Get(ctx, "http://absent.evil.test/")
		if err == nil || time.Since(began) != time.Second || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("a caller who waits for a second: %v after %v", err, time.Since(began))
		}
		time.Sleep(time.Hour) // the resolver gives up by itself
	})
}
