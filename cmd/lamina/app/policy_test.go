package app_test

import (
	"net/http"
	"strings"
	"testing"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/auth"
)

// TestPolicy_EveryMethodHasOne walks every gRPC service in the program. It fails for a method without a policy, and
// for a policy of a method that does not exist.
func TestPolicy_EveryMethodHasOne(t *testing.T) {
	_, _, _ = healthv1.File_grpc_health_v1_health_proto, reflectionv1.File_grpc_reflection_v1_reflection_proto,
		reflectionv1alpha.File_grpc_reflection_v1alpha_reflection_proto
	methods, walked := auth.Methods(), map[string]bool{}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			if name := string(
				s.FullName(),
			); !strings.HasPrefix(name, "lamina.") && !strings.HasPrefix(name, "inference.") &&
				!strings.HasPrefix(name, "grpc.health.") &&
				!strings.HasPrefix(name, "grpc.reflection.") {
				continue // a library's own, which nothing serves
			}
			for j := range s.Methods().Len() {
				name := "/" + string(s.FullName()) + "/" + string(s.Methods().Get(j).Name())
				walked[name] = true
				if _, ok := methods[name]; !ok {
					t.Errorf("%s has no policy: add it to Methods of pkg/auth", name)
				}
			}
		}
		return true
	})
	if len(walked) < 42 {
		t.Errorf("only %d methods were found", len(walked))
	}
	for name := range methods {
		if !walked[name] {
			t.Errorf("%s has a policy and does not exist", name)
		}
	}
}

// TestPolicy_EveryRouteHasOne does the same for HTTP.
func TestPolicy_EveryRouteHasOne(t *testing.T) {
	rules, routes := auth.Routes(), app.Routes()
	for _, pattern := range routes {
		if _, ok := rules[pattern]; !ok {
			t.Errorf("%s has no policy: add it to Routes of pkg/auth", pattern)
		}
		if method, _, ok := strings.Cut(pattern, " "); !ok || method != strings.ToUpper(method) ||
			method == http.MethodOptions {
			t.Errorf("%s: a route begins with its method", pattern)
		}
	}
	if len(routes) < 25 {
		t.Errorf("only %d routes were found: %q", len(routes), routes)
	}
}
