package app_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/auth"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// headers returns the header block of a gRPC call.
func headers(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // a buffer takes everything
	}
	return b.Bytes()
}

// raw opens an HTTP/2 connection and passes it to attack, again and again until ctx ends. attack counts what it sends.
func raw(ctx context.Context, addr string, attack func(*http2.Framer, *atomic.Int64), count *atomic.Int64) {
	for ctx.Err() == nil {
		conn, err := net.DialTimeout("tcp", addr, time.Minute)
		if err != nil {
			continue
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		f := http2.NewFramer(conn, conn)
		if _, err := io.WriteString(conn, http2.ClientPreface); err == nil && f.WriteSettings() == nil {
			go io.Copy(io.Discard, conn) // ends with the connection
			attack(f, count)
		}
		stop()
		conn.Close()
	}
}

// rapidReset opens streams and resets each at once.
func rapidReset(f *http2.Framer, count *atomic.Int64) {
	block := headers(":method", "POST", ":scheme", "http", ":path", "/lamina.router.v1.RouterService/ListModels",
		":authority", "x", "content-type", "application/grpc", "te", "trailers")
	for n := range 20_000 {
		id := uint32(2*n + 1)
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true})
		if err == nil {
			err = f.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err != nil {
			return
		}
		count.Add(1)
	}
}

// endlessHeaders sends a header block that does not end.
func endlessHeaders(f *http2.Framer, count *atomic.Int64) {
	block := headers(":method", "POST", ":scheme", "http", ":path", "/x")
	if f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block}) != nil {
		return
	}
	more := headers("x-filler", string(bytes.Repeat([]byte("x"), 4000)))
	for range 10_000 {
		if f.WriteContinuation(1, false, more) != nil {
			return
		}
		count.Add(1)
	}
}

// pings sends settings and pings, each of which obliges the server to answer.
func pings(f *http2.Framer, count *atomic.Int64) {
	for range 20_000 {
		if f.WritePing(false, [8]byte{1}) != nil || f.WriteSettings() != nil {
			return
		}
		count.Add(1)
	}
}

// TestFloods_OthersAreServedMeanwhile is promise C10: hostile connections, of callers without credentials, to the gRPC
// and HTTP ports while others ask for the models.
func TestFloods_OthersAreServedMeanwhile(t *testing.T) {
	length, slow := time.Second, os.Getenv("LAMINA_SLOW") != ""
	if slow {
		length = 20 * time.Second
	}
	keys, secrets := keyFile(t, auth.Key{Name: "user", Roles: []auth.Role{auth.User}})
	m, _ := startMesh(t, t.Context(), app.MeshConfig{
		Kernels: app.Kernels{Set: ref.New[float32](), Threads: 1},
		Model:   shared(t, "models/stories260K/stories260K-f32.gguf"),
		GRPC:    "127.0.0.1:0", HTTP: "127.0.0.1:0", Access: app.AccessConfig{Keys: keys},
		Runs: app.TrainerConfig{Dir: filepath.Join(t.TempDir(), "runs")},
	})
	dialer := rpc.NewDialer(rpc.DialOptions{Secret: secrets["user"]})
	defer dialer.Close()
	conn, err := dialer.Dial(m.GRPCAddr())
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	// ask asks for the models over both ports until the time is over and enough holds, and returns how long each took.
	ask := func(length time.Duration, enough func() bool) (took []time.Duration) {
		t.Helper()
		start := time.Now()
		for time.Since(start) < length || !enough() && time.Since(start) < length+time.Minute {
			begun := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, err := routerv1.NewRouterServiceClient(conn).ListModels(ctx, &routerv1.ListModelsRequest{})
			cancel()
			if err != nil {
				t.Fatalf("a call of a user: %v", err)
			}
			q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+m.HTTPAddr()+"/v1/models", nil)
			if err != nil {
				t.Fatal(err)
			}
			q.Header.Set("X-Api-Key", secrets["user"])
			resp, err := client.Do(q)
			if err != nil {
				t.Fatalf("a request of a user: %v", err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("a request of a user: %d", resp.StatusCode)
			}
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		return took
	}
	p99 := func(took []time.Duration) time.Duration { return took[len(took)*99/100] }
	calm := ask(length/2, func() bool { return true })
	baseline := runtime.NumGoroutine()

	ctx, cancel := context.WithCancel(t.Context())
	var attackers sync.WaitGroup
	counts := map[string]*atomic.Int64{"resets": {}, "continuations": {}, "pings": {}, "slow headers": {}}
	for name, attack := range map[string]func(*http2.Framer, *atomic.Int64){"resets": rapidReset,
		"continuations": endlessHeaders, "pings": pings} {
		attackers.Go(func() { raw(ctx, m.GRPCAddr(), attack, counts[name]) })
	}
	for _, addr := range []string{m.HTTPAddr(), m.GRPCAddr()} {
		for range 100 { // clients that never finish their headers
			attackers.Go(func() {
				conn, err := net.DialTimeout("tcp", addr, time.Minute)
				if err != nil {
					return
				}
				defer conn.Close()
				counts["slow headers"].Add(1)
				fmt.Fprintf(conn, "GET /v1/models HTTP/1.1\r\nHost: x\r\nX: ")
				for ctx.Err() == nil {
					if _, err := conn.Write([]byte("x")); err != nil {
						return
					}
					select {
					case <-ctx.Done():
					case <-time.After(100 * time.Millisecond):
					}
				}
			})
		}
	}
	attacked := ask(length, func() bool {
		for _, n := range counts {
			if n.Load() == 0 {
				return false
			}
		}
		return true
	})
	cancel()
	attackers.Wait()
	over := time.Now()
	for runtime.NumGoroutine() > baseline+10 { // an attack has hundreds
		if time.Since(over) > time.Minute {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), baseline, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
	back := time.Since(over)
	for name, n := range counts {
		if n.Load() == 0 {
			t.Errorf("no %s were sent, so the test shows nothing", name)
		}
		t.Logf("%d %s", n.Load(), name)
	}
	t.Logf("p99 %v calm (%d), %v attacked (%d); goroutines as before after %v", p99(calm), len(calm), p99(attacked),
		len(attacked), back)
}
