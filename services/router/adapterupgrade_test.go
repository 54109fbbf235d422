package router_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// The base of an adapter gets a new version. Requests with the adapter are answered by the live version as long as it
// is one, and are then refused by the name of both versions. A request without the adapter goes on.
func TestDeploy_AdapterOfTheVersionBefore(t *testing.T) {
	dir, sum := adapterFolder(t, 1)
	synctest.Test(t, func(t *testing.T) {
		m, _ := deployMeshWith(t, router.Placement{}, 2, 1, map[string]string{digest: "fake", likeDigest: "like"},
			[]router.AdapterSource{{Model: digest, Name: "law", Dir: dir}})
		m.served("fake")
		m.canary(1, 20*time.Second)
		models := []string{"fake:law", "law"}
		for _, model := range models {
			a, err := m.generate(t.Context(), named(model, "hello", 5), nil)
			if err != nil || a.text != expectWith("hello", 5, sum) || a.started.GetDigest() != digest {
				t.Errorf("%s beside a canary: %q, %v", model, a.text, err)
			}
		}
		<-time.After(25 * time.Second)
		eventually(t, "the new version is live", func() bool {
			d := m.deployment("fake")
			return d.GetState() == routerv1.DeploymentState_DEPLOYMENT_STATE_LIVE &&
				d.GetLive().GetDigest() == likeDigest
		})
		for _, model := range models {
			_, err := m.generate(t.Context(), named(model, "hello", 5), nil)
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), `adapter "law"`) ||
				!strings.Contains(err.Error(), digest) || !strings.Contains(err.Error(), likeDigest) {
				t.Errorf("%s after the upgrade: %v", model, err)
			}
		}
		a, err := m.generate(t.Context(), named("fake", "hello", 5), nil)
		if err != nil || a.text != expectOf(likeDigest, "hello", 5) {
			t.Errorf("without the adapter: %q, %v", a.text, err)
		}
	})
}
