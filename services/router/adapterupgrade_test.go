package router_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// expectLike is expectWith for the fake model of likeDigest.
func expectLike(prompt string, n int, sum []byte) string {
	answer := answerOf(likeDigest)
	log := []uint32{}
	for _, b := range []byte(prompt) {
		log = append(log, uint32(b))
	}
	var text []byte
	for i := range n {
		id := picked(answer(salted(log, sum)), i)
		log, text = append(log, id), append(text, byte(id))
	}
	return string(text)
}

// upgradeMesh serves a model with adapters, beside another version that is held and not deployed yet.
func upgradeMesh(t *testing.T, adapters []router.AdapterSource) (*mesh, []*fakeHost) {
	m, hosts := deployMeshWith(t, router.Placement{}, 2, 1, map[string]string{digest: "fake", likeDigest: "like"},
		adapters)
	m.served("fake")
	m.served("like")
	eventually(t, "the adapters are loaded", func() bool {
		resp, err := m.client.ListAdapters(t.Context(), &routerv1.ListAdaptersRequest{})
		return err == nil && len(resp.GetAdapters()) == len(adapters) && resp.GetAdapters()[0].GetPipelines() > 0
	})
	return m, hosts
}

// upgrade deploys likeDigest, and returns which adapters the new version does not serve, until it takes requests.
func (m *mesh) upgrade(lasts time.Duration) map[string]string {
	m.t.Helper()
	observe, left := uint64(lasts.Milliseconds()), map[string]string{}
	stream, err := m.client.Deploy(m.t.Context(), &routerv1.DeployRequest{Model: likeDigest, Name: "fake",
		ObserveMs: &observe})
	for err == nil {
		var resp *routerv1.DeployResponse
		if resp, err = stream.Recv(); err != nil {
			break
		}
		for _, a := range resp.GetAdaptersLeft() {
			if a.GetDigest() != likeDigest {
				m.t.Errorf("adapter %s is not served by %s", a.GetName(), a.GetDigest())
			}
			left[a.GetName()] = a.GetReason()
		}
		if resp.GetDeployment().GetState() == routerv1.DeploymentState_DEPLOYMENT_STATE_CANARY {
			return left
		}
	}
	m.t.Fatal(err)
	return nil
}

// upgraded waits until the new version is the live one.
func (m *mesh) upgraded() {
	m.t.Helper()
	eventually(m.t, "the new version is live", func() bool {
		d := m.deployment("fake")
		return d.GetState() == routerv1.DeploymentState_DEPLOYMENT_STATE_LIVE && d.GetLive().GetDigest() == likeDigest
	})
}

// A deployment moves to a new version. The adapter that may be served on any base goes along, and Deploy names the one
// that may not. What is done to the live version's name meanwhile counts for the new version, but not where its own
// name was changed.
func TestDeploy_AdaptersGoAlong(t *testing.T) {
	law, lawSum := adapterFolder(t, 1)
	tax, _ := adapterFolder(t, 2)
	newer, newerSum := adapterFolder(t, 3)
	for name, tc := range map[string]struct {
		change func(m *mesh) error // while the new version is a canary
		want   []byte              // adapter of the name law on the new version; nil for none
	}{
		"nothing changes": {change: func(*mesh) error { return nil }, want: lawSum},
		"the live version's adapter is replaced": {want: newerSum, change: func(m *mesh) error {
			_, err := upload(m.t, m.client, "law", newer, func(o *routerv1.LoadAdapterOpen, _ *[]byte) {
				o.Model, o.AnyBase = digest, true
			})
			return err
		}},
		"the live version's adapter is replaced by one for it alone": {change: func(m *mesh) error {
			_, err := upload(m.t, m.client, "law", newer, func(o *routerv1.LoadAdapterOpen, _ *[]byte) {
				o.Model = digest
			})
			return err
		}},
		"the live version's adapter is unloaded": {change: func(m *mesh) error {
			_, err := m.client.UnloadAdapter(m.t.Context(),
				&routerv1.UnloadAdapterRequest{Model: digest, Name: "law"})
			return err
		}},
		"the new version's adapter is unloaded": {change: func(m *mesh) error {
			_, err := m.client.UnloadAdapter(m.t.Context(),
				&routerv1.UnloadAdapterRequest{Model: likeDigest, Name: "law"})
			return err
		}},
		"the new version's adapter is replaced": {want: newerSum, change: func(m *mesh) error {
			_, err := upload(m.t, m.client, "law", newer, func(o *routerv1.LoadAdapterOpen, _ *[]byte) {
				o.Model, o.AnyBase = likeDigest, true
			})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, _ := upgradeMesh(t, []router.AdapterSource{{Model: digest, Name: "law", Dir: law, AnyBase: true},
					{Model: digest, Name: "tax", Dir: tax}})
				left := m.upgrade(20 * time.Second)
				if len(left) != 1 || !strings.Contains(left["tax"], digest) {
					t.Errorf("adapters %v are not served by the new version, want tax", left)
				}
				a, err := m.generate(t.Context(), named("fake:law", "hello", 5), nil)
				if err != nil || a.text != expectWith("hello", 5, lawSum) {
					t.Errorf("beside the canary: %q, %v", a.text, err)
				}
				<-time.After(time.Second)
				if err := tc.change(m); err != nil {
					t.Fatal(err)
				}
				<-time.After(25 * time.Second)
				m.upgraded()
				a, err = m.generate(t.Context(), named("fake:law", "hello", 5), nil)
				switch {
				case tc.want == nil && err == nil:
					t.Errorf("the adapter that is gone answers %q", a.text)
				case tc.want != nil && (err != nil || a.text != expectLike("hello", 5, tc.want)):
					t.Errorf("on the new version: %q, %v, want %q", a.text, err, expectLike("hello", 5, tc.want))
				}
				_, err = m.generate(t.Context(), named("fake:tax", "hello", 5), nil)
				if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), `adapter "tax"`) {
					t.Errorf("the adapter of the version before: %v", err)
				}
			})
		})
	}
}

// offered reports whether a version has an adapter of a name.
func (m *mesh) offered(digest, name string) bool {
	m.t.Helper()
	resp, err := m.client.ListAdapters(m.t.Context(), &routerv1.ListAdaptersRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	return slices.ContainsFunc(resp.GetAdapters(), func(a *routerv1.Adapter) bool {
		return a.GetModelDigest() == digest && a.GetName() == name
	})
}

// A version with adapters that went along is given up. Their names go with it, also if the folder of the router cannot
// be written at first, but not a name that was changed there, nor those of the live version.
func TestDeploy_AdaptersGoWithAVersionThatIsGivenUp(t *testing.T) {
	law, lawSum := adapterFolder(t, 1)
	tax, _ := adapterFolder(t, 2)
	for name, fails := range map[string]bool{"at once": false, "once the index can be written": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := t.TempDir()
				m := newMesh(t, 0, 0, router.Config{ProbeLimit: 4 * time.Second, AdapterDir: store,
					Placement: &router.Placement{Holder: "router", KVLeast: contextLen, KVMost: contextLen},
					Adapters: []router.AdapterSource{{Model: digest, Name: "law", Dir: law, AnyBase: true},
						{Model: digest, Name: "own", Dir: law, AnyBase: true}}})
				for _, host := range []string{"host-0", "host-1"} {
					m.addHost(host, 1, map[string]string{digest: "fake", likeDigest: "like"})
				}
				m.served("fake")
				m.served("like")
				m.upgrade(time.Hour)
				eventually(t, "the adapters have gone along", func() bool {
					return m.offered(likeDigest, "law") && m.offered(likeDigest, "own")
				})
				if _, err := upload(t, m.client, "own", tax, func(o *routerv1.LoadAdapterOpen, _ *[]byte) {
					o.Model, o.AnyBase = likeDigest, true
				}); err != nil {
					t.Fatal(err)
				}
				index := filepath.Join(store, "adapters.json")
				if fails {
					err := errors.Join(os.Remove(index), os.MkdirAll(filepath.Join(index, "in the way"), 0o755))
					if err != nil {
						t.Fatal(err)
					}
				}
				if _, err := m.deploy(t.Context(), &routerv1.DeployRequest{Model: digest, Name: "fake"}); err != nil {
					t.Fatal(err)
				}
				<-time.After(10 * time.Second)
				if m.offered(likeDigest, "law") != fails {
					t.Errorf("the name is there: %v, want %v", !fails, fails)
				}
				if fails {
					if err := os.RemoveAll(index); err != nil {
						t.Fatal(err)
					}
				}
				<-time.After(2 * time.Minute)
				if m.offered(likeDigest, "law") || !m.offered(likeDigest, "own") {
					t.Error("the version has the name that went along, or has lost the one that was changed there")
				}
				a, err := m.generate(t.Context(), named("fake:law", "hello", 5), nil)
				if err != nil || a.text != expectWith("hello", 5, lawSum) {
					t.Errorf("on the live version: %q, %v", a.text, err)
				}
			})
		})
	}
}

// The shards refuse an adapter for the new version, whose layers have other shapes. Deploy says so while the version is
// a canary, and a request with the adapter is told as soon as the version is live.
func TestDeploy_AnAdapterThatDoesNotFitTheNewVersion(t *testing.T) {
	law, _ := adapterFolder(t, 1)
	synctest.Test(t, func(t *testing.T) {
		m, hosts := upgradeMesh(t, []router.AdapterSource{{Model: digest, Name: "law", Dir: law, AnyBase: true}})
		for _, h := range hosts {
			h.mu.Lock()
			for _, s := range h.spans {
				if s.digest == likeDigest {
					s.mu.Lock()
					s.refuseLoad = fault.Field("modules", "q_proj has 2 columns, and the layer 3")
					s.mu.Unlock()
				}
			}
			h.mu.Unlock()
		}
		observe := uint64(20_000)
		stream, err := m.client.Deploy(t.Context(), &routerv1.DeployRequest{Model: likeDigest, Name: "fake",
			ObserveMs: &observe})
		told := ""
		for err == nil {
			var resp *routerv1.DeployResponse
			resp, err = stream.Recv()
			for _, a := range resp.GetAdaptersLeft() {
				told += a.GetName() + ": " + a.GetReason() + "\n"
			}
		}
		if !errors.Is(err, io.EOF) || strings.Count(told, "\n") != strings.Count(told, "law: ") ||
			!strings.Contains(told, "q_proj has 2 columns") {
			t.Errorf("the deployment ends with %v and tells %q", err, told)
		}
		_, err = m.generate(t.Context(), named("fake:law", "hello", 5), nil)
		if err == nil || !strings.Contains(err.Error(), "q_proj has 2 columns") {
			t.Errorf("on the new version: %v", err)
		}
	})
}

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
		m.upgraded()
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
