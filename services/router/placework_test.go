package router

// This test is internal because the placer is not exported.

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// fullHost is a shard without room for two spans. It writes down what it is told.
type fullHost struct {
	shardv1.UnimplementedShardServiceServer
	cramped bool // a span fits only where nothing else is held
	slow    bool // loads that fit never end, unless the placer gives them up

	mu      sync.Mutex
	spans   []part
	told    []string
	loading []*shardv1.Loading
}

func (h *fullHost) Describe(context.Context, *shardv1.DescribeRequest) (*shardv1.DescribeResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := &shardv1.DescribeResponse{Instance: "host", Inventory: &shardv1.Inventory{
		Assignable: true, Loading: slices.Clone(h.loading)}}
	for _, p := range h.spans {
		out.Held = append(out.Held,
			&shardv1.Held{Digest: p.digest, Lo: uint32(p.lo), Hi: uint32(p.hi), Assigned: true})
	}
	return out, nil
}

func (h *fullHost) Assign(r *shardv1.AssignRequest, stream grpc.ServerStreamingServer[shardv1.AssignResponse]) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := fmt.Sprintf("%s %d-%d", r.GetDigest(), r.GetLo(), r.GetHi())
	line, left := "assign "+name, slices.Clone(h.spans)
	for _, old := range r.GetReplaces() {
		line += fmt.Sprintf(" for %d-%d", old.GetLo(), old.GetHi())
		if !h.cramped {
			left = slices.DeleteFunc(left, func(p part) bool {
				return p == part{r.GetDigest(), int(old.GetLo()), int(old.GetHi())}
			})
		}
	}
	h.told = append(h.told, line)
	if len(left) > 0 {
		return fault.New(fault.Exhausted, "assign layers: %d spans are held", len(left))
	}
	if h.slow {
		h.mu.Unlock()
		<-stream.Context().Done()
		h.mu.Lock()
		h.told = append(h.told, "give up "+name)
		return stream.Context().Err()
	}
	h.loading = nil
	h.spans = []part{{r.GetDigest(), int(r.GetLo()), int(r.GetHi())}}
	return stream.Send(&shardv1.AssignResponse{Frame: &shardv1.AssignResponse_Held{Held: &shardv1.Held{}}})
}

func (h *fullHost) Unload(r *shardv1.UnloadRequest, stream grpc.ServerStreamingServer[shardv1.UnloadResponse]) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	gone := part{r.GetDigest(), int(r.GetLo()), int(r.GetHi())}
	h.spans = slices.DeleteFunc(h.spans, func(p part) bool { return p == gone })
	h.told = append(h.told, fmt.Sprintf("unload %s %d-%d", gone.digest, gone.lo, gone.hi))
	return stream.Send(&shardv1.UnloadResponse{Done: true})
}

// lead serves the host and returns a leader whose plan wants layers 1-3 of model a on it.
func (h *fullHost) lead(t *testing.T) *leader {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*assignLimit)
	network := memnet.New()
	dialer := rpc.NewDialer(rpc.DialOptions{Net: network})
	server := rpc.NewServer(rpc.ServerOptions{})
	shardv1.RegisterShardServiceServer(server, h)
	listener, err := rpc.Listen("mem:host", rpc.ListenOptions{Net: network})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = rpc.Serve(ctx, server, listener, nil, rpc.DrainLimit(time.Second)) })
	t.Cleanup(func() {
		cancel()
		serving.Wait()
		if err := dialer.Close(); err != nil {
			t.Error(err)
		}
	})
	s := New(Config{Dialer: dialer, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	desc, _ := h.Describe(ctx, nil)
	p := newPlacer(s, Placement{})
	p.hosts["host"] = &placed{addr: "mem:host", desc: desc, beat: heartbeat{known: true}}
	chain := plan.Pipeline{Digest: "a", Stages: []plan.Stage{{Host: "host", Lo: 1, Hi: 3}}}
	doc := &plan.Document{Plan: plan.Plan{Pipelines: []plan.Pipeline{chain}}}
	return &leader{placer: p, work: &sync.WaitGroup{}, doc: doc}
}

// TestLeader_CarryOut_ReplacesSpansWhereMemoryIsShort lets a host hold other layers than it has room for beside those
// that it holds. Spans that share no layer with the new one go first; those that do are replaced, so that no layer is
// loaded twice. A host that cannot replace unloads. One that still loads another span is left alone.
func TestLeader_CarryOut_ReplacesSpansWhereMemoryIsShort(t *testing.T) {
	for name, tc := range map[string]struct {
		cramped bool
		holds   []part
		loads   part // for an earlier placer
		want    []string
	}{
		"empty": {want: []string{"assign a 1-3"}},
		"grows": {holds: []part{{"a", 1, 2}}, want: []string{"assign a 1-3", "assign a 1-3 for 1-2"}},
		"two": {holds: []part{{"a", 0, 2}, {"a", 2, 4}},
			want: []string{"assign a 1-3", "assign a 1-3 for 0-2 for 2-4"}},
		"others": {holds: []part{{"a", 1, 2}, {"b", 1, 2}, {"a", 3, 4}}, want: []string{"assign a 1-3",
			"unload b 1-2", "assign a 1-3", "unload a 3-4", "assign a 1-3", "assign a 1-3 for 1-2"}},
		"loads another span": {holds: []part{{"a", 1, 2}}, loads: part{"a", 2, 4}},
		"loads it already":   {loads: part{"a", 1, 3}, want: []string{"assign a 1-3"}},
		"cannot replace": {cramped: true, holds: []part{{"a", 1, 2}}, want: []string{"assign a 1-3",
			"assign a 1-3 for 1-2", "unload a 1-2", "assign a 1-3"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := &fullHost{cramped: tc.cramped, spans: tc.holds}
			if l := tc.loads; l != (part{}) {
				h.loading = []*shardv1.Loading{{Digest: l.digest, Lo: uint32(l.lo), Hi: uint32(l.hi)}}
			}
			l := h.lead(t)
			for range len(tc.want) + 2 { // one more step than needed: nothing more is to be done
				l.carryOut(t.Context())
				l.work.Wait()
			}
			if !slices.Equal(h.told, tc.want) {
				t.Errorf("the host is told %q, want %q", h.told, tc.want)
			}
		})
	}
}

// TestLeader_CarryOut_KeepsSpansWhenNothingNeedsTheirMemory changes the plan after a load did not fit: the host is to
// load nothing any more. Its span may still serve, since no other is open, and stays.
func TestLeader_CarryOut_KeepsSpansWhenNothingNeedsTheirMemory(t *testing.T) {
	h := &fullHost{spans: []part{{"a", 1, 2}}}
	l := h.lead(t)
	for range 3 {
		l.carryOut(t.Context())
		l.work.Wait()
		l.doc = &plan.Document{}
	}
	if want := []string{"assign a 1-3"}; !slices.Equal(h.told, want) {
		t.Errorf("the host is told %q, want %q", h.told, want)
	}
}

// TestLeader_CarryOut_GivesUpReplacements changes the plan while a host loads a span in place of the one that it holds.
// The load ends at once if the old span is wanted again or the new one is not, and goes on if both plans agree on it.
func TestLeader_CarryOut_GivesUpReplacements(t *testing.T) {
	asked := []string{"assign a 1-3", "assign a 1-3 for 1-2"}
	for name, tc := range map[string]struct {
		wanted []plan.Stage
		took   time.Duration // until the host is free again
		want   []string
	}{
		"the old span again": {wanted: []plan.Stage{{Host: "host", Lo: 1, Hi: 2}}, want: append(asked, "give up a 1-3")},
		"nothing":            {want: append(asked, "give up a 1-3")},
		"the same": {wanted: []plan.Stage{{Host: "other", Hi: 1}, {Host: "host", Lo: 1, Hi: 3}}, took: assignLimit,
			want: append(asked, "give up a 1-3")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &fullHost{spans: []part{{"a", 1, 2}}, slow: true}
				l := h.lead(t)
				l.carryOut(t.Context())
				l.work.Wait()
				begin := time.Now()
				l.carryOut(t.Context())
				synctest.Wait()
				l.doc = &plan.Document{Plan: plan.Plan{Pipelines: []plan.Pipeline{{Digest: "a", Stages: tc.wanted}}}}
				l.carryOut(t.Context())
				l.work.Wait()
				if took := time.Since(begin); took.Truncate(2*time.Second) != tc.took {
					t.Errorf("the host was busy for %v, want %v", took, tc.took)
				}
				synctest.Wait()
				h.mu.Lock()
				defer h.mu.Unlock()
				if !slices.Equal(h.told, tc.want) || !slices.Equal(h.spans, []part{{"a", 1, 2}}) {
					t.Errorf("the host is told %q and holds %v, want %q", h.told, h.spans, tc.want)
				}
			})
		})
	}
}
