package router_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router"
)

// TestLoadAdapter_OfAnotherBase refuses an adapter that says that it was trained on another base, on every way in,
// unless the client accepts any.
func TestLoadAdapter_OfAnotherBase(t *testing.T) {
	base := "sha256:" + strings.Repeat("ab", 32)
	dir, d := adapterOf(t, 1, base)
	store := t.TempDir()
	m := newMesh(t, 1, 1, router.Config{AdapterDir: store})
	const want = "it was trained on the base sha256:abababababab…, and this model is sha256:fake…"
	refused := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := upload(t, m.client, "x", dir, nil)
	refused("an upload", err)
	if files, err := os.ReadDir(store); err != nil || len(files) != 0 {
		t.Errorf("it has left %v, %v", files, err)
	}
	resp, err := upload(t, m.client, "x", dir, func(o *routerv1.LoadAdapterOpen, _ *[]byte) { o.AnyBase = true })
	if err != nil || resp.GetAdapter().GetBase() != base {
		t.Fatal(resp, err)
	}
	m.mustAnswer(withAdapter("x", "of another base", 20), 20, d, nil)
	// A restart remembers that it was accepted.
	p := m.peer("again", router.Config{AdapterDir: store})
	again := &mesh{t: t, client: p.client, service: p.service}
	again.mustAnswer(withAdapter("x", "after a restart", 20), 20, d, nil)
	// A load by its digest has to accept it again, once nobody uses it.
	if _, err := m.client.UnloadAdapter(t.Context(), &routerv1.UnloadAdapterRequest{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	held := m.shards["shard-0-0"]
	eventually(t, "the router has forgotten it", func() bool { return held.loaded() == 0 })
	fresh := m.peer("fresh", router.Config{AdapterDir: t.TempDir()})
	_, err = upload(t, fresh.client, "y", dir, nil)
	refused("another router", err)
	open := &routerv1.LoadAdapterOpen{Name: "y", Digest: hex.EncodeToString(d)}
	open.AnyBase = true
	if _, err := load(t, m.client, open, nil); err != nil {
		t.Fatal(err)
	}
	m.mustAnswer(withAdapter("y", "accepted again", 20), 20, d, nil)

	// An adapter that does not say what its base is passes.
	plain, pd := adapterFolder(t, 2)
	if resp, err := upload(t, m.client, "z", plain, nil); err != nil || resp.GetAdapter().GetBase() != "" {
		t.Fatal(resp, err)
	}
	m.mustAnswer(withAdapter("z", "of an unknown base", 20), 20, pd, nil)
}

// sizeOf returns the size of the files of an adapter.
func sizeOf(t *testing.T, dir string) (n int64) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

// TestLoadAdapter_MakesRoomInTheFolder gives a name new versions until the folder is full. The versions that were
// not used for the longest time go; what requests use, what names point to and the version before stay.
func TestLoadAdapter_MakesRoomInTheFolder(t *testing.T) {
	store := t.TempDir()
	var dirs, digits []string
	var digests [][]byte
	for i := range 8 {
		dir, d := adapterFolder(t, 10+i) // numbers of the same length
		dirs, digests, digits = append(dirs, dir), append(digests, d), append(digits, fmt.Sprintf("%x", d))
	}
	limit := 4*sizeOf(t, dirs[0]) + sizeOf(t, dirs[0])/2
	m := newMesh(t, 1, 1, router.Config{AdapterDir: store, AdapterDisk: limit})
	kept := func() (out []int) {
		for i := range digits {
			if _, err := os.Stat(filepath.Join(store, digits[i])); err == nil {
				out = append(out, i)
			}
		}
		return out
	}
	age := func(i int, d time.Duration) { // times of files may be coarse
		at := time.Now().Add(-d)
		if err := os.Chtimes(filepath.Join(store, digits[i], "adapter_config.json"), at, at); err != nil {
			t.Fatal(err)
		}
	}
	must := func(name string, i int) *routerv1.Adapter {
		t.Helper()
		resp, err := upload(t, m.client, name, dirs[i], nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetAdapter()
	}
	for i := range 4 {
		must("x", i)
	}
	for i := range 3 {
		age(i, time.Hour-time.Duration(i)*time.Minute)
	}
	if got := kept(); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Fatalf("the folder has %v", got)
	}
	// A request goes on with version 0, which is older than all others.
	m.slow(50 * time.Millisecond)
	var wg sync.WaitGroup
	began := make(chan struct{})
	if _, err := load(t, m.client, &routerv1.LoadAdapterOpen{Name: "old", Digest: digits[0]}, nil); err != nil {
		t.Fatal(err)
	}
	begin := sync.OnceFunc(func() { close(began) })
	wg.Go(func() {
		defer begin() // if it fails
		m.mustAnswer(withAdapter("old", "a long request", 900), 900, digests[0], func(n int) {
			if n == 5 {
				begin()
			}
		})
	})
	<-began
	if _, err := m.client.UnloadAdapter(t.Context(), &routerv1.UnloadAdapterRequest{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	age(0, 2*time.Hour)
	a := must("x", 4)
	if got := kept(); !slices.Equal(got, []int{0, 2, 3, 4}) {
		t.Errorf("after the fifth the folder has %v", got)
	}
	if len(a.GetEarlier()) != 3 || slices.Contains(a.GetEarlier(), "sha256:"+digits[1]) {
		t.Errorf("the name remembers %v", a.GetEarlier())
	}
	if _, err := load(t, m.client, &routerv1.LoadAdapterOpen{Name: "x", Digest: digits[1]}, nil); status.Code(err) !=
		codes.NotFound {
		t.Errorf("a version that is gone: %v", err)
	}
	must("y", 5) // takes the place of 2: 3 is the version before, 0 is in use
	if got := kept(); !slices.Equal(got, []int{0, 3, 4, 5}) {
		t.Errorf("after the sixth the folder has %v", got)
	}
	_, err := upload(t, m.client, "z", dirs[6], nil)
	full := fmt.Sprintf("of %d already", limit)
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), full) {
		t.Errorf("with all in use: %v", err)
	}
	if got := kept(); !slices.Equal(got, []int{0, 3, 4, 5}) {
		t.Errorf("after one that has found no room the folder has %v", got)
	}
	m.slow(0)
	wg.Wait()
	if _, err := load(t, m.client, &routerv1.LoadAdapterOpen{Name: "x", Digest: "previous"}, nil); err != nil {
		t.Fatal(err)
	}
	m.mustAnswer(withAdapter("x", "rolled back", 20), 20, digests[3], nil)
	must("z", 6) // the request has ended, so that 0 goes
	if got := kept(); !slices.Equal(got, []int{3, 4, 5, 6}) {
		t.Errorf("after the seventh the folder has %v", got)
	}
}

// TestLoadAdapter_FolderIsFullOfNames gives every adapter a name, up to the most that the folder may have.
func TestLoadAdapter_FolderIsFullOfNames(t *testing.T) {
	store := t.TempDir()
	for i := range 256 { // stored by an earlier process, and named by none
		dir := filepath.Join(store, fmt.Sprintf("%064x", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	index := strings.Builder{}
	for i := range 255 {
		fmt.Fprintf(&index, `,{"model": "sha256:other", "name": "n%d", "versions": [{"digest": "sha256:%064x"}]}`, i, i)
	}
	text := []byte("[" + index.String()[1:] + "]")
	if err := os.WriteFile(filepath.Join(store, "adapters.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMesh(t, 1, 1, router.Config{AdapterDir: store})
	for i, want := range []codes.Code{codes.OK, codes.ResourceExhausted} { // the one without a name makes room
		dir, d := adapterFolder(t, i)
		_, err := upload(t, m.client, "x", dir, nil)
		if status.Code(err) != want || err != nil && !strings.Contains(err.Error(), "has 256 of at most 256") {
			t.Errorf("adapter %d: %v", i, err)
		}
		if err == nil {
			m.mustAnswer(withAdapter("x", "the last one", 10), 10, d, nil)
		}
	}
}
