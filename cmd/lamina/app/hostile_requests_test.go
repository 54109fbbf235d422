package app_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// sharedMesh is one mesh that serves ordinary and hostile requests.
type sharedMesh struct {
	t        *testing.T
	router   routerv1.RouterServiceClient
	base     string
	client   *http.Client
	patience time.Duration // for one answer

	mu       sync.Mutex
	answered map[string]map[string]int // by family and answer
}

// TestServices_HostileRequestsTouchNobody sends hostile requests through the HTTP API and the gRPC API
// of a router, while eight ordinary streams run. No pipeline may be lost, no stream may move or change,
// and every hostile request must be served or refused with an error that names its field.
func TestServices_HostileRequestsTouchNobody(t *testing.T) {
	total, limit := 330, 15*time.Minute
	switch {
	case os.Getenv("LAMINA_SLOW") != "":
		total, limit = 10_000, 2*time.Hour
	case testing.Short():
		total = 150
	}
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	m, router := startMesh(t, ctx, app.MeshConfig{
		Model: randomCaller(t), Stages: 2, Replicas: 2, Kernels: app.Kernels{Set: set, Threads: 2}, HTTP: "127.0.0.1:0",
		Scheduling: app.Scheduling{StepFloor: 2 * time.Minute}, // a busy machine moves no stream
	})
	b := &sharedMesh{
		t: t, router: router, base: "http://" + m.HTTPAddr(), client: &http.Client{},
		patience: limit / 4, answered: map[string]map[string]int{},
	}
	t.Cleanup(b.client.CloseIdleConnections)
	var calm []string
	for i := range 8 {
		text, err := b.ordinary(ctx, i)
		if err != nil {
			t.Fatal(err)
		}
		calm = append(calm, text)
	}
	pipelines := b.pipelines(ctx)
	if len(pipelines) != 2 {
		t.Fatalf("%d pipelines", len(pipelines))
	}

	// The streams run until the last hostile request is answered.
	streaming, stop := context.WithCancel(ctx)
	defer stop()
	var streams sync.WaitGroup
	var same atomic.Int64
	for i := range 8 {
		streams.Go(func() {
			for streaming.Err() == nil {
				switch text, err := b.ordinary(ctx, i); {
				case err != nil:
					t.Errorf("stream %d: %v", i, err)
					return
				case text != calm[i]:
					t.Errorf("stream %d: %q, undisturbed %q", i, text, calm[i])
					return
				}
				same.Add(1)
			}
		})
	}
	start := time.Now()
	var workers sync.WaitGroup
	var next atomic.Int64
	all := families()
	for range 4 {
		workers.Go(func() {
			for n := next.Add(1) - 1; n < int64(total) && ctx.Err() == nil; n = next.Add(1) - 1 {
				f := all[n%int64(len(all))]
				q := f.write(rand.New(rand.NewPCG(20261129, uint64(n))))
				q.family = f.name
				b.send(ctx, int(n), q)
			}
		})
	}
	workers.Wait()
	took := time.Since(start)
	stop()
	streams.Wait()
	if got := b.pipelines(ctx); !slices.Equal(got, pipelines) {
		t.Errorf("pipelines %v, before %v", got, pipelines)
	}
	if moves := metric(t, m.HTTPAddr(), "lamina_router_moves_total"); moves != "0" {
		t.Errorf("%s sessions moved", moves)
	}
	if same.Load() < 16 {
		t.Errorf("only %d ordinary streams ran meanwhile", same.Load())
	}
	t.Logf("%d hostile requests in %v beside %d ordinary streams", total, took.Round(time.Second), same.Load())
	for _, f := range all {
		t.Logf("%-14s %v", f.name, b.answered[f.name])
	}
}

// ordinary runs ordinary stream i and returns its text.
func (b *sharedMesh) ordinary(ctx context.Context, i int) (string, error) {
	temperature, seed := float32(i%3)*0.4, uint64(i)
	stream, err := b.router.Generate(ctx, &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_Text{Text: fmt.Sprintf("stream %d says", i)}, MaxTokens: 64, IgnoreEnd: true,
		Sampling: &routerv1.Sampling{Temperature: &temperature, Seed: &seed},
	})
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return text.String(), nil
		}
		if err != nil {
			return "", err
		}
		text.WriteString(r.GetToken().GetText() + r.GetFinished().GetText())
	}
}

func (b *sharedMesh) pipelines(ctx context.Context) []string {
	b.t.Helper()
	resp, err := b.router.Topology(ctx, &routerv1.TopologyRequest{})
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for _, p := range resp.GetMesh().GetPipelines() {
		out = append(out, p.GetId())
	}
	return out
}

// metric reads a metric without labels from a mesh's HTTP address.
func metric(t *testing.T, addr, name string) string {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no metric %s", name)
	}
	return string(found[1])
}

// send sends one request and checks its answer.
func (b *sharedMesh) send(ctx context.Context, n int, q hostileRequest) {
	ctx, cancel := context.WithTimeout(ctx, b.patience)
	defer cancel()
	var answer string
	var err error
	if q.path != "" {
		answer, err = b.sendHTTP(ctx, q)
	} else {
		answer, err = b.sendGRPC(ctx, q)
	}
	if err != nil {
		b.t.Errorf("request %d of %s, %s %.300s %.300v %.300v: %v", n, q.family, q.path, q.body, q.generate, q.chat,
			err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answered[q.family] == nil {
		b.answered[q.family] = map[string]int{}
	}
	b.answered[q.family][answer]++
}

// sendHTTP returns "served" or the status, and an error if the answer is wrong.
func (b *sharedMesh) sendHTTP(ctx context.Context, q hostileRequest) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.base+q.path, strings.NewReader(q.body))
	if err != nil {
		return "unsent", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := b.client.Do(req)
	if err != nil {
		return "cut", err
	}
	defer resp.Body.Close()
	var fail struct {
		Error *struct {
			Message string  `json:"message"`
			Param   *string `json:"param"`
			Code    *string `json:"code"`
		} `json:"error"`
	}
	body := bufio.NewReader(resp.Body)
	if resp.StatusCode == http.StatusOK && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		last := ""
		for err == nil {
			var line string
			line, err = body.ReadString('\n')
			data, isData := strings.CutPrefix(strings.TrimSpace(line), "data: ")
			if !isData {
				continue
			}
			last = data
			if strings.HasPrefix(data, `{"error"`) {
				if err := json.Unmarshal([]byte(data), &fail); err != nil {
					return "error event", err
				}
			}
		}
		switch {
		case !errors.Is(err, io.EOF):
			return "cut", err
		case fail.Error != nil && fail.Error.Param != nil:
			return "named in the stream", nil
		case fail.Error != nil:
			return "error event", fmt.Errorf("the stream ends with %q", fail.Error.Message)
		case last != "[DONE]":
			return "cut", fmt.Errorf("the stream ends with %q", last)
		}
		return "served", nil
	}
	text, err := io.ReadAll(body)
	switch code := resp.StatusCode; {
	case err != nil:
		return "cut", err
	case code == http.StatusOK:
		return "served", nil
	case code < 400 || code > 499 || code == http.StatusTooManyRequests:
		return resp.Status, fmt.Errorf("status %d: %.300s", code, text)
	default:
		if err := json.Unmarshal(text, &fail); err != nil || fail.Error == nil || fail.Error.Message == "" {
			return resp.Status, fmt.Errorf("status %d without an error object: %.300s", code, text)
		}
		if fail.Error.Param == nil {
			return resp.Status, fmt.Errorf("status %d names no field: %.300s", code, text)
		}
		// The name must be the client's own: a field of its request, or one that it left out.
		name, _, _ := strings.Cut(strings.NewReplacer("[", ".").Replace(*fail.Error.Param), ".")
		switch name {
		case "body", "prompt", "messages", "model", "tools":
		default:
			if !strings.Contains(q.body, `"`+name+`"`) {
				return resp.Status, fmt.Errorf("status %d names a field that was not sent: %.300s", code, text)
			}
		}
		return resp.Status, nil
	}
}

// sendGRPC returns "served" or the code, and an error if the answer is wrong.
func (b *sharedMesh) sendGRPC(ctx context.Context, q hostileRequest) (string, error) {
	var recv func() error
	if q.generate != nil {
		stream, err := b.router.Generate(ctx, q.generate)
		if err != nil {
			return judge(err)
		}
		recv = func() error { _, err := stream.Recv(); return err }
	} else {
		stream, err := b.router.Chat(ctx, q.chat)
		if err != nil {
			return judge(err)
		}
		recv = func() error { _, err := stream.Recv(); return err }
	}
	for {
		if err := recv(); err != nil {
			return judge(err)
		}
	}
}

func judge(err error) (string, error) {
	if errors.Is(err, io.EOF) {
		return "served", nil
	}
	code := status.Code(err)
	if code == codes.Internal && strings.Contains(err.Error(), "invalid UTF-8") {
		return "not sent", nil // protobuf's strings cannot hold it
	}
	var f *fault.Error
	switch {
	case code == codes.NotFound || code == codes.OutOfRange:
		return code.String(), nil
	case code != codes.InvalidArgument:
		return code.String(), err
	case !errors.As(rpc.FromStatus(err), &f) || f.Field == "":
		return code.String(), fmt.Errorf("names no field: %w", err)
	}
	return code.String(), nil
}
