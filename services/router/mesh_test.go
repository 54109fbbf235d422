package router_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/services/router"
)

const (
	digest     = "sha256:fake"
	vocab      = 256 // a token is a byte
	endID      = 0
	contextLen = 1024
	pageLen    = 16
	patience   = 2 * time.Minute // a test that waits longer than this fails
)

// next is the fake model: the token after a log depends on every token before it, so
// a cache that was rebuilt wrongly shows in the text.
func next(log []uint32) uint32 {
	h := fnv.New32a()
	for _, id := range log {
		fmt.Fprint(h, id, ",")
	}
	return 'a' + h.Sum32()%26
}

// picked returns what the fake sampler picks, given the best candidate. As with penalties, it
// depends on how many tokens were emitted, so a sampler that was told the wrong history shows in
// the text.
func picked(best uint32, emitted int) uint32 { return 'a' + (best-'a'+uint32(emitted))%26 }

// expect returns the text of n tokens that must follow a prompt.
func expect(prompt string, n int) string {
	var log []uint32
	for _, b := range []byte(prompt) {
		log = append(log, uint32(b))
	}
	var text []byte
	for i := range n {
		id := picked(next(log), i)
		log = append(log, id)
		text = append(text, byte(id))
	}
	return string(text)
}

// mesh is a router over fake services that speak the real protocol.
type mesh struct {
	t        *testing.T
	network  *memnet.Network
	registry *discovery.Memory
	entries  map[string]discovery.Registration // by member
	stops    map[string]context.CancelFunc     // by member
	dialer   *rpc.Dialer
	service  *router.Service
	client   routerv1.RouterServiceClient
	shards   map[string]*fakeShard
	sampler  *fakeSampler
	calls    atomic.Int64 // of tokenizers
	add      func(name string, register func(grpc.ServiceRegistrar))
}

// newMesh starts replicas of a model of two layers, or more if there are more stages, cut into stages, and waits
// for the pipelines. pages is the number of KV pages of the draft model, or of the shards if there is none.
func newMesh(t *testing.T, stages, replicas int, cfg router.Config, pages ...uint32) *mesh {
	t.Helper()
	m := &mesh{
		t: t, network: memnet.New(), registry: discovery.NewMemory(), shards: map[string]*fakeShard{},
		sampler: newFakeSampler(), entries: map[string]discovery.Registration{}, stops: map[string]context.CancelFunc{},
	}
	t.Cleanup(m.check)
	m.dialer = rpc.NewDialer(rpc.DialOptions{Net: m.network})
	if cfg.Log == nil {
		var log logtest.Buffer
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the router's log:\n%s", log.String())
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := m.dialer.Close(); err != nil {
			t.Error(err)
		}
	})
	m.serve(ctx, &wg, "tokenizer", "tokenizer", fakeTokenizer{calls: &m.calls}.register)
	m.serve(ctx, &wg, "tokenizer", "tokenizer-b", fakeTokenizer{calls: &m.calls}.register)
	m.serve(ctx, &wg, "sampler", "sampler", m.sampler.register)
	for r := range replicas {
		for i := range stages {
			name := fmt.Sprintf("shard-%d-%d", r, i)
			layers := max(2, stages)
			s := newFakeShard(m.dialer, i*layers/stages, (i+1)*layers/stages)
			s.layers = uint32(layers)
			if cfg.Draft == "" {
				for _, n := range pages {
					s.pages = n
				}
			}
			m.shards[name] = s
			m.serve(ctx, &wg, "shard", name, s.register)
		}
	}
	if cfg.Draft != "" {
		s := newFakeShard(m.dialer, 0, 2)
		s.model = cfg.Draft
		for _, n := range pages {
			s.pages = n
		}
		if cfg.Draft != "copy" { // a draft of the same files has the same digest
			s.digest = "sha256:" + cfg.Draft
		}
		m.shards["draft"] = s
		m.serve(ctx, &wg, "shard", "draft", s.register)
		replicas++
	}
	cfg.Dialer, cfg.Registry = m.dialer, m.registry
	if cfg.Placement != nil {
		cfg.Placement.Registry = m.registry
	}
	if stages > 1 && cfg.MicroBatches == 0 { // as for stages in processes of their own
		cfg.MicroBatches = stages + 1
	}
	m.service = router.New(cfg)
	wg.Go(func() {
		if err := m.service.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	m.serve(ctx, &wg, "router", "router", m.service.Register)
	m.add = func(name string, register func(grpc.ServiceRegistrar)) { m.serve(ctx, &wg, "shard", name, register) }
	conn, err := m.dialer.Dial("mem:router")
	if err != nil {
		t.Fatal(err)
	}
	m.client = routerv1.NewRouterServiceClient(conn)
	await, stop := context.WithTimeout(ctx, patience)
	defer stop()
	if err := m.service.AwaitPipelines(await, replicas); err != nil {
		t.Fatalf("wait for %d pipelines: %v", replicas, err)
	}
	return m
}

func (m *mesh) serve(
	ctx context.Context, wg *sync.WaitGroup, service, name string, register func(grpc.ServiceRegistrar),
) {
	m.t.Helper()
	l, err := rpc.Listen("mem:"+name, rpc.ListenOptions{Net: m.network})
	if err != nil {
		m.t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerOptions{})
	register(server)
	ready := make(chan struct{})
	ctx, m.stops[name] = context.WithCancel(ctx)
	wg.Go(func() {
		if err := rpc.Serve(ctx, server, l, func() { close(ready) }, rpc.DrainLimit(time.Second)); err != nil {
			m.t.Errorf("serve %s: %v", name, err)
		}
	})
	<-ready
	entry, err := m.registry.Register(ctx, discovery.Instance{ID: name, Service: service, Addr: "mem:" + name})
	if err != nil {
		m.t.Fatal(err)
	}
	m.entries[name] = entry
}

// used returns the number of KV positions that all shards hold.
func (m *mesh) used() int {
	n := 0
	for _, s := range m.shards {
		n += s.sessions()
	}
	return n
}

// slow makes a step of every shard take a time, so that a request runs while a test does something else. Zero makes
// them fast again.
func (m *mesh) slow(step time.Duration) {
	for _, s := range m.shards {
		s.mu.Lock()
		s.cost = func(int) time.Duration { return step }
		s.mu.Unlock()
	}
}

// some returns all cases, or with -short, which is how tests run under the race detector, the first and the last.
func some[T any](cases ...T) []T {
	if testing.Short() {
		return []T{cases[0], cases[len(cases)-1]}
	}
	return cases
}

// eventually polls a condition until it holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	every := 5 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	limit := time.After(patience)
	for looks := 1; !ok(); looks++ {
		if looks == 200 { // what takes seconds of virtual time would cost thousands of looks
			tick.Reset(20 * every)
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s did not happen within %v", what, patience)
		}
	}
}

// answer is a complete generation.
type answer struct {
	text     string
	ids      []uint32
	dropped  []*routerv1.Dropped // with each token
	started  *routerv1.Started
	finished *routerv1.Finished
}

// generate sends a request and reads its stream to the end. It calls each after every token.
func (m *mesh) generate(ctx context.Context, r *routerv1.GenerateRequest, each func(n int)) (answer, error) {
	var a answer
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stream, err := m.client.Generate(ctx, r)
	if err != nil {
		return a, err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return a, err
		}
		switch e := resp.GetEvent().(type) {
		case *routerv1.GenerateResponse_Started:
			a.started = e.Started
		case *routerv1.GenerateResponse_Token:
			a.text += e.Token.GetText()
			a.ids, a.dropped = append(a.ids, e.Token.GetId()), append(a.dropped, e.Token.GetDropped())
			if each != nil {
				each(len(a.ids))
			}
		case *routerv1.GenerateResponse_Finished:
			a.text += e.Finished.GetText()
			a.finished = e.Finished
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) { // once the router has cleaned up after the request
				return a, fmt.Errorf("after the end: %w", err)
			}
			return a, nil
		}
	}
}

// greedy returns a request for n tokens after a prompt, sampled greedily.
func greedy(prompt string, n int) *routerv1.GenerateRequest {
	zero := float32(0)
	return &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_Text{Text: prompt}, MaxTokens: uint32(n),
		Sampling: &routerv1.Sampling{Temperature: &zero},
	}
}
