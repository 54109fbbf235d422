package self_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/self"
)

// TestAddresses_ListsListenersAndNames has listeners of each kind, and names with and without ports.
func TestAddresses_ListsListenersAndNames(t *testing.T) {
	var own self.Addresses
	own.Bound(&net.TCPAddr{IP: net.IPv4zero, Port: 8080})
	own.Bound(&net.TCPAddr{IP: net.ParseIP("::1"), Port: 7070, Zone: "lo"})
	own.Bound(&net.UnixAddr{Name: "/run/lamina", Net: "unix"})
	own.Known("", "93.184.216.34:7070", "[2606:4700::1]:7070", "2606:4700::2", "localhost", "name.invalid")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	got := own.List(ended)
	for _, want := range []string{"0.0.0.0:8080", "[::1]:7070", "93.184.216.34:0", "[2606:4700::1]:0",
		"[2606:4700::2]:0", "127.0.0.1:0"} {
		if !slices.Contains(got, netip.MustParseAddrPort(want)) {
			t.Errorf("got %v, want %s in it", got, want)
		}
	}
	if again := own.List(t.Context()); len(again) != len(got) {
		t.Errorf("got %v at first, and %v then", got, again)
	}
}
