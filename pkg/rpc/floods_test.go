package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/net/netutil"

	"github.com/lamina-mesh/lamina/pkg/auth"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// work is how long a call takes, in virtual time.
const work = 10 * time.Millisecond

// models is a router that takes its time for a list.
type models struct {
	routerv1.UnimplementedRouterServiceServer
}

func (models) ListModels(context.Context, *routerv1.ListModelsRequest) (*routerv1.ListModelsResponse, error) {
	time.Sleep(work)
	return &routerv1.ListModelsResponse{}, nil
}

// target is a gRPC and an HTTP server on a network in memory, as a router has them.
type target struct {
	t      *testing.T
	ctx    context.Context
	net    *memnet.Network
	secret string
	parts  sync.WaitGroup
}

// newTarget starts the servers. limit bounds the connections that each accepts at once; 0 does not.
func newTarget(t *testing.T, ctx context.Context, secret string, guard *auth.Guard, limit int) *target {
	t.Helper()
	g := &target{t: t, ctx: ctx, net: memnet.New(), secret: secret}
	listen := func(name string) net.Listener {
		l, err := g.net.Listen(name)
		if err != nil {
			t.Fatal(err)
		}
		if limit > 0 {
			l = netutil.LimitListener(l, limit)
		}
		return l
	}
	server := rpc.NewServer(rpc.ServerOptions{Public: true, Guard: guard})
	routerv1.RegisterRouterServiceServer(server, models{})
	calls, pages := listen("grpc"), listen("http")
	g.parts.Go(func() { _ = server.Serve(calls) })
	g.parts.Go(func() {
		page := func(http.ResponseWriter, *http.Request) { time.Sleep(work) }
		_ = obs.ServeHTTP(ctx, pages, http.HandlerFunc(page), time.Second)
	})
	context.AfterFunc(ctx, server.Stop)
	return g
}

// dial opens a connection that ends with ctx.
func (g *target) dial(ctx context.Context, name string) (net.Conn, error) {
	conn, err := g.net.Dial(ctx, name)
	if err == nil {
		context.AfterFunc(ctx, func() { conn.Close() })
	}
	return conn, err
}

// ask makes calls over both ports, on new connections, and returns how long each pair took.
func (g *target) ask(n int) []time.Duration {
	g.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return g.net.Dial(ctx, "http") }}}
	var took []time.Duration
	for range n {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(g.ctx, time.Minute)
		dialer := rpc.NewDialer(rpc.DialOptions{Net: g.net, Secret: g.secret})
		conn, err := dialer.Dial("mem:grpc")
		if err == nil {
			_, err = routerv1.NewRouterServiceClient(conn).ListModels(ctx, &routerv1.ListModelsRequest{})
		}
		if err := errors.Join(err, dialer.Close()); err != nil {
			g.t.Fatalf("a call of a user: %v", err)
		}
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://router/", nil)
		if err != nil {
			g.t.Fatal(err)
		}
		resp, err := client.Do(q)
		if err != nil {
			g.t.Fatalf("a request of a user: %v", err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		cancel()
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	return took
}

// flood sends bursts on connections to a port, again and again until ctx ends, and returns how many. A burst gets a
// number that rises on its connection, and reports whether the connection is of further use.
func (g *target) flood(
	ctx context.Context, name string, pause time.Duration, burst func(*http2.Framer, net.Conn, int) bool,
) (bursts int) {
	for ctx.Err() == nil {
		once, cancel := context.WithCancel(ctx)
		conn, err := g.dial(once, name)
		if err != nil {
			cancel()
			time.Sleep(work)
			continue
		}
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(io.Discard, conn) })
		f := http2.NewFramer(conn, conn)
		for n := 0; once.Err() == nil && burst(f, conn, n); n++ {
			bursts++
			time.Sleep(pause)
		}
		cancel()
		reading.Wait()
	}
	return bursts
}

// hello opens an HTTP/2 connection before its first burst.
func hello(f *http2.Framer, conn net.Conn, n int) bool {
	if n > 0 {
		return true
	}
	_, err := io.WriteString(conn, http2.ClientPreface)
	return err == nil && f.WriteSettings() == nil
}

// fields returns a header block.
func fields(pairs ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}) // a buffer takes everything
	}
	return b.Bytes()
}

// attacks are what callers without credentials send. Each burst has 20 frames.
func attacks() map[string]func(*http2.Framer, net.Conn, int) bool {
	call := fields(":method", "POST", ":scheme", "http", ":path", "/lamina.router.v1.RouterService/ListModels",
		":authority", "x", "content-type", "application/grpc", "te", "trailers")
	more := fields("x-filler", string(bytes.Repeat([]byte("x"), 1000)))
	return map[string]func(*http2.Framer, net.Conn, int) bool{
		"rapid resets": func(f *http2.Framer, conn net.Conn, n int) bool {
			ok := hello(f, conn, n)
			for i := 0; ok && i < 10; i++ {
				id := uint32(2*(10*n+i) + 1)
				head := http2.HeadersFrameParam{StreamID: id, BlockFragment: call, EndHeaders: true}
				ok = f.WriteHeaders(head) == nil && f.WriteRSTStream(id, http2.ErrCodeCancel) == nil
			}
			return ok
		},
		"calls without credentials": func(f *http2.Framer, conn net.Conn, n int) bool {
			ok := hello(f, conn, n)
			for i := 0; ok && i < 20; i++ {
				id := uint32(2*(20*n+i) + 1)
				head := http2.HeadersFrameParam{StreamID: id, BlockFragment: call, EndHeaders: true}
				ok = f.WriteHeaders(head) == nil
			}
			return ok
		},
		"headers without end": func(f *http2.Framer, conn net.Conn, n int) bool {
			ok := hello(f, conn, n)
			if n == 0 && ok {
				ok = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: call}) == nil
			}
			for i := 0; ok && i < 20; i++ {
				ok = f.WriteContinuation(1, false, more) == nil
			}
			return ok
		},
		"pings": func(f *http2.Framer, conn net.Conn, n int) bool {
			ok := hello(f, conn, n)
			for i := 0; ok && i < 10; i++ {
				ok = f.WritePing(false, [8]byte{1}) == nil && f.WriteSettings() == nil
			}
			return ok
		},
	}
}

// slow is a client that sends a byte of its headers at a time and never finishes them.
func slow(_ *http2.Framer, conn net.Conn, n int) bool {
	text := "x"
	if n == 0 {
		text = "GET / HTTP/1.1\r\nHost: x\r\nX: "
	}
	_, err := io.WriteString(conn, text)
	return err == nil
}

// TestServer_FloodsKeepNobodyWaiting is promise C10 in virtual time, where processors cost nothing: hostile connections
// take no lock, queue, timer or place for which others would wait. The second half shows that the test would notice:
// with a bound on all connections, slow clients take every place.
func TestServer_FloodsKeepNobodyWaiting(t *testing.T) {
	key, secret, err := auth.NewKey(auth.Key{Name: "user", Roles: []auth.Role{auth.User}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keys := []auth.Key{key}
	p99 := func(took []time.Duration) time.Duration { return took[len(took)*99/100] }
	for _, limit := range []int{0, 32} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			g := newTarget(t, ctx, secret, auth.NewGuard(auth.NewKeyring(keys, auth.KeyringOptions{}), ""), limit)
			calm := g.ask(100)
			attacked, end := context.WithCancel(ctx)
			var attackers sync.WaitGroup
			var mu sync.Mutex
			bursts := map[string]int{}
			attack := func(what, name string, pause time.Duration, burst func(*http2.Framer, net.Conn, int) bool) {
				attackers.Go(func() {
					n := g.flood(attacked, name, pause, burst)
					mu.Lock()
					bursts[what] += n
					mu.Unlock()
				})
			}
			n := 1 // with a bound it waits until slow clients are disconnected
			if limit == 0 {
				n = 100
				for what, burst := range attacks() {
					attack(what, "grpc", work/2, burst)
				}
			}
			for range 50 {
				attack("slow headers", "http", 50*work, slow)
				attack("slow headers", "grpc", 50*work, slow)
			}
			synctest.Wait()
			flooded := g.ask(n)
			end()
			attackers.Wait()
			stop()
			g.parts.Wait()
			for _, what := range []string{
				"rapid resets", "calls without credentials", "headers without end", "pings", "slow headers",
			} {
				if limit == 0 && bursts[what] < 100 {
					t.Errorf("%d bursts of %s: too few to show anything", bursts[what], what)
				}
			}
			t.Logf("bound %d: p99 %v calm, %v beside %v", limit, p99(calm), p99(flooded), bursts)
			switch twice := p99(flooded) > 2*p99(calm); {
			case limit == 0 && twice:
				t.Errorf("users wait %v beside floods, and %v without", p99(flooded), p99(calm))
			case limit > 0 && !twice:
				t.Errorf("users wait %v although slow clients take all connections: the test shows nothing",
					p99(flooded))
			}
		})
	}
}
