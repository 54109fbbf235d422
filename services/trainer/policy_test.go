package trainer

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// claimed takes the next claim on a run's folder.
func claimed(t *testing.T, dir string) *checkpoint.Store {
	t.Helper()
	store, err := checkpoint.New(checkpoint.Dir(dir), checkpoint.Name).Take()
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// namingRouter remembers which names it has.
type namingRouter struct {
	routerv1.RouterServiceClient
	names []string
}

func (r *namingRouter) UnloadAdapter(
	_ context.Context, q *routerv1.UnloadAdapterRequest, _ ...grpc.CallOption,
) (*routerv1.UnloadAdapterResponse, error) {
	r.names = slices.DeleteFunc(r.names, func(name string) bool { return name == q.GetName() })
	return &routerv1.UnloadAdapterResponse{}, nil
}

// publish is what publishPolicy does at the router.
func (r *namingRouter) publish(t *testing.T, leader *training, dir string) {
	t.Helper()
	if err := leader.beginTerm(t.Context(), r, dir); err != nil {
		t.Fatal(err)
	}
	if leader.client = r; !slices.Contains(r.names, leader.policyName()) {
		r.names = append(r.names, leader.policyName())
	}
}

// A leader that was deposed without noticing publishes once more and ends. The name of its successor stays. The next
// leader removes the name of one that was killed.
func TestTraining_DeposedLeaderLeavesThePolicyOfItsSuccessor(t *testing.T) {
	dir := t.TempDir()
	service := &Service{log: slog.New(slog.DiscardHandler)}
	leader := func() *training {
		return &training{run: newRun(service, &Manifest{Name: "run"}, []byte("run"), dir), store: claimed(t, dir),
			initial: &shardv1.InitialWeights{}}
	}
	router := &namingRouter{}
	deposed, killed := leader(), (*training)(nil)
	router.publish(t, deposed, dir)
	killed = leader()
	router.publish(t, killed, dir)
	if want := []string{killed.policyName()}; !slices.Equal(router.names, want) {
		t.Errorf("after the second leader has published there are %q, want %q", router.names, want)
	}
	router.publish(t, deposed, dir) // it goes on
	deposed.unpublishPolicy(t.Context())
	if want := []string{killed.policyName()}; !slices.Equal(router.names, want) {
		t.Errorf("after the end of the deposed leader there are %q, want %q", router.names, want)
	}
	last := leader()
	router.publish(t, last, dir)
	if want := []string{last.policyName()}; !slices.Equal(router.names, want) {
		t.Errorf("after the third leader has published there are %q, want %q", router.names, want)
	}
	last.unpublishPolicy(t.Context())
	if len(router.names) > 0 {
		t.Errorf("at the end there are %q", router.names)
	}
	if text, err := os.ReadFile(dir + "/" + termFile); err != nil || string(text) != "3" {
		t.Errorf("the term is %q, %v", text, err)
	}
}

// The policies of runs whose names begin alike have names of their own, which routers accept.
func TestTraining_PolicyNamesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, end := range []string{"a", "b"} {
		name := strings.Repeat("x", 63) + end
		tr := &training{run: newRun(nil, &Manifest{Name: name}, []byte(name), ""), store: claimed(t, t.TempDir())}
		policy := tr.policyName()
		if err := adapter.CheckName(policy); err != nil || seen[policy] {
			t.Errorf("run %s has the policy %q: %v, again %v", name, policy, err, seen[policy])
		}
		seen[policy] = true
	}
}
