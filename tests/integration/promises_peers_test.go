package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// deadConn is a connection whose other end vanishes without a word, as a machine that loses its power: from then
// on nothing arrives on it, nothing that is written leaves, and nobody is told.
type deadConn struct {
	net.Conn
	dead   *atomic.Bool
	closed chan struct{}
	once   sync.Once
}

func (c *deadConn) Read(p []byte) (int, error) {
	if !c.dead.Load() {
		n, err := c.Conn.Read(p)
		if !c.dead.Load() {
			return n, err
		}
	}
	<-c.closed
	return 0, net.ErrClosed
}

func (c *deadConn) Write(p []byte) (int, error) {
	if c.dead.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *deadConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// deadPeer runs several requests on a connection of its own until each has some tokens, and vanishes then. The
// requests share the connection's window of 64 KiB, which is less than an answer. The returned function closes what is
// left here.
func deadPeer(t *testing.T, addr string, streams, seed int) (end func()) {
	t.Helper()
	var dead atomic.Bool
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			var dialer net.Dialer
			c, err := dialer.DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			if err := c.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
				return nil, err
			}
			return &deadConn{Conn: c, dead: &dead, closed: make(chan struct{})}, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var begun errgroup.Group
	for i := range streams {
		r := seeded(prompts[seed%len(prompts)], 200, uint64(streams*seed+i))
		r.TopLogprobs = 20 // much text for each token, so that the buffers on the way do not hold an answer
		begun.Go(func() error {
			stream, err := routerv1.NewRouterServiceClient(conn).Generate(ctx, r)
			for n := 0; err == nil && n < 3; n++ {
				_, err = stream.Recv()
			}
			return err
		})
	}
	if err := begun.Wait(); err != nil {
		t.Errorf("a client that is to vanish: %v", err)
	}
	dead.Store(true)
	return func() {
		cancel()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// stalledReader sends a request for a long answer to the HTTP API and reads nothing of it.
func stalledReader(addr string, choices, seed int) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	body := fmt.Sprintf(`{"prompt":"The prince","max_tokens":200,"stream":true,"n":%d,"logprobs":20,"seed":%d,`+
		`"ignore_end":true}`, choices, seed)
	if err = c.(*net.TCPConn).SetReadBuffer(4 << 10); err == nil {
		_, err = fmt.Fprintf(c, "POST /v1/completions HTTP/1.1\r\nHost: lamina\r\nContent-Type: application/json\r\n"+
			"Content-Length: %d\r\n\r\n%s", len(body), body)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// S6: peers that vanish without closing their connections. Nobody can know that they are gone, so their streams
// are cut when nothing was read of them for the read limit, or when a gRPC keepalive ping is not answered.
func TestPromise_S6_DeadPeersAreFreed(t *testing.T) {
	limit := time.Duration(pickInt(2, 30)) * time.Second
	l := startLocal(t, app.MeshConfig{Stages: 2, GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", KVPositions: 65536,
		Scheduling: app.Scheduling{CacheIdle: 200 * time.Millisecond, ReadLimit: limit}})
	requests := mixed(12, 32)
	want := undisturbed(t, l.router, requests)
	before := settled(t)
	flow := startFlow(t, []routerv1.RouterServiceClient{l.router}, requests, want, 4, false)
	t.Logf("%.0f tokens/s before", flow.prove())
	const choices = 4 // so that an answer is larger than the buffers on its way
	n := pickInt(8, 50)
	var mu sync.Mutex
	var ends []func()
	var peers sync.WaitGroup
	for i := range n {
		peers.Go(func() {
			c, err := stalledReader(l.mesh.HTTPAddr(), choices, i)
			if err != nil {
				t.Error(err)
				return
			}
			end := deadPeer(t, l.mesh.GRPCAddr(), choices, i)
			mu.Lock()
			defer mu.Unlock()
			ends = append(ends, func() { _ = c.Close() }, end)
		})
	}
	peers.Wait()
	begin := time.Now()
	pause(t, limit/2) // their buffers are full, and the others go on
	// New streams of the same tenant wait for their first token behind all that the peers have asked for.
	flow.hold(within(time.Duration(pickInt(5, 15)) * time.Second))
	l.idle(2*limit + 5*time.Minute) // a busy machine needs long to fill their buffers
	freed := time.Since(begin)
	// An answer over HTTP may fit into the buffers of the kernel, one over gRPC does not fit into the window.
	cut := 0.0
	if !poll(50*time.Millisecond, time.Minute, func() bool {
		cut = l.metric(`lamina_router_requests_total{end="canceled"}`)
		return cut >= float64(choices*n)
	}) {
		t.Errorf("%v of %d gRPC requests of dead peers were cut: the test proves little", cut, choices*n)
	}
	t.Logf("%d peers have vanished, %v of their %d gRPC requests were cut, nothing is left after %v", 2*n, cut, choices*n,
		freed.Round(time.Millisecond))
	if slow() { // the router closes their connections itself
		awaitBaseline(t, l, before+n*8) // what is left here of n gRPC connections
	}
	for _, end := range ends {
		end()
	}
	awaitBaseline(t, l, before)
}

// awaitBaseline waits until no page is held and no more goroutines run than before.
func awaitBaseline(t *testing.T, l *local, before int) {
	t.Helper()
	var pages uint32
	now := 0
	if !poll(50*time.Millisecond, 2*time.Minute, func() bool {
		_, pages = l.held()
		now = runtime.NumGoroutine()
		return pages == 0 && now <= before
	}) {
		t.Fatalf("%d KV pages are held, and %d goroutines run where %d did", pages, now, before)
	}
}

// S10: many readers stall at once. Each is cut when the read limit is over, and leaves nothing. A client that
// reads again later finds that its answer is cut off, and not that it is complete.
func TestPromise_S10_BurstOfStalledReadersIsCut(t *testing.T) {
	limit := time.Duration(pickInt(3, 30)) * time.Second
	l := startLocal(t, app.MeshConfig{Stages: 2, HTTP: "127.0.0.1:0", KVPositions: 65536,
		Scheduling: app.Scheduling{CacheIdle: 200 * time.Millisecond, ReadLimit: limit, Queue: 512}})
	requests := mixed(12, 32)
	want := undisturbed(t, l.router, requests)
	before := settled(t)
	flow := startFlow(t, []routerv1.RouterServiceClient{l.router}, requests, want, 4, false)
	t.Logf("%.0f tokens/s before", flow.prove())
	const choices = 4 // so that an answer is larger than the buffers of the kernel
	conns := make([]net.Conn, pickInt(16, 64))
	begin := time.Now()
	var readers sync.WaitGroup
	for i := range conns {
		readers.Go(func() {
			var err error
			if conns[i], err = stalledReader(l.mesh.HTTPAddr(), choices, i); err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	if t.Failed() {
		t.FailNow()
	}
	most := uint32(0)
	var freed time.Duration
	if !poll(50*time.Millisecond, 4*limit+2*time.Minute, func() bool {
		sessions, _ := l.held()
		most, freed = max(most, sessions), time.Since(begin)
		return int(most) >= len(conns)*choices && freed > limit && sessions <= 2*4 // the other streams
	}) {
		t.Fatalf("stalled readers still hold sessions after %v; %d were held at most, want %d", freed, most,
			len(conns)*choices)
	}
	// New streams of the same tenant wait for their first token behind all that the readers have asked for.
	flow.hold(within(time.Duration(pickInt(5, 15)) * time.Second))
	t.Logf("%d readers held up to %d sessions on two stages, and none after %v", len(conns), most,
		freed.Round(time.Millisecond))
	var whole atomic.Int64
	for _, c := range conns {
		readers.Go(func() {
			text, err := drain(c, time.Minute+2*limit)
			var timeout net.Error
			switch {
			case strings.Contains(text, "data: [DONE]"):
				whole.Add(1) // and the connection may stay open for another request
			case errors.As(err, &timeout) && timeout.Timeout():
				t.Error("a reader was not cut: its connection is open and nothing comes")
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	if n := int(whole.Load()); n > len(conns)/4 { // an answer may fit into the buffers of the kernel
		t.Errorf("%d of %d answers are complete: the readers hardly stalled", n, len(conns))
	}
	awaitBaseline(t, l, before)
}

// drain reads what is left of an answer, until its end or until nothing has come for a limit. The limit must be longer
// than the stall was: TCP probes a receiver that had no room at intervals that double.
func drain(c net.Conn, limit time.Duration) (string, error) {
	if err := c.(*net.TCPConn).SetReadBuffer(1 << 20); err != nil { // a stalled reader has a small one
		return "", err
	}
	var text strings.Builder
	part := make([]byte, 64<<10)
	for {
		if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
			return text.String(), err
		}
		n, err := c.Read(part)
		text.Write(part[:n])
		if err != nil {
			return text.String(), err
		}
	}
}

// S10: what the router holds for 256 sessions whose readers have stalled, in a process of its own.
func TestPromise_S10_MemoryOfStalledReaders(t *testing.T) {
	if !slow() {
		t.Skip("takes a minute and a half; LAMINA_SLOW=1 runs it")
	}
	path := filepath.Join(t.TempDir(), "manifest.json")
	write(t, path, []byte(`{"name": "64 clients with 4 choices each that do not read", "fleet": {"kv_positions": 65536},
		"calm": "10s", "duration": "80s",
		"faults": [{"kind": "slow_readers", "count": 64, "at": "2s", "for": "50s"}]}`))
	chaosRun(t, path)
}
