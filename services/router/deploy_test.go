package router_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
)

const likeDigest = "sha256:like"

// deployMesh is a mesh with hosts that take assignments, each with room for some models of one host.
func deployMesh(t *testing.T, p router.Placement, hosts, models int, offers map[string]string) (*mesh, []*fakeHost) {
	t.Helper()
	return deployMeshWith(t, p, hosts, models, offers, nil)
}

// deployMeshWith is deployMesh with adapters.
func deployMeshWith(t *testing.T, p router.Placement, hosts, models int, offers map[string]string,
	adapters []router.AdapterSource) (*mesh, []*fakeHost) {
	t.Helper()
	p.Holder, p.KVLeast, p.KVMost = "router", contextLen, contextLen
	m := newMesh(t, 0, 0, router.Config{Placement: &p, ProbeLimit: 4 * time.Second, Adapters: adapters,
		AdapterDir: t.TempDir()})
	var out []*fakeHost
	for i := range hosts {
		copied := map[string]string{}
		for digest, name := range offers {
			copied[digest] = name
		}
		out = append(out, m.addHost(fmt.Sprintf("host-%d", i), models, copied))
	}
	return m, out
}

// deploy deploys a model and returns the states that the stream has gone through, and how it ended.
func (m *mesh) deploy(ctx context.Context, r *routerv1.DeployRequest) (states []string, err error) {
	stream, err := m.client.Deploy(ctx, r)
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return states, nil
		}
		if err != nil {
			return states, rpc.FromStatus(err)
		}
		state := strings.ToLower(strings.TrimPrefix(resp.GetDeployment().GetState().String(), "DEPLOYMENT_STATE_"))
		if n := len(states); n == 0 || states[n-1] != state {
			states = append(states, state)
		}
	}
}

// deployment returns a deployment as the topology has it.
func (m *mesh) deployment(name string) *routerv1.Deployment {
	m.t.Helper()
	resp, err := m.client.ListDeployments(m.t.Context(), &routerv1.ListDeploymentsRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, d := range resp.GetDeployments() {
		if d.GetName() == name {
			return d
		}
	}
	return nil
}

// named is a greedy request for n tokens of a model.
func named(model, prompt string, n int) *routerv1.GenerateRequest {
	r := greedy(prompt, n)
	r.Model = model
	return r
}

// traffic sends requests for a model until it is stopped, some of them long ones, and counts the answers by digest.
// Each answer is wholly that of the digest that it names.
type traffic struct {
	stop  func() (byDigest map[string]int, failed []error)
	count func(digest string) int
}

func (m *mesh) traffic(model string, workers int) *traffic {
	ctx, cancel := context.WithCancel(m.t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	counts := map[string]int{}
	var failed []error
	for w := range workers {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				prompt, n := fmt.Sprintf("worker %d, request %d", w, i), 4
				if w == 0 {
					n = 400
				}
				a, err := m.generate(context.WithoutCancel(ctx), named(model, prompt, n), nil)
				if err == nil && a.text != expectOf(a.started.GetDigest(), prompt, n) {
					err = fmt.Errorf("%q after %q is not what %s gives", a.text, prompt, a.started.GetDigest())
				}
				if err == nil && model != "" && a.started.GetModel() != model {
					err = fmt.Errorf("the answer is from %q, not %q", a.started.GetModel(), model)
				}
				mu.Lock()
				if err != nil {
					failed = append(failed, err)
				} else {
					counts[a.started.GetDigest()]++
				}
				mu.Unlock()
				if err != nil {
					time.Sleep(time.Second)
				}
			}
		})
	}
	count := func(digest string) int {
		mu.Lock()
		defer mu.Unlock()
		return counts[digest]
	}
	return &traffic{count: count, stop: func() (map[string]int, []error) {
		cancel()
		wg.Wait()
		return counts, failed
	}}
}

// served waits until a model answers.
func (m *mesh) served(model string) {
	m.t.Helper()
	eventually(m.t, "an answer of "+model, func() bool {
		_, err := m.generate(m.t.Context(), named(model, "hello", 1), nil)
		return err == nil
	})
}

// A model that is served without a deployment gets a new version: first a tenth of the requests, then all. None fails,
// each answer is of one version, and the version before is unloaded.
func TestDeploy_NewVersionTakesOverUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, hosts := deployMesh(t, router.Placement{}, 2, 1, map[string]string{digest: "fake"})
		m.served("fake")
		load := m.traffic("fake", 6)
		for _, h := range hosts {
			h.mu.Lock()
			h.offers[likeDigest] = "fake-2"
			h.mu.Unlock()
		}
		share, observe := float32(0.1), uint64(20_000)
		states, err := m.deploy(t.Context(), &routerv1.DeployRequest{Model: "fake-2", Name: "fake", Canary: &share,
			ObserveMs: &observe})
		if err != nil || fmt.Sprint(states) != "[loading canary live]" {
			t.Fatalf("deploy: %v, %v", states, err)
		}
		before, canary := load.count(digest), load.count(likeDigest)
		if got := float64(canary) / float64(before+canary); got < 0.02 || got > 0.25 {
			t.Errorf("the canary has taken %d of %d requests", canary, before+canary)
		}
		eventually(t, "the version before is unloaded", func() bool {
			return !hosts[0].holds(digest) && !hosts[1].holds(digest) && len(m.deployment("fake").GetRetiring()) == 0
		})
		after := load.count(likeDigest)
		eventually(t, "requests to the new version", func() bool { return load.count(likeDigest) > after+20 })
		counts, failed := load.stop()
		if len(failed) > 0 {
			t.Errorf("%d requests have failed: %v", len(failed), failed[0])
		}
		t.Logf("answers %v", counts)
		resp, err := m.client.ListModels(t.Context(), &routerv1.ListModelsRequest{})
		if err != nil || len(resp.GetModels()) != 1 || resp.GetModels()[0].GetName() != "fake" ||
			resp.GetModels()[0].GetDigest() != likeDigest {
			t.Errorf("listed %v, %v", resp.GetModels(), err)
		}
		// The name is taken out of service, and comes back with the version before.
		if _, err := m.client.Undeploy(t.Context(), &routerv1.UndeployRequest{Name: "fake"}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.generate(t.Context(), named("fake", "x", 1),
			nil); fault.CodeOf(rpc.FromStatus(err)) != fault.NotFound {
			t.Errorf("a model that was undeployed answers with %v", err)
		}
		eventually(t, "it is unloaded", func() bool {
			return !hosts[0].holds(likeDigest) && !hosts[1].holds(likeDigest)
		})
		if states, err = m.deploy(t.Context(), &routerv1.DeployRequest{Model: digest, Name: "fake"}); err != nil {
			t.Fatalf("deploy again: %v, %v", states, err)
		}
		m.served("fake")
	})
}

// A version whose stage computes nothing fails its probe, one that fails its requests is noticed by these, and one
// whose load is refused is never open. All are rolled back while the live version answers every request, also those
// that have failed on the canary.
func TestDeploy_BadVersionsAreRolledBack(t *testing.T) {
	for name, c := range map[string]struct {
		ruin   func(*fakeShard)
		refuse error
		states string
		why    string
	}{
		"probe":   {ruin: func(s *fakeShard) { s.silent = true }, states: "[loading live]", why: "computes nothing"},
		"weights": {ruin: func(s *fakeShard) { s.spoilt = true }, states: "[loading live]", why: "are not finite"},
		"load": {refuse: fault.New(fault.FailedPrecondition, "load layers: tensor blk.0 is damaged"),
			states: "[loading live]", why: "tensor blk.0 is damaged"},
		"requests": {ruin: func(s *fakeShard) { s.poison = '9' }, states: "[loading canary live]"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, hosts := deployMesh(t, router.Placement{}, 2, 1, map[string]string{digest: "fake"})
				m.served("fake")
				for _, h := range hosts {
					h.mu.Lock()
					h.offers[likeDigest] = "like"
					h.refuse[likeDigest] = c.refuse
					if c.ruin != nil {
						h.ruin = func(s *fakeShard) {
							if s.digest == likeDigest {
								c.ruin(s)
							}
						}
					}
					h.mu.Unlock()
				}
				load := m.traffic("fake", 3)
				share, limit := float32(0.5), uint64(30_000)
				states, err := m.deploy(t.Context(), &routerv1.DeployRequest{Model: "like", Name: "fake",
					Canary: &share, LoadMs: &limit})
				if fault.CodeOf(err) != fault.Aborted || !strings.Contains(err.Error(), "rolled back") ||
					!strings.Contains(err.Error(), c.why) || fmt.Sprint(states) != c.states {
					t.Errorf("deploy: %v, %v, want %s, ABORTED and %q", states, err, c.states, c.why)
				}
				d := m.deployment("fake")
				if d.GetLive().GetDigest() != digest || d.GetFailed().GetDigest() != likeDigest || d.GetNext() != nil {
					t.Errorf("the deployment is %v", d)
				}
				at := load.count(digest)
				eventually(t, "answers of the live version", func() bool { return load.count(digest) > at+10 })
				eventually(t, "the bad version is unloaded", func() bool {
					return !hosts[0].holds(likeDigest) && !hosts[1].holds(likeDigest)
				})
				counts, failed := load.stop()
				t.Logf("answers %v, failed %d", counts, len(failed))
				if len(failed) > 0 { // those of a canary were answered by the live version
					t.Errorf("%d requests have failed: %v", len(failed), failed[0])
				}
			})
		})
	}
}

// While a canary takes half of the requests, all requests of a session go to the same version.
func TestDeploy_SessionsStayOnOneVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := deployMesh(t, router.Placement{}, 2, 1, map[string]string{digest: "fake", likeDigest: "like"})
		m.served("fake")
		share, observe := float32(0.5), uint64(600_000)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := m.client.Deploy(ctx, &routerv1.DeployRequest{Model: likeDigest, Name: "fake", Canary: &share,
			ObserveMs: &observe})
		if err != nil {
			t.Fatal(err)
		}
		for state := routerv1.DeploymentState_DEPLOYMENT_STATE_UNSPECIFIED; state !=
			routerv1.DeploymentState_DEPLOYMENT_STATE_CANARY; {
			resp, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			state = resp.GetDeployment().GetState()
		}
		all := map[string]bool{}
		for session := range 12 {
			of := metadata.AppendToOutgoingContext(t.Context(), obs.SessionIDHeader, fmt.Sprintf("session-%d", session))
			own := map[string]bool{}
			for range 6 {
				a, err := m.generate(of, named("fake", "hello", 2), nil)
				if err != nil {
					t.Fatal(err)
				}
				own[a.started.GetDigest()], all[a.started.GetDigest()] = true, true
			}
			if len(own) != 1 {
				t.Errorf("session %d was answered by %v", session, own)
			}
		}
		if len(all) != 2 {
			t.Errorf("all sessions were answered by %v", all)
		}
	})
}

// A model that nobody uses is unloaded. A request loads it again, and its client is told how far that is.
func TestDeploy_SleepsAndIsLoadedOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, hosts := deployMesh(t, router.Placement{OnlyDeployed: true}, 1, 1, map[string]string{digest: "fake"})
		h := hosts[0]
		idle := uint64(30_000)
		eventually(t, "the deployment", func() bool {
			states, err := m.deploy(t.Context(), &routerv1.DeployRequest{Model: "fake", Name: "chat", IdleMs: &idle})
			return err == nil && len(states) > 0
		})
		m.served("chat")
		asleep := func() bool { // and the router has left its pipeline
			resp, err := m.client.Topology(t.Context(), &routerv1.TopologyRequest{})
			return err == nil && len(resp.GetMesh().GetPipelines()) == 0 && !h.holds(digest) &&
				m.deployment("chat").GetState() == routerv1.DeploymentState_DEPLOYMENT_STATE_ASLEEP
		}
		eventually(t, "the model sleeps", asleep)
		resp, err := m.client.ListModels(t.Context(), &routerv1.ListModelsRequest{})
		if err != nil || len(resp.GetModels()) != 1 || resp.GetModels()[0].GetName() != "chat" {
			t.Errorf("while it sleeps, listed %v, %v", resp.GetModels(), err)
		}
		h.mu.Lock()
		h.load = 20 * time.Second
		h.mu.Unlock()
		for _, resumable := range []bool{false, true} {
			eventually(t, "the model sleeps", asleep)
			r := named("chat", "hello", 5)
			r.Resumable = resumable
			stream, err := m.client.Generate(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			text, reports, bytes := "", 0, uint64(0)
			for {
				e, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if l := e.GetLoading(); l != nil {
					reports++
					bytes = max(bytes, l.GetDoneBytes())
					if l.GetModel() != "chat" || l.GetTotalBytes() != fakeLayers*fakeLayerBytes {
						t.Errorf("reported %v", l)
					}
				}
				text += e.GetToken().GetText()
			}
			if text != expect("hello", 5) || reports < 10 || bytes < 100 {
				t.Errorf("resumable %v: got %q after %d reports of up to %d bytes", resumable, text, reports, bytes)
			}
		}
		// A request that does not wait is told at once.
		eventually(t, "the model sleeps again", asleep)
		r, none := named("chat", "hello", 5), uint32(0)
		r.WaitForCapacity = &none
		if _, err := m.generate(t.Context(), r, nil); fault.CodeOf(rpc.FromStatus(err)) != fault.Unavailable {
			t.Errorf("without waiting: %v", err)
		}
	})
}

// There is room for one model. Each of two takes the place of the other when it is asked for, unless that is in use or
// pinned.
func TestDeploy_ModelsMakeRoomForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, hosts := deployMesh(t, router.Placement{OnlyDeployed: true}, 1, 1,
			map[string]string{digest: "fake", likeDigest: "like"})
		h := hosts[0]
		eventually(t, "the first deployment", func() bool {
			_, err := m.deploy(t.Context(), &routerv1.DeployRequest{Model: "fake"})
			return err == nil
		})
		if _, err := m.deploy(t.Context(), &routerv1.DeployRequest{Model: "like"}); err != nil {
			t.Fatal(err)
		}
		if h.holds(digest) || !h.holds(likeDigest) {
			t.Error("the second model has not taken the place of the first one")
		}
		for range 2 {
			for _, model := range []struct{ name, digest string }{{"fake", digest}, {"like", likeDigest}} {
				a, err := m.generate(t.Context(), named(model.name, "hello", 3), nil)
				if err != nil || a.text != expectOf(model.digest, "hello", 3) {
					t.Fatalf("%s: %q, %v", model.name, a.text, err)
				}
			}
		}
		pinned, limit := true, uint64(90_000)
		if _, err := m.deploy(t.Context(), &routerv1.DeployRequest{Model: "like", Pinned: &pinned}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.deploy(t.Context(), &routerv1.DeployRequest{Model: "fake", LoadMs: &limit}); err != nil {
			t.Fatal(err)
		}
		_, err := m.generate(t.Context(), named("fake", "hello", 3), nil)
		if fault.CodeOf(rpc.FromStatus(err)) != fault.Unavailable ||
			!strings.Contains(err.Error(), "not enough memory") {
			t.Errorf("beside a pinned model: %v", err)
		}
		if !h.holds(likeDigest) {
			t.Error("a pinned model was unloaded")
		}
	})
}

// A host that cannot load layers of a model is asked a few times and then left out, with the reason. Another one serves
// the model, and the host is asked again once it has changed.
func TestPlacer_HostThatCannotLoadIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, hosts := deployMesh(t, router.Placement{}, 1, 1, map[string]string{digest: "fake"})
		bad := hosts[0]
		bad.mu.Lock()
		bad.refuse[digest] = fault.New(fault.FailedPrecondition, "load layers: tensor blk.0 is damaged")
		bad.mu.Unlock()
		eventually(t, "the host is left out", func() bool {
			resp, err := m.client.Topology(t.Context(), &routerv1.TopologyRequest{})
			for _, l := range resp.GetMesh().GetPlacement().GetLeftOut() {
				if err == nil && l.GetId() == bad.id && strings.Contains(l.GetReason(), "tensor blk.0 is damaged") {
					return true
				}
			}
			return false
		})
		time.Sleep(time.Minute)
		bad.mu.Lock()
		refused := bad.refused
		bad.mu.Unlock()
		if refused != 3 {
			t.Errorf("it was asked %d times", refused)
		}
		m.addHost("good", 1, map[string]string{digest: "fake"})
		m.served("fake")
		bad.mu.Lock()
		bad.refuse[digest] = nil
		bad.memory++
		bad.mu.Unlock()
		m.stops["good"]()
		eventually(t, "the host that has changed serves", func() bool { return bad.holds(digest) })
	})
}

// A host that is full because it loads what an earlier placer has asked for is asked for nothing until that has ended.
func TestPlacer_HostThatStillLoadsIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, hosts := deployMesh(t, router.Placement{}, 1, 1, map[string]string{digest: "fake"})
		h := hosts[0]
		h.mu.Lock()
		h.refuse[digest] = fault.New(fault.Exhausted, "assign layers: another span is being loaded")
		h.loading = []*shardv1.Loading{{Digest: digest, Lo: 0, Hi: 1, DoneBytes: 1, TotalBytes: 1000}}
		h.mu.Unlock()
		time.Sleep(20 * time.Second) // virtual time, in which it would be left out
		h.mu.Lock()
		if h.refused > 0 || len(h.spans) > 0 {
			t.Errorf("it has refused %d loads and holds %d spans", h.refused, len(h.spans))
		}
		h.loading, h.refuse[digest] = nil, nil
		h.mu.Unlock()
		m.served("fake")
	})
}
