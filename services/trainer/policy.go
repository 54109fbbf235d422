package trainer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// policyFolder is the folder of the adapter that was published last, in the folder of a run.
const policyFolder = "policy"

// unpublishTime is how long the end of a run waits for the router.
const unpublishTime = 10 * time.Second

// termFile is the file in policyFolder that has the term of the leader that has published last.
const termFile = "term"

// policyName is the name under which a run publishes its adapter. The name is replaced at each step and removed at the
// end, so it has the manifest's hash in it: no other run and no user has an adapter of this name. It has the number of
// the claim on the run's folder, too: a leader that was deposed without noticing replaces and removes only its own
// name, whatever its successor has published.
func (t *training) policyName() string { return t.policyIn(t.store.Term()) }

// policyIn is policyName for the leader of a term.
func (t *training) policyIn(term uint64) string {
	return fmt.Sprintf("%.30s-policy-%.12s-%d", t.run.name, t.run.hash, term)
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
	if err := t.beginTerm(ctx, client, dir); err != nil {
		return "", err
	}
	open := &routerv1.LoadAdapterOpen{Model: t.initial.GetDigest(), Name: t.policyName()}
	resp, err := loadAdapter(ctx, client, open, dir)
	if err != nil {
		return "", fault.Wrap(fault.CodeOf(err), err, "publish the adapter of step %d", t.step())
	}
	return resp.GetAdapter().GetDigest(), nil
}

// beginTerm notes the term of this leader before it publishes for the first time, and removes the name of the leader
// before, which may have been killed. The name of a later one stays.
func (t *training) beginTerm(ctx context.Context, client routerv1.RouterServiceClient, dir string) error {
	path, term := filepath.Join(dir, termFile), t.store.Term()
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "read who has published the adapter of run %s", t.run.name)
	}
	before, err := strconv.ParseUint(string(text), 10, 63)
	if err == nil && before >= term {
		return nil
	}
	if err := weights.WriteFile(path, func(w io.Writer) error {
		_, err := fmt.Fprint(w, term)
		return err
	}); err != nil {
		return fault.Wrap(fault.Unavailable, err, "note who publishes the adapter of run %s", t.run.name)
	}
	if err == nil {
		t.unload(ctx, client, t.policyIn(before))
	}
	return nil
}

// unpublishPolicy removes the run's adapter from the router.
func (t *training) unpublishPolicy(ctx context.Context) {
	if t.client != nil {
		t.unload(ctx, t.client, t.policyName())
	}
}

// unload removes a name of the run from the router. It is best effort: the name does no harm.
func (t *training) unload(ctx context.Context, client routerv1.RouterServiceClient, name string) {
	ctx, cancel := context.WithTimeout(ctx, unpublishTime)
	defer cancel()
	if _, err := client.UnloadAdapter(ctx, &routerv1.UnloadAdapterRequest{Model: t.initial.GetDigest(),
		Name: name}); err != nil {
		t.run.service.log.Debug("unload the adapter of a run", "run", t.run.name, "adapter", name, "error",
			rpc.FromStatus(err))
	}
}
