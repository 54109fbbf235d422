package router

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// Deploy brings a version of a model into service, and sends what happens until that is done or has failed.
func (s *Service) Deploy(
	r *routerv1.DeployRequest, stream grpc.ServerStreamingServer[routerv1.DeployResponse],
) error {
	ctx := stream.Context()
	name, v, err := s.deploy(ctx, r)
	if err != nil {
		return err
	}
	var last *routerv1.DeployResponse
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if err := auth.From(ctx).Check(); err != nil {
			return err
		}
		s.mu.Lock()
		changed, d := s.changed, s.deploys.state.Find(name)
		next := &routerv1.DeployResponse{}
		if d != nil {
			next.AdaptersLeft = s.leftBehind(d, func(adapter string) bool {
				return auth.MayUse(ctx, name, d.Live.Digest, adapted(name, adapter))
			})
		}
		s.mu.Unlock()
		if d != nil {
			next.Deployment = describeDeployment(d)
			if d.Next != nil && !d.Next.Canary && d.Next.Digest == v.Digest {
				next.Loading = s.loading(ctx, name, v.Digest)
			}
		}
		if !proto.Equal(next, last) {
			if err := stream.Send(next); err != nil {
				return err
			}
			last = next
		}
		if done, err := deployed(d, name, v); done {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.requests.draining:
			return errStopping
		case <-changed:
		case <-tick.C:
		}
	}
}

// deployed reports whether the deployment of a version is over, and how it ended.
func deployed(d *deploy.Deployment, name string, v deploy.Version) (done bool, err error) {
	switch {
	case d == nil || d.Off:
		return true, fault.New(fault.Aborted, "deploy %s: it was undeployed", name)
	case d.Next != nil && d.Next.Digest == v.Digest:
		return false, nil
	case d.Live != nil && d.Live.Digest == v.Digest:
		return true, nil
	case d.Failed != nil && d.Failed.Digest == v.Digest:
		return true, fault.New(fault.Aborted, "deploy %s: version %s was rolled back: %s", name, v.Digest, d.Failed.Reason)
	}
	return true, fault.New(fault.Aborted, "deploy %s: another version was deployed after %s", name, v.Digest)
}

// deploy changes the deployments as an operator asks for, and returns the name and the version.
func (s *Service) deploy(ctx context.Context, r *routerv1.DeployRequest) (string, deploy.Version, error) {
	if s.placer == nil {
		return "", deploy.Version{}, errNoPlacer
	}
	v, err := s.findOffer(ctx, r.GetModel())
	if err != nil {
		return "", v, err
	}
	name := r.GetName()
	if name == "" && s.deployed().Find(r.GetModel()) != nil {
		name = r.GetModel()
	}
	name = cmp.Or(name, v.Model)
	current, err := s.answering(name, v.Digest)
	if err != nil {
		return "", v, err
	}
	_, err = s.changeDeployments(ctx, func(state *deploy.State) error {
		var spec deploy.Spec
		if d := state.Find(name); d != nil && !d.Off {
			spec = d.Spec
		}
		if err := merge(&spec, r); err != nil {
			return err
		}
		return state.Deploy(name, spec, v, current)
	})
	return name, v, err
}

// errNoPlacer refuses to deploy on a router that places no layers.
var errNoPlacer = fault.New(fault.FailedPrecondition, "deploy a model: this router places no layers")

// merge takes over the settings that a request has.
func merge(spec *deploy.Spec, r *routerv1.DeployRequest) error {
	const most = 1 << 32 // ms; deploy.Spec has closer limits
	for field, ms := range map[string]*uint64{"observe_ms": r.ObserveMs, "idle_ms": r.IdleMs, "load_ms": r.LoadMs} {
		if ms != nil && *ms > most {
			return fault.Field(field, "want at most %d, got %d", uint64(most), *ms)
		}
	}
	if r.Replicas != nil {
		spec.Replicas = int(r.GetReplicas())
	}
	if r.Canary != nil {
		spec.Canary = float64(r.GetCanary())
	}
	if r.Pinned != nil {
		spec.Pinned = r.GetPinned()
		if spec.Pinned && r.IdleMs == nil {
			spec.Idle = 0
		}
	}
	if r.IdleMs != nil {
		spec.Idle = millis(r.GetIdleMs())
		if spec.Idle > 0 && r.Pinned == nil {
			spec.Pinned = false
		}
	}
	if r.ObserveMs != nil {
		spec.Observe = millis(r.GetObserveMs())
	}
	if r.LoadMs != nil {
		spec.Load = millis(r.GetLoadMs())
	}
	return nil
}

func millis(n uint64) time.Duration { return time.Duration(n) * time.Millisecond }

// findOffer returns the version that a name or digest stands for: a model that shards offer and a tokenizer knows.
func (s *Service) findOffer(ctx context.Context, asked string) (deploy.Version, error) {
	if asked == "" {
		return deploy.Version{}, fault.Field("model", "give the name or the digest of a model")
	}
	if d := s.deployed().Find(asked); d != nil && d.Live != nil {
		return *d.Live, nil
	}
	names := map[string]string{} // by digest
	for _, resp := range s.describeAll(ctx) {
		for _, o := range resp.GetInventory().GetOffers() {
			if asked == o.GetDigest() || asked == o.GetModel() {
				names[o.GetDigest()] = o.GetModel()
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch len(names) {
	case 0:
		return deploy.Version{}, fault.New(fault.NotFound,
			"deploy %q: no shard that takes assignments has a model of that name or digest", asked)
	case 1:
	default:
		return deploy.Version{}, fault.Field("model", "%q names several models: give one of the digests %s", asked,
			strings.Join(slices.Sorted(maps.Keys(names)), ", "))
	}
	for digest, name := range names {
		if s.models[digest] == nil {
			return deploy.Version{}, fault.New(fault.FailedPrecondition,
				"deploy %s: no tokenizer knows the model %s: start one with lamina tokenizer -m %s", asked, digest, name)
		}
		return deploy.Version{Digest: digest, Model: name}, nil
	}
	return deploy.Version{}, nil
}

// describeAll asks all shards what they have. Those that do not answer are left out.
func (s *Service) describeAll(ctx context.Context) []*shardv1.DescribeResponse {
	s.mu.Lock()
	shards := slices.Clone(s.instances["shard"])
	s.mu.Unlock()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var out []*shardv1.DescribeResponse
	for _, i := range shards {
		wg.Go(func() {
			resp, err := s.describeShard(ctx, i.Addr)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, resp)
		})
	}
	wg.Wait()
	return out
}

// answering returns the version that answers a name so far without a deployment; nil if there is none. wanted is the
// digest that is to answer it.
func (s *Service) answering(name, wanted string) (*deploy.Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deploys.state.Find(name) != nil {
		return nil, nil
	}
	found := map[string]bool{}
	for _, p := range s.pipelines {
		if p.model() == name && !p.draft && !p.dead() {
			found[p.digest] = true
		}
	}
	for _, h := range s.encoders() {
		if h.GetModel() == name {
			found[h.GetDigest()] = true
		}
	}
	if found[wanted] {
		return &deploy.Version{Digest: wanted, Model: name}, nil
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		for digest := range found {
			return &deploy.Version{Digest: digest, Model: name}, nil
		}
	}
	return nil, fault.New(fault.FailedPrecondition, "deploy %s: several versions answer it: deploy one of %s first", name,
		strings.Join(slices.Sorted(maps.Keys(found)), ", "))
}

// Undeploy takes a name out of service.
func (s *Service) Undeploy(ctx context.Context, r *routerv1.UndeployRequest) (*routerv1.UndeployResponse, error) {
	if s.placer == nil {
		return nil, errNoPlacer
	}
	current, err := s.answering(r.GetName(), "")
	if err != nil {
		return nil, err
	}
	state, err := s.changeDeployments(ctx, func(state *deploy.State) error {
		return state.Undeploy(r.GetName(), current)
	})
	if err != nil {
		return nil, err
	}
	return &routerv1.UndeployResponse{Deployment: describeDeployment(state.Find(r.GetName()))}, nil
}

// ListDeployments lists the deployments.
func (s *Service) ListDeployments(
	context.Context, *routerv1.ListDeploymentsRequest,
) (*routerv1.ListDeploymentsResponse, error) {
	return &routerv1.ListDeploymentsResponse{Deployments: describeDeployments(s.deployed())}, nil
}

func describeDeployments(state *deploy.State) []*routerv1.Deployment {
	var out []*routerv1.Deployment
	for i := range state.Deployments {
		out = append(out, describeDeployment(&state.Deployments[i]))
	}
	return out
}

func describeDeployment(d *deploy.Deployment) *routerv1.Deployment {
	version := func(v *deploy.Version) *routerv1.Version {
		if v == nil {
			return nil
		}
		return &routerv1.Version{Digest: v.Digest, Model: v.Model}
	}
	out := &routerv1.Deployment{
		Name: d.Name, State: stateOf(d), Live: version(d.Live), Next: version(d.Next), Replicas: uint32(d.Replicas),
		Canary: float32(d.Share()), ObserveMs: uint64(d.ObserveTime().Milliseconds()), Pinned: d.Pinned,
		IdleMs: uint64(d.Idle.Milliseconds()), LoadMs: uint64(d.LoadLimit().Milliseconds()), Last: d.Last,
	}
	for i := range d.Retiring {
		out.Retiring = append(out.Retiring, version(&d.Retiring[i]))
	}
	if d.Failed != nil {
		out.Failed, out.FailedReason = &routerv1.Version{Digest: d.Failed.Digest}, d.Failed.Reason
	}
	return out
}

func stateOf(d *deploy.Deployment) routerv1.DeploymentState {
	switch {
	case d.Off:
		return routerv1.DeploymentState_DEPLOYMENT_STATE_UNDEPLOYED
	case d.Next != nil && d.Next.Canary:
		return routerv1.DeploymentState_DEPLOYMENT_STATE_CANARY
	case d.Next != nil:
		return routerv1.DeploymentState_DEPLOYMENT_STATE_LOADING
	case d.Live == nil:
		return routerv1.DeploymentState_DEPLOYMENT_STATE_FAILED
	case d.Rest != deploy.Awake:
		return routerv1.DeploymentState_DEPLOYMENT_STATE_ASLEEP
	}
	return routerv1.DeploymentState_DEPLOYMENT_STATE_LIVE
}

// underNames lists served models by the names that clients use: those of deployments, and of models without one. A
// deployment whose model is not loaded is listed with what its tokenizer knows. The caller holds mu.
func (s *Service) underNames(byDigest map[string]*routerv1.Model) []*routerv1.Model {
	var out []*routerv1.Model
	state := s.deploys.state
	for digest, m := range byDigest {
		if len(state.Of(digest)) == 0 {
			out = append(out, m)
		}
	}
	for i := range state.Deployments {
		d := &state.Deployments[i]
		if d.Live == nil {
			continue
		}
		m := &routerv1.Model{Digest: d.Live.Digest}
		if known := byDigest[d.Live.Digest]; known != nil {
			m = proto.CloneOf(known)
		} else if info := s.models[d.Live.Digest]; info != nil {
			m.Vocab, m.Chat = info.vocabulary.GetSize(), info.vocabulary.GetChatTemplate()
			m.EndIds, m.Defaults = info.vocabulary.GetEndIds(), info.vocabulary.GetDefaults()
			m.Format = info.vocabulary.GetFormat()
			m.Encoder = s.offersEncoder(d.Live.Digest)
		}
		m.Name = d.Name
		out = append(out, m)
	}
	return out
}
