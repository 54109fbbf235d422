package integration_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// offered is what became of requests to the HTTP API.
type offered struct {
	mu       sync.Mutex
	ok       int
	refused  []time.Duration
	problems []string
}

// send sends one completion of n tokens.
func (o *offered) send(ctx context.Context, url string, i, n int) {
	begin := time.Now()
	body := fmt.Sprintf(`{"prompt":"%s %d","max_tokens":%d,"seed":%d,"ignore_end":true}`, "The prince", i, n, i)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", strings.NewReader(body))
	var resp *http.Response
	if err == nil {
		req.Header.Set("Content-Type", "application/json")
		resp, err = http.DefaultClient.Do(req)
	}
	if err != nil {
		o.add(func() { o.problems = append(o.problems, err.Error()) })
		return
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	took := time.Since(begin)
	o.add(func() {
		switch {
		case err != nil:
			o.problems = append(o.problems, err.Error())
		case resp.StatusCode == http.StatusOK:
			o.ok++
		case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
			o.refused = append(o.refused, took)
		default:
			o.problems = append(
				o.problems,
				fmt.Sprintf("%s, Retry-After %q: %s", resp.Status, resp.Header.Get("Retry-After"),
					text),
			)
		}
	})
}

func (o *offered) add(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

// S8: overload is refused at once and honestly, and what is admitted goes on at full speed.
func TestPromise_S8_OverloadIsRefusedHonestly(t *testing.T) {
	const tokens = 16
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	l := startLocal(t, app.MeshConfig{
		Stages: 2, HTTP: "127.0.0.1:0", KVPositions: 768, Scheduling: app.Scheduling{Queue: 24},
	})
	url := "http://" + l.mesh.HTTPAddr()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	duration := time.Duration(pickInt(2, 10)) * time.Second
	measure := func() float64 {
		var peak offered
		var clients sync.WaitGroup
		begin := time.Now()
		for c := range 24 {
			clients.Go(func() {
				for i := c; time.Since(begin) < duration; i += 24 {
					peak.send(ctx, url, i, tokens)
				}
			})
		}
		clients.Wait()
		capacity := float64(peak.ok) / time.Since(begin).Seconds()
		if len(peak.problems) > 0 || capacity*tokens < leastFlow() {
			t.Fatalf("the run is invalid: %.0f requests/s without overload, %v", capacity, peak.problems)
		}
		return capacity
	}
	capacity := measure()
	var over offered
	var requests sync.WaitGroup
	begin := time.Now()
	tick := time.NewTicker(time.Duration(float64(time.Second) / (4 * capacity)))
	defer tick.Stop()
	sent := 0
	send := func() {
		n := sent
		sent++
		requests.Go(func() { over.send(ctx, url, n, tokens) })
	}
	for time.Since(begin) < duration {
		send()
		<-tick.C
	}
	requests.Wait()
	goodput := float64(over.ok) / time.Since(begin).Seconds()
	// If the machine has become faster than it was measured to be, as many as are needed come at once.
	for burst := 64; burst <= 1024 && len(over.refused) == 0; burst *= 2 {
		for range burst {
			send()
		}
		requests.Wait()
	}
	capacity = min(capacity, measure()) // other work may have begun on this machine
	slices.Sort(over.refused)
	p99 := quantile(over.refused, 0.99)
	t.Logf(
		"capacity %.0f requests/s; of %d requests at 4 times that, %d were answered (%.0f/s) and %d refused within %v "+
			"at p99",
		capacity,
		sent,
		over.ok,
		goodput,
		len(over.refused),
		p99,
	)
	if len(over.problems) > 0 {
		t.Errorf("%d requests had no answer and no honest refusal: %s", len(over.problems), over.problems[0])
	}
	if len(over.refused) == 0 {
		t.Error("nothing was refused: this was no overload")
	}
	least := 0.9 * capacity
	if !slow() {
		least = 0 // the clients and other tests run on the same processors
	}
	if over.ok == 0 || goodput < least {
		t.Errorf("goodput is %.0f requests/s, want %.0f", goodput, least)
	}
	if p99 > within(50*time.Millisecond) {
		t.Errorf("refusals take %v at p99", p99)
	}
}

// S10: clients that do not read their streams change nothing for the others, and are cut after 30 s.
func TestPromise_S10_StalledReadersHarmOnlyThemselves(t *testing.T) {
	limit := 30 * time.Second // for a reader, as routers have it
	if !slow() {
		limit = time.Hour // the end of this test may come later
	}
	l := startLocal(t, app.MeshConfig{Stages: 2, HTTP: "127.0.0.1:0", KVPositions: 65536,
		Scheduling: app.Scheduling{ReadLimit: limit}})
	requests := mixed(12, 64)
	want := undisturbed(t, l.router, requests)
	routers := []routerv1.RouterServiceClient{l.router}
	calm := startFlow(t, routers, requests, want, 8, false)
	rate := calm.prove()
	calm.hold(within(time.Second))
	// Much text for each token, so that the buffers of the kernel do not hold an answer.
	const body = `{"prompt":"The prince","max_tokens":200,"stream":true,"n":4,"logprobs":20,"seed":1,"ignore_end":true}`
	for range pickInt(16, 64) {
		c, err := net.Dial("tcp", l.mesh.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(
			c,
			"POST /v1/completions HTTP/1.1\r\nHost: lamina\r\nContent-Type: application/json\r\n"+
				"Content-Length: %d\r\n\r\n%s",
			len(body),
			body,
		); err != nil {
			t.Fatal(err)
		}
	}
	pause(t, time.Duration(pickInt(3, 10))*time.Second) // until their buffers are full
	flow := startFlow(t, routers, requests, want, 8, false)
	t.Logf("%.0f tokens/s before the readers came, %.0f beside them", rate, flow.prove())
	pause(t, time.Duration(pickInt(1, 10))*time.Second)
	flow.hold(within(time.Second))
	sessions, _ := l.held()
	t.Logf("%d sessions of stalled readers are left", sessions)
	if sessions == 0 {
		t.Error("no reader was stalled: the test proves nothing")
	}
	if slow() {
		l.idle(40 * time.Second)
	}
}

// S9: a tenant with many long prompts does not starve tenants with few short ones.
func TestPromise_S9_LightTenantsAreNotStarved(t *testing.T) {
	l := startLocal(t, app.MeshConfig{Stages: 2, KVPositions: 4096})
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	long := strings.Repeat("the old prince and the young countess ", 12)
	first := func(tenant string, r *routerv1.GenerateRequest) (time.Duration, error) {
		begin := time.Now()
		var at time.Duration
		c := client{token: func() {
			if at == 0 {
				at = time.Since(begin)
			}
		}}
		named := metadata.AppendToOutgoingContext(ctx, "lamina-tenant", tenant)
		err := c.run(named, []routerv1.RouterServiceClient{l.router}, r)
		return at, err
	}
	light := func() []time.Duration {
		var mu sync.Mutex
		var out []time.Duration
		var wg sync.WaitGroup
		for c := range 6 {
			wg.Go(func() {
				for i := range pickInt(5, 40) {
					d, err := first(
						fmt.Sprintf("light-%d", c%3),
						seeded(fmt.Sprintf("%s %d", prompts[c%4], i), 24, uint64(i)),
					)
					if err != nil {
						t.Errorf("a light tenant: %v", err)
					}
					mu.Lock()
					out = append(out, d)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		slices.Sort(out)
		return out
	}
	alone := light()
	loaded, stop := context.WithCancel(ctx)
	var heavy sync.WaitGroup
	served := make([]int, 32)
	for c := range served {
		heavy.Go(func() {
			for loaded.Err() == nil {
				if _, err := first(
					"heavy",
					seeded(fmt.Sprintf("%d %s", c*1000+served[c], long), 64, uint64(c)),
				); err != nil {
					t.Errorf("the heavy tenant: %v", err)
					return
				}
				served[c]++
			}
		})
	}
	pause(t, time.Second)
	beside := light()
	stop()
	heavy.Wait()
	total := 0
	for _, n := range served {
		total += n
	}
	t.Logf("first tokens of light tenants: alone p50 %v, p99 %v; beside %d long requests p50 %v, p99 %v",
		quantile(alone, 0.5), quantile(alone, 0.99), total, quantile(beside, 0.5), quantile(beside, 0.99))
	if total < 32 {
		t.Errorf("the heavy tenant had only %d answers", total)
	}
	if got, limit := quantile(beside, 0.99), 2*quantile(alone, 0.99)+50*time.Millisecond; got > within(limit) {
		t.Errorf("light tenants wait %v for their first token at p99, want at most %v", got, within(limit))
	}
}
