package httpapi_test

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// adapters returns adapters of the given names.
func adapters(names ...string) (out []*routerv1.Adapter) {
	for _, name := range names {
		out = append(out, &routerv1.Adapter{Name: name})
	}
	return out
}

func TestFindModel_MeansWhatAGenerationMeans(t *testing.T) {
	a := &routerv1.Model{Name: "a", Digest: "sha256:1", Adapters: adapters("both", "law")}
	b := &routerv1.Model{Name: "b", Digest: "sha256:2", Adapters: adapters("both", "sql")}
	for _, tc := range []struct {
		name string
		of   []*routerv1.Model
		want *routerv1.Model
	}{
		{"a", []*routerv1.Model{a, b}, a}, {"sha256:2", []*routerv1.Model{a, b}, b},
		{"b:both", []*routerv1.Model{a, b}, b}, {"sha256:2:sql", []*routerv1.Model{a, b}, b},
		{"law", []*routerv1.Model{a, b}, a}, {":sql", []*routerv1.Model{a, b}, b},
		{"both", []*routerv1.Model{a, b}, nil}, {"a:sql", []*routerv1.Model{a, b}, nil},
		{"", []*routerv1.Model{a, b}, nil}, {"", []*routerv1.Model{a}, a}, {"", nil, nil}, {":", []*routerv1.Model{a}, nil},
	} {
		if got := httpapi.FindModel(tc.of, tc.name); got != tc.want {
			t.Errorf("%q of %d models is %v, want %v", tc.name, len(tc.of), got, tc.want)
		}
	}
}

func TestList_HasOnlyWhatTheKeyMayUse(t *testing.T) {
	models := []*routerv1.Model{{Name: "a", Digest: "sha256:1", Adapters: adapters("law")}}
	for allowed, want := range map[string][]string{"": {"a", "a:law"}, "a": {"a", "a:law"}, "a:law": {"a:law"}} {
		ctx := t.Context()
		if allowed != "" {
			ctx = withKey(t, auth.Key{Models: []string{allowed}})
		}
		var got []string
		for _, m := range httpapi.List(ctx, models) {
			got = append(got, m.ID)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("a key for %q sees %q, want %q", allowed, got, want)
		}
	}
}

// withKey returns a context of requests by the owner of a key.
func withKey(t *testing.T, k auth.Key) context.Context {
	t.Helper()
	k.Roles = []auth.Role{auth.User}
	k, secret, err := auth.NewKey(k, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p, err := auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{}).Authenticate(secret)
	if err != nil {
		t.Fatal(err)
	}
	return auth.WithPrincipal(t.Context(), p)
}
