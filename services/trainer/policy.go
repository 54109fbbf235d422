package trainer

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// policyFolder is the folder of the adapter that was published last, in the folder of a run.
const policyFolder = "policy"

// unpublishTime is how long the end of a run waits for the router.
const unpublishTime = 10 * time.Second

// policyName is the name under which a run publishes its adapter. The name is replaced at each step and removed at the
// end, so it has the manifest's hash in it: no other run and no user has an adapter of this name.
func (t *training) policyName() string {
	return fmt.Sprintf("%.40s-policy-%.16s", t.run.name, t.run.hash)
}

// publishPolicy loads the adapter of the last checkpoint, or the initial one, at the router and returns its digest.
func (t *training) publishPolicy(ctx context.Context, client routerv1.RouterServiceClient) (string, error) {
	var a *adapter.Adapter
	var err error
	switch l := t.run.plan.lowRank; {
	case t.last != nil:
		a, err = t.adapter()
	case l.from != "":
		a, err = adapter.Open(l.from)
	default:
		a, err = t.spec.NewAdapterFor(*l.config, t.run.manifest.Seed) // as stages begin with
	}
	if err != nil {
		return "", err
	}
	a.Dropout, a.BaseDigest = 0, t.initial.GetDigest()
	dir := filepath.Join(t.run.dir, policyFolder)
	if err := adapter.Write(dir, a); err != nil {
		return "", err
	}
	open := &routerv1.LoadAdapterOpen{Model: t.initial.GetDigest(), Name: t.policyName()}
	resp, err := loadAdapter(ctx, client, open, dir)
	if err != nil {
		return "", fault.Wrap(fault.CodeOf(err), err, "publish the adapter of step %d", t.step())
	}
	return resp.GetAdapter().GetDigest(), nil
}

// unpublishPolicy removes the run's adapter from the router. It is best effort: the name does no harm.
func (t *training) unpublishPolicy(ctx context.Context) {
	if t.client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, unpublishTime)
	defer cancel()
	if _, err := t.client.UnloadAdapter(ctx, &routerv1.UnloadAdapterRequest{Model: t.initial.GetDigest(),
		Name: t.policyName()}); err != nil {
		t.run.service.log.Debug("unload the adapter of a run", "run", t.run.name, "error", rpc.FromStatus(err))
	}
}
