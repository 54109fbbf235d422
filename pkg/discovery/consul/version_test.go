package consul_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
)

func TestOlder_ComparesReleases(t *testing.T) {
	for version, want := range map[string]bool{
		"1.22.7": true, "2.0.9": true, "2.1.0-beta1": true, "2.1": true, "2.1.0": false, "2.1.0+ent": false,
		"2.1.1": false, "2.10.0": false,
		"10.0.0": false, "": false, "unknown": false,
	} {
		if got := consul.Older(version, consul.Floor); got != want {
			t.Errorf("%q is older: %v, want %v", version, got, want)
		}
	}
}

func TestRegistry_AsksTheAgentForItsVersion(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/agent/self" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		_, _ = w.Write([]byte(`{"Config": {"Version": "1.22.7", "Server": true}, "Member": {}}`))
	}))
	defer s.Close()
	r, err := consul.New(consul.Config{Addr: s.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	version, err := r.Version(t.Context())
	if err != nil || version != "1.22.7" {
		t.Errorf("version %q, %v", version, err)
	}
	s.Close()
	if _, err := r.Version(t.Context()); err == nil {
		t.Error("Version returns no error without an agent")
	}
}
