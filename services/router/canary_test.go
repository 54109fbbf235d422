package router_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
)

// A row that ends processes of the canary may be its fault or that of the version. So its request runs again on the
// live version, but there it is set aside after the first process.
func TestDeploy_RowThatEndsProcessesOfBothVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, hosts := deployMesh(t, router.Placement{}, 2, 1, map[string]string{digest: "fake", likeDigest: "like"})
		var mu sync.Mutex
		var shards []*fakeShard
		for _, h := range hosts {
			h.mu.Lock()
			h.ruin = func(s *fakeShard) {
				s.poison, s.forgets = '!', true
				mu.Lock()
				shards = append(shards, s)
				mu.Unlock()
			}
			h.mu.Unlock()
		}
		m.served("fake")
		m.canary(1, 10*time.Minute)
		_, err := m.generate(t.Context(), named("fake", "hello!", 3), nil)
		if fault.CodeOf(rpc.FromStatus(err)) != fault.Aborted {
			t.Errorf("the request has ended with %v", err)
		}
		ended := map[string]int{} // processes by digest
		mu.Lock()
		defer mu.Unlock()
		for _, s := range shards {
			s.mu.Lock()
			ended[s.digest] += s.poisoned
			s.mu.Unlock()
		}
		if ended[likeDigest] != 2 || ended[digest] != 1 {
			t.Errorf("the row has ended processes of %v", ended)
		}
	})
}

// canary deploys another version beside the live one and waits until it takes its share of the requests, for a time.
func (m *mesh) canary(share float32, lasts time.Duration) {
	m.t.Helper()
	observe := uint64(lasts.Milliseconds())
	stream, err := m.client.Deploy(m.t.Context(), &routerv1.DeployRequest{Model: likeDigest, Name: "fake",
		ObserveMs: &observe, Canary: &share})
	for err == nil {
		var resp *routerv1.DeployResponse
		if resp, err = stream.Recv(); err == nil &&
			resp.GetDeployment().GetState() == routerv1.DeploymentState_DEPLOYMENT_STATE_CANARY {
			return
		}
	}
	m.t.Fatal(err)
}

// Pipelines of a canary are lost again and again without a request that is to blame. If its host is cut off each time,
// the canary stays: any version would have lost them. If the host lives on, the version is to blame.
func TestDeploy_LostHostsAreNotTheCanarysFault(t *testing.T) {
	for name, dies := range map[string]bool{"the host is cut off": true, "the host lives on": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, hosts := deployMesh(t, router.Placement{}, 2, 1,
					map[string]string{digest: "fake", likeDigest: "like"})
				m.served("fake")
				m.canary(1, 10*time.Minute)
				for range 7 {
					eventually(t, "the canary serves", func() bool {
						a, err := m.generate(t.Context(), named("fake", "hello", 3), nil)
						return err == nil && (a.started.GetDigest() == likeDigest || !dies)
					})
					for _, h := range hosts {
						if !h.holds(likeDigest) {
							continue
						}
						if dies {
							m.network.Cut(h.id, true)
							<-time.After(4 * time.Second)
							m.network.Cut(h.id, false)
							continue
						}
						h.shut(likeDigest, true)
						<-time.After(2 * time.Second)
						h.shut(likeDigest, false)
					}
					<-time.After(4 * time.Second)
				}
				d := m.deployment("fake")
				stays := d.GetState() == routerv1.DeploymentState_DEPLOYMENT_STATE_CANARY && d.GetFailed() == nil
				if stays != dies || !dies && d.GetFailed().GetDigest() != likeDigest {
					t.Errorf("the deployment is %v", d)
				}
			})
		})
	}
}

// A client repeats a request that fails on every version, and some others like it. The canary stays, with or without
// the loss of processes: it is not to blame.
func TestDeploy_FaultyRequestsAreNotTheCanarysFault(t *testing.T) {
	for name, ends := range map[string]bool{"fails": false, "ends processes": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, hosts := deployMesh(t, router.Placement{}, 2, 1,
					map[string]string{digest: "fake", likeDigest: "like"})
				for _, h := range hosts {
					h.mu.Lock()
					h.ruin = func(s *fakeShard) { s.poison, s.forgets = '!', ends }
					h.mu.Unlock()
				}
				m.served("fake")
				m.canary(1, 10*time.Minute)
				for i := range 8 {
					_, err := m.generate(t.Context(), named("fake", fmt.Sprintf("hello %d!", i%4), 3), nil)
					if err == nil {
						t.Fatal("a request that fails on both versions has an answer")
					}
					m.served("fake") // what it has ended is open again
				}
				<-time.After(10 * time.Second)
				d := m.deployment("fake")
				if d.GetState() != routerv1.DeploymentState_DEPLOYMENT_STATE_CANARY || d.GetFailed() != nil {
					t.Errorf("the deployment is %v", d)
				}
				a, err := m.generate(t.Context(), named("fake", "hello", 5), nil)
				if err != nil || a.started.GetDigest() != likeDigest {
					t.Errorf("%v, %v, want an answer of the canary", a.started, err)
				}
			})
		})
	}
}

// A request with an adapter that wakes its model also waits until the adapter is loaded again.
func TestDeploy_SleepingModelWithAnAdapter(t *testing.T) {
	dir, sum := adapterFolder(t, 1)
	synctest.Test(t, func(t *testing.T) {
		m, h := sleeping(t, []router.AdapterSource{{Name: "law", Dir: dir}})
		h.mu.Lock()
		h.ruin = func(s *fakeShard) { // its pipeline is open before the adapter is loaded
			s.pauseLoad = make(chan struct{})
			time.AfterFunc(3*time.Second, func() { close(s.pauseLoad) })
		}
		h.mu.Unlock()
		a, err := m.generate(t.Context(), named("chat:law", "hello", 5), nil)
		if err != nil || a.text != expectWith("hello", 5, sum) || !h.holds(digest) {
			t.Errorf("%q, %v", a.text, err)
		}
	})
}

// Calls that may not use a model do not load it, and do not hear how large it is.
func TestDeploy_StrangersWakeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := sleeping(t, nil)
		b := m.service.Backend()
		ctx := withKey(t, auth.Key{Models: []string{"another"}})
		generate := b.Generate(ctx, named("chat", "hello", 5), func(e *routerv1.GenerateResponse) error {
			t.Errorf("the client has heard %v", e)
			return nil
		})
		_, encode := b.Encode(ctx, "chat", "text", false, false)
		_, embed := b.Embed(ctx, &routerv1.EmbedRequest{Model: "chat", Inputs: []*routerv1.EmbedInput{
			{Input: &routerv1.EmbedInput_Text{Text: "text"}}}})
		for what, err := range map[string]error{"generate": generate, "encode": encode, "embed": embed} {
			if fault.CodeOf(err) != fault.PermissionDenied {
				t.Errorf("%s: %v", what, err)
			}
		}
		if state := m.deployment("chat").GetState(); h.holds(digest) ||
			state != routerv1.DeploymentState_DEPLOYMENT_STATE_ASLEEP {
			t.Errorf("the model is loaded; its deployment is %v", state)
		}
		for _, may := range []string{"chat", "fake", digest} {
			if err := b.Generate(withKey(t, auth.Key{Models: []string{may}}), named("chat", "hello", 5),
				func(*routerv1.GenerateResponse) error { return nil }); err != nil {
				t.Errorf("a key for %s: %v", may, err)
			}
		}
	})
}

// An encoder is not given up because its shard has too many calls of other models to answer a probe.
func TestDeploy_EncoderOnABusyShard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, hosts := deployMesh(t, router.Placement{OnlyDeployed: true}, 1, 1, map[string]string{digest: "fake"})
		h := hosts[0]
		h.mu.Lock()
		h.encoder, h.busy = true, 60 // for a minute
		h.mu.Unlock()
		var err error
		eventually(t, "the deployment", func() bool { // until a router knows the model it is refused
			_, err = m.deploy(t.Context(), &routerv1.DeployRequest{Model: "fake"})
			return err == nil || m.deployment("fake") != nil
		})
		d := m.deployment("fake")
		if err != nil {
			t.Errorf("deploy: %v", err)
		}
		if d.GetState() != routerv1.DeploymentState_DEPLOYMENT_STATE_LIVE || d.GetFailed() != nil {
			t.Errorf("the deployment is %v", d)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.busy > 0 {
			t.Errorf("it is served before %d probes that are refused", h.busy)
		}
	})
}

// sleeping returns a mesh with a deployment "chat" that sleeps and takes 20 seconds to load.
func sleeping(t *testing.T, adapters []router.AdapterSource) (*mesh, *fakeHost) {
	t.Helper()
	m, hosts := deployMeshWith(t, router.Placement{OnlyDeployed: true}, 1, 1, map[string]string{digest: "fake"},
		adapters)
	h := hosts[0]
	idle := uint64(30_000)
	eventually(t, "the deployment", func() bool {
		states, err := m.deploy(t.Context(), &routerv1.DeployRequest{Model: "fake", Name: "chat", IdleMs: &idle})
		return err == nil && len(states) > 0
	})
	m.served("chat")
	h.mu.Lock()
	h.load = 20 * time.Second
	h.mu.Unlock()
	eventually(t, "the model sleeps", func() bool { // and the router has left its pipeline
		resp, err := m.client.Topology(t.Context(), &routerv1.TopologyRequest{})
		return err == nil && len(resp.GetMesh().GetPipelines()) == 0 && !h.holds(digest) &&
			m.deployment("chat").GetState() == routerv1.DeploymentState_DEPLOYMENT_STATE_ASLEEP
	})
	return m, h
}
