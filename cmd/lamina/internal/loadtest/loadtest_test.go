package loadtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
	"github.com/lamina-mesh/lamina/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// inProcess serves requests by a handler without a network, so that tests can use the clock of
// testing/synctest and know every latency.
type inProcess struct{ handler http.HandlerFunc }

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	in, out := io.Pipe()
	w := &pipeWriter{header: http.Header{}, pipe: out, begun: make(chan struct{})}
	stop := context.AfterFunc(r.Context(), func() { out.CloseWithError(r.Context().Err()) })
	go func() {
		defer stop()
		p.handler(w, r)
		w.WriteHeader(http.StatusOK)
		out.Close()
	}()
	select {
	case <-w.begun:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return &http.Response{StatusCode: w.status, Header: w.header, Body: in}, nil
}

type pipeWriter struct {
	header http.Header
	pipe   *io.PipeWriter
	once   sync.Once
	begun  chan struct{}
	status int
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status = status
		close(w.begun)
	})
}

func (w *pipeWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.pipe.Write(b)
}

// wait waits unless the request ends first.
func wait(r *http.Request, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
}

// begin starts a response with events.
func begin(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
}

// piece writes an event of a completion; the last one has a finish reason.
func piece(w io.Writer, text, finish string) {
	reason := "null"
	if finish != "" {
		reason = fmt.Sprintf("%q", finish)
	}
	fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"text\":%q,\"finish_reason\":%s}]}\n\n", text, reason)
}

// done ends a complete response.
func done(w io.Writer) { io.WriteString(w, "data: [DONE]\n\n") }

// prompts returns n different prompts.
func prompts(t testing.TB, n int) []loadtest.Prompt {
	t.Helper()
	var file strings.Builder
	for i := range n {
		fmt.Fprintf(&file, "prompt %d\n", i)
	}
	out, err := loadtest.ParsePrompts(strings.NewReader(file.String()))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func run(t *testing.T, c loadtest.Config) *loadtest.Report {
	t.Helper()
	if c.URLs == nil {
		c.URLs = []string{"http://server"}
	}
	if c.Model == "" {
		c.Model = "m"
	}
	r, err := loadtest.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// about fails unless got is within one per cent of want.
func about(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 0.01*math.Abs(want) {
		t.Errorf("%s is %v, want about %v", what, got, want)
	}
}

func TestRun_ClosedLoopFiguresAreThoseOfTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		requests, running, most := 0, 0, 0
		server := inProcess{func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			requests++
			running++
			most = max(most, running)
			stalls := requests%10 == 0
			mu.Unlock()
			begin(w)
			wait(r, 100*time.Millisecond)
			for i := range 10 {
				switch {
				case i == 5 && stalls:
					wait(r, 1500*time.Millisecond)
				case i > 0:
					wait(r, 20*time.Millisecond)
				}
				piece(w, "x", "")
			}
			mu.Lock()
			running--
			mu.Unlock()
			piece(w, "", "length")
			io.WriteString(w, `data: {"choices":[],"usage":{"completion_tokens":12}}`+"\n\n")
			done(w)
		}}
		r := run(t, loadtest.Config{Prompts: prompts(t, 4), Streams: 4, Requests: 40, Transport: server})
		g := r.All
		if g.Requests != 40 || g.OK != 40 || g.Failed != 0 || g.Tokens != 40*12 || most != 4 {
			t.Errorf("got %d requests, %d ok, %d failed, %d tokens, %d at once", g.Requests, g.OK, g.Failed, g.Tokens,
				most)
		}
		about(t, "first token p50", g.TTFT.P50, 100)
		about(t, "first token max", g.TTFT.Max, 100)
		about(t, "inter-token p90", g.InterToken.P90, 20)
		about(t, "inter-token max", g.InterToken.Max, 1500)
		about(t, "inter-token mean", g.InterToken.Mean, (4*1500+356*20)/360.)
		about(t, "whole stream p50", g.Latency.P50, 280)
		if g.InterToken.Count != 360 || g.TTFT.Count != 40 {
			t.Errorf("counted %d gaps and %d first tokens", g.InterToken.Count, g.TTFT.Count)
		}
		if g.Stalls.Count != 4 || g.Stalls.Streams != 4 || g.Stalls.LongestMS != 1500 {
			t.Errorf("stalls are %+v", g.Stalls)
		}
		// 40 streams of 280 ms and 4 stalls of 1480 ms more, over 4 streams at best.
		if least := (40*0.28 + 4*1.48) / 4; r.ElapsedS < least-1e-3 || r.ElapsedS > 2*least {
			t.Errorf("took %v s, want at least %v", r.ElapsedS, least)
		}
		about(t, "goodput", g.Goodput, 480/r.ElapsedS)
		if g.Identity.Compared != 36 || g.Identity.Identical != 36 || g.Identity.Share != 1 {
			t.Errorf("identity is %+v", g.Identity)
		}
	})
}

func TestRun_QuantilesOfKnownGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := inProcess{func(w http.ResponseWriter, r *http.Request) {
			begin(w)
			piece(w, "x", "")
			for i := range 1000 { // 1 to 1000 ms, in another order
				wait(r, time.Duration(1+i*7%1000)*time.Millisecond)
				piece(w, "x", "")
			}
			piece(w, "", "stop")
			done(w)
		}}
		c := loadtest.Config{Prompts: prompts(t, 1), Requests: 1, Transport: server, Timeout: time.Hour,
			Stall: 900 * time.Millisecond}
		g := run(t, c).All
		about(t, "p50", g.InterToken.P50, 500)
		about(t, "p90", g.InterToken.P90, 900)
		about(t, "p99", g.InterToken.P99, 990)
		about(t, "max", g.InterToken.Max, 1000)
		if g.Stalls.Count != 100 || g.Stalls.Streams != 1 {
			t.Errorf("stalls are %+v, want the 100 gaps above 900 ms", g.Stalls)
		}
	})
}

func TestRun_OpenLoopCountsFromThePlannedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := inProcess{func(w http.ResponseWriter, r *http.Request) {
			begin(w)
			wait(r, time.Second)
			piece(w, "x", "stop")
			done(w)
		}}
		c := loadtest.Config{Prompts: prompts(t, 2), Rate: 50, Duration: 20 * time.Second, Transport: server,
			Tenants: []loadtest.Tenant{{Name: "a", Weight: 4}, {Name: "b", Weight: 1}}, Seed: 3}
		wide := run(t, c)
		n := wide.All.Requests
		if n < 900 || n > 1100 {
			t.Errorf("%d requests in 20 s at 50 a second", n)
		}
		about(t, "first token p99 with free streams", wide.All.TTFT.P99, 1000)
		if a := float64(wide.Tenants["a"].Requests) / float64(n); a < 0.75 || a > 0.85 {
			t.Errorf("tenant a has a share of %v", a)
		}
		again := run(t, c)
		if again.All.Requests != n || again.Tenants["a"].Requests != wide.Tenants["a"].Requests {
			t.Error("the same seed gives other arrivals or tenants")
		}
		// 10 streams serve 10 requests a second: the client's queue must show up in the latency.
		c.Streams, c.Duration = 10, 5*time.Second
		narrow := run(t, c)
		if narrow.All.TTFT.Max < 3000 || narrow.Late.Max < 2000 {
			t.Errorf("with too few streams the first token took %v ms at most, and requests were late by %v ms",
				narrow.All.TTFT.Max, narrow.Late.Max)
		}
	})
}

func TestRun_TTFTLimitRulesGoodput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		server := inProcess{func(w http.ResponseWriter, r *http.Request) {
			begin(w)
			if n++; n%2 == 0 {
				wait(r, 300*time.Millisecond)
			}
			piece(w, "x", "stop")
			done(w)
		}}
		g := run(t, loadtest.Config{Prompts: prompts(t, 1), Streams: 1, Requests: 10, Transport: server,
			TTFTLimit: 200 * time.Millisecond}).All
		if g.OK != 10 || g.GoodRequests != 5 {
			t.Errorf("%d ok, %d good, want 10 and 5", g.OK, g.GoodRequests)
		}
	})
}

func TestRun_InterruptedReportsWhatItMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := inProcess{func(w http.ResponseWriter, r *http.Request) {
			begin(w)
			for r.Context().Err() == nil {
				wait(r, 10*time.Millisecond)
				piece(w, "x", "")
			}
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := loadtest.Run(ctx, loadtest.Config{URLs: []string{"http://server"}, Model: "m", Prompts: prompts(t, 1),
			Streams: 3, Requests: 100, Transport: server})
		if err != nil {
			t.Fatal(err)
		}
		if !r.Interrupted || r.All.Interrupted != 3 || r.All.Failed != 0 || r.All.InterToken.Count < 200 {
			t.Errorf("got %+v", r.All)
		}
	})
}

func TestRun_RefusedStreamsWaitAsLongAsTheyAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		server := inProcess{func(w http.ResponseWriter, r *http.Request) {
			if n++; n <= 3 {
				wait(r, 5*time.Millisecond)
				w.Header().Set("Retry-After", "2")
				w.WriteHeader(http.StatusTooManyRequests)
				io.WriteString(w, `{"error":{"message":"quota of tenant a"}}`)
				return
			}
			begin(w)
			piece(w, "x", "stop")
			done(w)
		}}
		r := run(t, loadtest.Config{Prompts: prompts(t, 1), Streams: 1, Requests: 4, Transport: server})
		g := r.All
		if g.Refused != 3 || g.OK != 1 || g.Refusals.Status["429"] != 3 || g.Refusals.WithRetryAfter != 3 ||
			g.Refusals.RetryAfterMax != 2 {
			t.Errorf("refusals are %+v of %+v", g.Refusals, g)
		}
		about(t, "answer of a refusal", g.Refusals.Answer.P99, 5)
		about(t, "elapsed", r.ElapsedS, 6.015)
	})
}

func TestReport_TextAndJSONHaveTheFigures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		server := inProcess{func(w http.ResponseWriter, r *http.Request) {
			begin(w)
			text := "same"
			if n++; n == 3 {
				text = "sane"
			}
			piece(w, text, "stop")
			if n != 4 {
				done(w)
				return
			}
			io.WriteString(w, `data: {"error":{"message":"pipeline lost","retry_after":1}}`+"\n\n")
		}}
		r := run(t, loadtest.Config{Prompts: prompts(t, 1), Streams: 1, Requests: 4, Transport: server,
			Tenants: []loadtest.Tenant{{Name: "only", Weight: 1}}})
		var text, encoded bytes.Buffer
		if err := r.Print(&text); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"4: 3 ok, 1 failed, 0 refused", "50.00 % (1 of 2 answers)", "1 x error event",
			"pipeline lost", "only", `byte 2: got "ne(stop)", want "me(stop)"`} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("the text lacks %q:\n%s", want, text.String())
			}
		}
		if err := json.NewEncoder(&encoded).Encode(r); err != nil {
			t.Fatal(err)
		}
		var back struct {
			All struct {
				Identity struct{ Share float64 }
				Errors   []struct{ Class string }
			}
		}
		if err := json.Unmarshal(encoded.Bytes(), &back); err != nil {
			t.Fatal(err)
		}
		if back.All.Identity.Share != 0.5 || len(back.All.Errors) != 1 || back.All.Errors[0].Class != "error event" {
			t.Errorf("JSON has %+v", back)
		}
	})
}
