package trainer

import (
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/adapter"
)

// The policies of runs whose names begin alike have names of their own, which routers accept.
func TestTraining_PolicyNamesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, end := range []string{"a", "b"} {
		name := strings.Repeat("x", 63) + end
		tr := &training{run: newRun(nil, &Manifest{Name: name}, []byte(name), "")}
		policy := tr.policyName()
		if err := adapter.CheckName(policy); err != nil || seen[policy] {
			t.Errorf("run %s has the policy %q: %v, again %v", name, policy, err, seen[policy])
		}
		seen[policy] = true
	}
}
