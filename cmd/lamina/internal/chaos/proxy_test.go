package chaos_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/chaos"
)

// echo serves connections that send back what they receive.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func proxied(t *testing.T) (*chaos.Proxy, net.Conn) {
	t.Helper()
	p, err := chaos.NewProxy(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return p, c
}

// ping sends a byte and waits for it. It returns how long it took.
func ping(c net.Conn, limit time.Duration) (time.Duration, error) {
	begin := time.Now()
	if _, err := c.Write([]byte("x")); err != nil {
		return 0, err
	}
	if err := c.SetReadDeadline(begin.Add(limit)); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return time.Since(begin), err
}

func TestProxy_HoldsEachDirectionUntilItEnds(t *testing.T) {
	p, c := proxied(t)
	for _, held := range [][2]bool{{true, false}, {false, true}, {true, true}} {
		if _, err := ping(c, time.Minute); err != nil {
			t.Fatal(err)
		}
		p.Hold(held[0], held[1])
		var timeout net.Error
		if _, err := ping(c, 100*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("held %v: got %v", held, err)
		}
		p.Hold(false, false)
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("after holding %v the byte was lost: %v", held, err)
		}
	}
}

func TestProxy_DelaysEachWay(t *testing.T) {
	p, c := proxied(t)
	p.SetDelay(50 * time.Millisecond)
	if took, err := ping(c, time.Minute); err != nil || took < 100*time.Millisecond {
		t.Errorf("a round trip took %v, %v", took, err)
	}
	p.SetDelay(0)
	if _, err := ping(c, time.Minute); err != nil {
		t.Error(err)
	}
}

func TestProxy_ResetsAndRefuses(t *testing.T) {
	p, c := proxied(t)
	if _, err := ping(c, time.Minute); err != nil {
		t.Fatal(err)
	}
	p.SetRefuse(true)
	if _, err := ping(c, time.Minute); err == nil {
		t.Error("the connection was not reset")
	}
	refused, err := net.Dial("tcp", p.Addr())
	if err == nil {
		if _, err = ping(refused, time.Minute); err == nil {
			t.Error("a new connection was served")
		}
		refused.Close()
	}
	p.SetRefuse(false)
	again, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := ping(again, time.Minute); err != nil {
		t.Errorf("after the reset: %v", err)
	}
}

func TestProxy_ForwardsMuchMoreThanItsQueue(t *testing.T) {
	_, c := proxied(t)
	const size = 64 << 20
	go func() {
		chunk := make([]byte, 1<<20)
		for range size / len(chunk) {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	}()
	c.SetReadDeadline(time.Now().Add(5 * time.Minute))
	if n, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Errorf("read %d of %d bytes: %v", n, size, err)
	}
}
