package router_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router"
)

// TestAwaitAdapters_SourceThatIsRefused does not wait for an adapter that will never come.
func TestAwaitAdapters_SourceThatIsRefused(t *testing.T) {
	dir, _ := adapterOf(t, 1, "sha256:"+strings.Repeat("ab", 32))
	m := newMesh(t, 1, 1, router.Config{Adapters: []router.AdapterSource{{Name: "x", Dir: dir}}})
	err := m.service.AwaitAdapters(patient(t))
	if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), `load adapter "x": `) {
		t.Errorf("the error is %v", err)
	}
}

// TestService_AdapterThatNoStageCanLoad says why a request cannot run instead of promising that the adapter comes.
func TestService_AdapterThatNoStageCanLoad(t *testing.T) {
	dir, _ := adapterFolder(t, 1)
	m := newMesh(t, 1, 1, router.Config{Adapters: []router.AdapterSource{{Name: "x", Dir: dir}}})
	shard := m.shards["shard-0-0"]
	if err := m.service.AwaitAdapters(patient(t)); err != nil {
		t.Fatal(err)
	}
	shard.mu.Lock()
	shard.refuseLoad = fault.New(fault.Exhausted, "no room for the adapter")
	shard.mu.Unlock()
	shard.forgetAdapters()
	eventually(t, "a request is told that there is no room", func() bool {
		_, err := m.generate(t.Context(), withAdapter("x", "prompt", 4), nil)
		return status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "cannot be loaded") &&
			strings.Contains(err.Error(), "no room for the adapter")
	})
}

// TestLoadAdapter_IndexThatCannotBeWritten changes nothing, and the next change works.
func TestLoadAdapter_IndexThatCannotBeWritten(t *testing.T) {
	store := t.TempDir()
	m := newMesh(t, 1, 1, router.Config{AdapterDir: store})
	first, d := adapterFolder(t, 1)
	if _, err := upload(t, m.client, "x", first, nil); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(store, "adapters.json")
	if err := os.Remove(index); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(index, adapter.ConfigFile), 0o755); err != nil { // no file can replace it
		t.Fatal(err)
	}
	second, e := adapterFolder(t, 2)
	if _, err := upload(t, m.client, "x", second, nil); status.Code(err) != codes.Unavailable {
		t.Fatalf("the error is %v", err)
	}
	m.mustAnswer(withAdapter("x", "still the first", 12), 12, d, nil)
	if err := os.RemoveAll(index); err != nil {
		t.Fatal(err)
	}
	if _, err := upload(t, m.client, "x", second, nil); err != nil {
		t.Fatal(err)
	}
	m.mustAnswer(withAdapter("x", "now the second", 12), 12, e, nil)
}
