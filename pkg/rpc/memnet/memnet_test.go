package memnet_test

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

func TestMain(m *testing.M) { leak.Main(m) }

// pair returns both ends of a connection to "a".
func pair(t *testing.T, n *memnet.Network) (client, server net.Conn) {
	t.Helper()
	l, err := n.Listen("a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	client, err = n.Dial(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	server = <-accepted
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return client, server
}

func send(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

func TestNetwork_CarriesBothWays(t *testing.T) {
	client, server := pair(t, memnet.New())
	send(t, client, server, "ping")
	send(t, server, client, "pong")
}

func TestNetwork_NamesAreTakenAndGivenBack(t *testing.T) {
	n := memnet.New()
	l, err := n.Listen("a")
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr().String() != "mem:a" {
		t.Errorf("address %v", l.Addr())
	}
	if _, err := n.Listen("a"); fault.CodeOf(err) != fault.AlreadyExists {
		t.Errorf("second listener: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Dial(t.Context(), "a"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("dial a name without a listener: %v", err)
	}
	again, err := n.Listen("a")
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestNetwork_CutBreaksAndRefusesUntilMended(t *testing.T) {
	n := memnet.New()
	client, server := pair(t, n)
	send(t, client, server, "before")
	n.Cut("a", true)
	for name, c := range map[string]net.Conn{"client": client, "server": server} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s can read over a cut link", name)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Errorf("%s can write over a cut link", name)
		}
	}
	if _, err := n.Dial(t.Context(), "a"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("dial over a cut link: %v", err)
	}
	n.Cut("a", false)
	c, err := n.Dial(t.Context(), "a")
	if err != nil {
		t.Fatalf("dial after the cut has ended: %v", err)
	}
	c.Close()
}

func TestNetwork_SilenceHoldsWithoutAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		client, server := pair(t, n)
		n.Silence("a", true)
		written := make(chan error, 1)
		go func() {
			_, err := io.WriteString(client, "held")
			written <- err
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.Dial(ctx, "a"); fault.CodeOf(err) != fault.DeadlineExceeded {
			t.Errorf("dial over a silent link: %v", err)
		}
		select {
		case err := <-written:
			t.Fatalf("a write passed a silent link: %v", err)
		default:
		}
		n.Silence("a", false)
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(server, got); err != nil || string(got) != "held" {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestNetwork_SilentWriterEndsWhenClosed(t *testing.T) {
	n := memnet.New()
	client, _ := pair(t, n)
	n.Silence("a", true)
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(client, "held")
		written <- err
	}()
	client.Close()
	if err := <-written; err == nil {
		t.Error("a write passed a silent link")
	}
}

func TestNetwork_DelayMakesWritesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		client, server := pair(t, n)
		n.Delay("a", 3*time.Second)
		start := time.Now()
		send(t, client, server, "late")
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("a write took %v, want 3s", took)
		}
		n.Delay("a", 0)
		start = time.Now()
		send(t, client, server, "soon")
		if took := time.Since(start); took != 0 {
			t.Errorf("a write took %v, want none", took)
		}
	})
}
