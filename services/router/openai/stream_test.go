package openai_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

// generator is a backend whose Generate is a function.
type generator struct {
	*backend
	generate func(ctx context.Context, r *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error) error
}

func (g generator) Generate(ctx context.Context, r *routerv1.GenerateRequest,
	send func(*routerv1.GenerateResponse) error) error {
	return g.generate(ctx, r, send)
}

func TestStream_StalledReaderIsDisconnected(t *testing.T) {
	cut := make(chan error, 1)
	endless := &routerv1.GenerateResponse{
		Event: &routerv1.GenerateResponse_Token{Token: &routerv1.TokenEvent{Text: strings.Repeat("x", 64<<10)}},
	}
	h := openai.New(generator{generate: func(ctx context.Context, _ *routerv1.GenerateRequest,
		send func(*routerv1.GenerateResponse) error) error {
		for {
			if err := send(endless); err != nil {
				cut <- err
				return err
			}
		}
	}}, openai.Options{WriteTimeout: 50 * time.Millisecond})
	s := httptest.NewServer(h)
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // without reading a byte
	body := `{"prompt":"x","stream":true}`
	if _, err := io.WriteString(conn,
		"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 28\r\n\r\n"+body); err != nil || len(body) != 28 {
		t.Fatal(err)
	}
	select {
	case err := <-cut:
		if fault.CodeOf(err) != fault.Canceled {
			t.Errorf("the backend gets %v with code %v", err, fault.CodeOf(err))
		}
	case <-time.After(time.Minute):
		t.Error("a reader that reads nothing keeps its request")
	}
}

func TestChoices_RunConcurrentlyAndOneFailureEndsAll(t *testing.T) {
	const n = 4
	var running atomic.Int32
	all := make(chan struct{})
	ended := make(chan error, n)
	s := httptest.NewServer(
		openai.New(generator{generate: func(ctx context.Context, r *routerv1.GenerateRequest,
			_ func(*routerv1.GenerateResponse) error) error {
			if running.Add(1) == n {
				close(all)
			}
			select {
			case <-all:
			case <-time.After(time.Minute):
				return fault.New(fault.Internal, "run alone: %d of %d choices run", running.Load(), n)
			}
			if r.GetSampling().GetChoice() == 2 {
				return fault.New(fault.DataLoss, "lose choice 2")
			}
			select {
			case <-ctx.Done():
				ended <- ctx.Err()
			case <-time.After(time.Minute):
				ended <- nil
			}
			return ctx.Err()
		}}, openai.Options{}))
	defer s.Close()
	_, text := post(t, s.URL+"/v1/completions", `{"prompt":"x","n":4,"seed":0}`)
	if !strings.Contains(text, "lose choice 2") {
		t.Errorf("the answer is %s, want the error that came first", text)
	}
	close(ended)
	for err := range ended {
		if err == nil {
			t.Error("a choice goes on after another has failed")
		}
	}
}

func TestChat_DisconnectedClientCancelsTheRequest(t *testing.T) {
	asked, ended := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(
		openai.New(generator{generate: func(ctx context.Context, _ *routerv1.GenerateRequest,
			_ func(*routerv1.GenerateResponse) error) error {
			close(asked)
			<-ctx.Done()
			close(ended)
			return ctx.Err()
		}}, openai.Options{}))
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn,
		"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n"+`{"prompt":"x"}`); err != nil {
		t.Fatal(err)
	}
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Error("the backend is not asked")
	}
	conn.Close()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the backend goes on after its client has gone")
	}
}

func TestTenants_HeaderNamesTheTenantOfARequest(t *testing.T) {
	var got []string
	s := httptest.NewServer(
		openai.New(generator{generate: func(ctx context.Context, _ *routerv1.GenerateRequest,
			_ func(*routerv1.GenerateResponse) error) error {
			got = append(got, auth.Tenant(ctx))
			return fault.New(fault.Unavailable, "stop here")
		}}, openai.Options{}))
	defer s.Close()
	for _, tenant := range []string{"", "team-7", "t\u00e9am"} {
		r, err := http.NewRequest(http.MethodPost, s.URL+"/v1/completions", strings.NewReader(`{"prompt":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		if tenant != "" {
			r.Header.Set("Lamina-Tenant", tenant)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if bad := strings.Contains(tenant, "\u00e9"); err != nil || bad != (resp.StatusCode == http.StatusBadRequest) ||
			bad != strings.Contains(string(body), auth.TenantKey) {
			t.Errorf("tenant %q: %s %s %v", tenant, resp.Status, body, err)
		}
	}
	if want := []string{"", "team-7"}; !slices.Equal(got, want) {
		t.Errorf("the backend saw %q, want %q", got, want)
	}
}

// While a model is being loaded, clients of streams see comments, which parsers of server-sent events pass over.
func TestStream_LoadingIsTold(t *testing.T) {
	loading := &routerv1.ModelLoading{Model: "chat", DoneBytes: 10, TotalBytes: 40, State: "no shard holds\nlayers 2-4"}
	s := httptest.NewServer(openai.New(generator{generate: func(_ context.Context, _ *routerv1.GenerateRequest,
		send func(*routerv1.GenerateResponse) error) error {
		for _, e := range []*routerv1.GenerateResponse{
			{Event: &routerv1.GenerateResponse_Loading{Loading: loading}},
			{Event: &routerv1.GenerateResponse_Started{Started: &routerv1.Started{Model: "chat"}}},
			{Event: &routerv1.GenerateResponse_Token{Token: &routerv1.TokenEvent{Text: "hi"}}},
			{Event: &routerv1.GenerateResponse_Finished{Finished: &routerv1.Finished{}}},
		} {
			if err := send(e); err != nil {
				return err
			}
		}
		return nil
	}}, openai.Options{WriteTimeout: time.Minute}))
	defer s.Close()
	const comment = ": loading chat: 10 of 40 bytes; no shard holds layers 2-4\n\ndata: "
	resp, text := post(t, s.URL+"/v1/completions", `{"prompt":"x","stream":true}`)
	if !strings.HasPrefix(text, comment) || !strings.HasSuffix(text, "data: [DONE]\n\n") {
		t.Errorf("the stream is %q (%v)", text, resp)
	}
	if _, text := post(t, s.URL+"/v1/completions", `{"prompt":"x"}`); !strings.Contains(text, `"hi"`) {
		t.Errorf("the answer is %s", text)
	}
}
