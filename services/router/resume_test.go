package router_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/internal/natstest"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	journalv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/journal/v1"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/journal/nats"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
)

// peer is a further router of a mesh.
type peer struct {
	service *router.Service
	client  routerv1.RouterServiceClient
	cancel  context.CancelFunc // stops it at once, without a drain
	wait    func()
}

func (p *peer) kill() {
	p.cancel()
	p.wait()
}

// peer starts a further router and waits for its pipelines.
func (m *mesh) peer(name string, cfg router.Config) *peer {
	m.t.Helper()
	cfg.Dialer, cfg.Registry = m.dialer, m.registry
	p := &peer{service: router.New(cfg)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	p.cancel, p.wait = cancel, wg.Wait
	m.t.Cleanup(p.kill)
	wg.Go(func() {
		if err := p.service.Run(ctx); err != nil {
			m.t.Error(err)
		}
	})
	m.serve(ctx, &wg, "router", name, p.service.Register)
	conn, err := m.dialer.Dial("mem:" + name)
	if err != nil {
		m.t.Fatal(err)
	}
	p.client = routerv1.NewRouterServiceClient(conn)
	await, stop := context.WithTimeout(ctx, patience)
	defer stop()
	if err := p.service.AwaitPipelines(await, 1); err != nil {
		m.t.Fatalf("wait for the pipelines of %s: %v", name, err)
	}
	return p
}

// resumable returns a request whose log survives its router.
func resumable(prompt string, n int) *routerv1.GenerateRequest {
	r := greedy(prompt, n)
	r.Resumable, r.ClientState = true, []byte("state of "+prompt)
	return r
}

// part is what a client has read of a resumable request.
type part struct {
	id       string
	started  *routerv1.Started
	tokens   []*routerv1.TokenEvent
	prompt   string
	finished *routerv1.Finished
}

// text returns the text of the tokens, with the end.
func (p *part) text() string {
	var b strings.Builder
	for _, t := range p.tokens {
		b.WriteString(t.GetText())
	}
	return b.String() + p.finished.GetText()
}

// from returns the index of the next token.
func (p *part) from() uint32 { return uint32(len(p.tokens)) }

type eventStream interface {
	Recv() (*routerv1.ResumeResponse, error)
}

// generated makes the stream of Generate one of Resume; the two have the same fields.
type generated struct {
	routerv1.RouterService_GenerateClient
}

func (g generated) Recv() (*routerv1.ResumeResponse, error) {
	e, err := g.RouterService_GenerateClient.Recv()
	if err != nil {
		return nil, err
	}
	data, err := proto.Marshal(e)
	if err != nil {
		return nil, err
	}
	out := &routerv1.ResumeResponse{}
	return out, proto.Unmarshal(data, out)
}

// read reads a stream until it ends, or until each returns false after a token. Tokens must come in order,
// each once.
func (p *part) read(stream eventStream, each func(n int) bool) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		switch e := r.GetEvent().(type) {
		case *routerv1.ResumeResponse_Started:
			p.started, p.id = e.Started, e.Started.GetRequestId()
		case *routerv1.ResumeResponse_Prompt:
			for _, t := range e.Prompt.GetTokens() {
				p.prompt += t.GetText()
			}
		case *routerv1.ResumeResponse_Token:
			if e.Token.GetIndex() != p.from() {
				return fmt.Errorf("token %d comes where %d is due", e.Token.GetIndex(), p.from())
			}
			p.tokens = append(p.tokens, e.Token)
			if each != nil && !each(len(p.tokens)) {
				return nil
			}
		case *routerv1.ResumeResponse_Finished:
			p.finished = e.Finished
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				return fmt.Errorf("after the end: %w", err)
			}
			return nil
		}
	}
}

func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func as(ctx context.Context, tenant string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, auth.TenantKey, tenant)
}

func (p *part) generate(ctx context.Context, c routerv1.RouterServiceClient, r *routerv1.GenerateRequest,
	each func(int) bool) error {
	stream, err := c.Generate(ctx, r)
	if err != nil {
		return err
	}
	return p.read(generated{stream}, each)
}

// resume continues after the last token.
func (p *part) resume(ctx context.Context, c routerv1.RouterServiceClient, each func(int) bool) error {
	stream, err := c.Resume(ctx, &routerv1.ResumeRequest{RequestId: p.id, From: p.from()})
	if err != nil {
		return err
	}
	return p.read(stream, each)
}

func (p *part) expect(t *testing.T, prompt string, n int) {
	t.Helper()
	if got, want := p.text(), expect(prompt, n); got != want {
		t.Errorf("%q: text %q, want %q", prompt, got, want)
	}
	if p.finished.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_LENGTH ||
		p.finished.GetUsage().GetCompletionTokens() != uint32(n) ||
		p.finished.GetUsage().GetPromptTokens() != uint32(len(prompt)) {
		t.Errorf("%q: finished %v", prompt, p.finished)
	}
}

// journals opens the journals with which the tests run.
func journals(t *testing.T) map[string]func(t *testing.T) journal.Journal {
	t.Helper()
	return map[string]func(t *testing.T) journal.Journal{
		"memory": func(*testing.T) journal.Journal { return journal.NewMemory(journal.Limits{Bytes: 1 << 24}) },
		"jetstream": func(t *testing.T) journal.Journal {
			conn, err := natstest.Embedded(t).Dial()
			if err != nil {
				t.Fatal(err)
			}
			j, err := nats.New(conn, nats.Config{Memory: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { j.Close() })
			return j
		},
	}
}

func TestResume_LostRouter_StreamsContinueOnAnother(t *testing.T) {
	for name, open := range journals(t) {
		t.Run(name, func(t *testing.T) {
			j := open(t)
			m := newMesh(t, 2, 1, router.Config{})
			b := m.peer("router-b", router.Config{Journal: j})
			a := m.peer("router-a", router.Config{Journal: j})
			const tokens = 128
			m.slow(50 * time.Millisecond) // so that most streams run when the last one has begun
			streams := 48
			if os.Getenv("LAMINA_SLOW") != "" {
				streams = 200
			}
			parts := make([]part, streams)
			prompt := func(i int) string { return fmt.Sprintf("stream %d", i) }
			var begun, wg sync.WaitGroup
			begun.Add(streams)
			go func() { // ends with the streams
				begun.Wait()
				a.cancel()
				m.slow(0)
			}()
			var lost atomic.Int32
			for i := range parts {
				wg.Go(func() {
					p := &parts[i]
					err := p.generate(patient(t), a.client, resumable(prompt(i), tokens), func(n int) bool {
						if n == 1 {
							begun.Done()
						}
						return true
					})
					if !p.started.GetResumable() || p.started.GetMaxTokens() != tokens || len(p.tokens) == 0 {
						t.Errorf("stream %d: %d tokens, started %v, %v", i, len(p.tokens), p.started, err)
						return
					}
					a.wait()
					if err != nil {
						lost.Add(1)
					}
					p.finished = nil // a client may also lose the end
					if err := p.resume(patient(t), b.client, nil); err != nil {
						t.Errorf("stream %d: resume after %d tokens: %v", i, len(p.tokens), err)
						return
					}
					p.expect(t, prompt(i), tokens)
					if string(p.started.GetClientState()) != "state of "+prompt(i) {
						t.Errorf("stream %d: state %q", i, p.started.GetClientState())
					}
				})
			}
			wg.Wait()
			if n := int(lost.Load()); n < streams/4 {
				t.Errorf("only %d streams ran when their router was lost", n)
			}
			eventually(t, "the release of every session", func() bool { return m.used() == 0 })
			m.check()
		})
	}
}

func TestResume_LostConnection_SameRouterGoesOn(t *testing.T) {
	m := newMesh(t, 1, 1, router.Config{}) // without a journal
	var p part
	ctx, cancel := context.WithCancel(patient(t))
	if err := p.generate(ctx, m.client, resumable("connection", 200), func(n int) bool { return n < 20 }); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := p.resume(patient(t), m.client, func(n int) bool { return n < 40 }); err != nil {
		t.Fatal(err)
	}
	if err := p.resume(patient(t), m.client, nil); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "connection", 200)
	var whole part // it may be read again
	whole.id = p.id
	if err := whole.resume(patient(t), m.client, nil); err != nil {
		t.Fatal(err)
	}
	whole.expect(t, "connection", 200)
}

func TestResume_TwoReaders_SeeTheSameEvents(t *testing.T) {
	j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
	m := newMesh(t, 1, 1, router.Config{Journal: j})
	r := resumable("echoed prompt", 100)
	r.Echo, r.TopLogprobs = true, 1
	var first part
	if err := first.generate(patient(t), m.client, r, nil); err != nil {
		t.Fatal(err)
	}
	for name, client := range map[string]routerv1.RouterServiceClient{
		"the same router": m.client, "another router": m.peer("router-b", router.Config{Journal: j}).client,
	} {
		second := part{id: first.id}
		stored(t, j, journal.Key{ID: first.id})
		if err := second.resume(patient(t), client, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		second.started.ClientState = nil
		if !proto.Equal(first.started, second.started) {
			t.Errorf("%s: started %v, want %v", name, second.started, first.started)
		}
		if first.prompt != "echoed prompt" || second.prompt != first.prompt {
			t.Errorf("%s: prompts %q and %q", name, first.prompt, second.prompt)
		}
		for i, e := range first.tokens {
			if len(e.GetTop()) != 1 {
				t.Fatalf("token %d has %d candidates", i, len(e.GetTop()))
			}
			if i >= len(second.tokens) || !proto.Equal(e, second.tokens[i]) {
				t.Fatalf("%s: token %d differs", name, i)
			}
		}
		second.finished.Timings, first.finished.Timings = nil, nil
		if !proto.Equal(first.finished, second.finished) {
			t.Errorf("%s: finished %v, want %v", name, second.finished, first.finished)
		}
	}
}

// stored waits until the journal has the end of a request.
func stored(t *testing.T, j journal.Journal, k journal.Key) {
	t.Helper()
	eventually(t, "the end of the journal", func() bool {
		records, err := j.Read(t.Context(), k)
		if err != nil {
			return false
		}
		last := &journalv1.Record{}
		return proto.Unmarshal(records[len(records)-1].Data, last) == nil && last.GetEnd() != nil
	})
}

func TestResume_StopString_EndsAtTheSamePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
		m := newMesh(t, 1, 1, router.Config{})
		a, b := m.peer("router-a", router.Config{Journal: j}), m.peer("router-b", router.Config{Journal: j})
		whole := expect("stop where", 300)
		r := resumable("stop where", 300)
		r.Stop = []string{whole[200:206]}
		m.slow(2 * time.Millisecond)
		m.shards["shard-0-0"].strike(100, a.cancel)
		var p part
		if err := p.generate(patient(t), a.client, r, nil); err == nil || len(p.tokens) == 0 {
			t.Fatalf("%d tokens before the router was lost, %v", len(p.tokens), err)
		}
		a.wait()
		if err := p.resume(patient(t), b.client, nil); err != nil {
			t.Fatal(err)
		}
		if want := whole[:strings.Index(whole, r.GetStop()[0])]; p.text() != want {
			t.Errorf("text %q, want %q", p.text(), want)
		}
		stored(t, j, journal.Key{ID: p.id})
		c := m.peer("router-c", router.Config{Journal: j})
		again := part{id: p.id}
		if err := again.resume(patient(t), c.client, nil); err != nil || again.text() != p.text() ||
			again.finished.GetFinishReason() != samplerv1.FinishReason_FINISH_REASON_STOP {
			t.Errorf("from the journal: %q, %v, %v", again.text(), again.finished, err)
		}
	})
}

func TestResume_PlaceInTheAnswer(t *testing.T) {
	j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
	m := newMesh(t, 1, 1, router.Config{Journal: j})
	other := m.peer("router-b", router.Config{Journal: j})
	var p part
	whole := expect("places", 50)
	r := resumable("places", 80)
	r.Stop = []string{whole[48:]}
	if err := p.generate(patient(t), m.client, r, nil); err != nil {
		t.Fatal(err)
	}
	total := len(p.tokens)
	if total >= 80 {
		t.Fatalf("%d tokens", total)
	}
	stored(t, j, journal.Key{ID: p.id})
	for name, client := range map[string]routerv1.RouterServiceClient{"same": m.client, "other": other.client} {
		for _, c := range []struct {
			from uint32
			code codes.Code
		}{
			{0, codes.OK}, {1, codes.OK}, {uint32(total) - 1, codes.OK}, {uint32(total), codes.OK},
			{uint32(total) + 1, codes.OutOfRange}, {81, codes.OutOfRange}, {1 << 24, codes.OutOfRange},
			{1<<24 + 1, codes.InvalidArgument}, {1<<32 - 1, codes.InvalidArgument},
		} {
			got := part{id: p.id, tokens: make([]*routerv1.TokenEvent, min(int(c.from), total))}
			stream, err := client.Resume(patient(t), &routerv1.ResumeRequest{RequestId: p.id, From: c.from})
			if err == nil {
				err = got.read(stream, nil)
			}
			if status.Code(err) != c.code {
				t.Errorf("%s router, from %d: %v, want %v", name, c.from, err, c.code)
			}
			var f *fault.Error
			if c.code != codes.OK && (!errors.As(rpc.FromStatus(err), &f) || f.Field != "from") {
				t.Errorf("%s router, from %d: %v does not name the field", name, c.from, err)
			}
			if c.code == codes.OK && len(got.tokens) != total {
				t.Errorf("%s router, from %d: %d tokens in all, want %d", name, c.from, len(got.tokens), total)
			}
		}
	}
}
