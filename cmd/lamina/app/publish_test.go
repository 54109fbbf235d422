package app_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// streamed is a stream of the test: which prompt it continues, with which adapter, and what it has got.
type streamed struct {
	prompt int
	digest string
	ids    []uint32
}

// stream runs one request to its end.
func stream(ctx context.Context, router routerv1.RouterServiceClient, prompt int, adapter string) (streamed, error) {
	out := streamed{prompt: prompt}
	zero := float32(0)
	s, err := router.Generate(ctx, &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_TokenIds{
			TokenIds: &routerv1.TokenIds{Ids: []uint32{5, uint32(10 + prompt), 7, uint32(20 + 3*prompt)}},
		},
		MaxTokens: 120, IgnoreEnd: true, Sampling: &routerv1.Sampling{Temperature: &zero}, Adapter: adapter,
	})
	if err != nil {
		return out, err
	}
	for finished := false; ; {
		r, err := s.Recv()
		if err == io.EOF {
			if !finished || len(out.ids) != 120 {
				return out, fault.New(fault.Internal, "%d tokens, finished: %v", len(out.ids), finished)
			}
			return out, nil
		}
		if err != nil {
			return out, err
		}
		switch {
		case r.GetStarted() != nil:
			out.digest = r.GetStarted().GetAdapter()
		case r.GetToken() != nil:
			out.ids = append(out.ids, r.GetToken().GetId())
		case r.GetFinished() != nil:
			finished = true
		}
	}
}

// sendFolder sends the adapter in a folder to a router, or for an empty dir the digest that open has.
func sendFolder(
	t *testing.T, ctx context.Context, router routerv1.RouterServiceClient, open *routerv1.LoadAdapterOpen, dir string,
) (*routerv1.LoadAdapterResponse, error) {
	t.Helper()
	s, err := router.LoadAdapter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	if dir != "" {
		if open.Config, err = os.ReadFile(filepath.Join(dir, adapter.ConfigFile)); err != nil {
			t.Fatal(err)
		}
		if data, err = os.ReadFile(filepath.Join(dir, adapter.WeightsFile)); err != nil {
			t.Fatal(err)
		}
		open.Size = uint64(len(data))
	}
	frames := []*routerv1.LoadAdapterRequest{{Frame: &routerv1.LoadAdapterRequest_Open{Open: open}}}
	for piece := range slices.Chunk(data, 1<<20) {
		frames = append(frames, &routerv1.LoadAdapterRequest{Frame: &routerv1.LoadAdapterRequest_Data{Data: piece}})
	}
	for _, f := range frames {
		if s.Send(f) != nil { // CloseAndRecv gives the reason
			break
		}
	}
	return s.CloseAndRecv()
}

// TestRuns_AdapterIsPublishedWhenTheRunIsDone trains an adapter beside streams that use another one under the name
// that the run publishes. When the run is done, new streams have the new adapter. Then the name is rolled back. No
// stream fails, and each one has the bytes of one version from its first token to its last.
func TestRuns_AdapterIsPublishedWhenTheRunIsDone(t *testing.T) {
	base := sharedModel(t, "tiny", "llama")
	raw := adapterManifest(t, "llama", examplesOf(30), map[string]any{
		"steps": 3, "publish": map[string]any{"name": "x"},
		"learning_rate": map[string]any{"type": "constant", "max": 0.05},
		"adapter":       map[string]any{"rank": 2, "modules_to_save": []string{"lm_head", "embed_tokens", "norm"}},
	})
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	runs, store := t.TempDir(), t.TempDir()
	keys, secrets := keyFile(t, auth.Key{Name: "x", Roles: []auth.Role{auth.Operator}, Models: []string{"llama:x"}},
		auth.Key{Name: "all", Roles: []auth.Role{auth.Operator}, Models: []string{"llama"}})
	m, router := startMesh(t, ctx, app.MeshConfig{
		Model: base, Stages: 2, Replicas: 2, AdapterDir: store, Train: true, Kernels: app.Kernels{Set: set, Threads: 2},
		Runs: app.TrainerConfig{Dir: runs, AllowPaths: []string{"/"}},
		GRPC: "127.0.0.1:0", Access: app.AccessConfig{Keys: keys}, // in one process the trainer needs no key
	})
	conn, err := m.Trainer()
	if err != nil {
		t.Fatal(err)
	}
	trainer := &runsMesh{t, ctx, m, trainerv1.NewTrainerServiceClient(conn)}
	first := writeAdapters(t, base, 1)[0]
	before, err := sendFolder(t, ctx, router, &routerv1.LoadAdapterOpen{Name: "x"}, first.Dir)
	if err != nil {
		t.Fatal(err)
	}
	old := before.GetAdapter().GetDigest()

	const prompts = 3
	var mu sync.Mutex
	var all []streamed
	changed := make(chan struct{}) // closed and replaced when all grows
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for i := range prompts {
		workers.Go(func() {
			for {
				s, err := stream(ctx, router, i, "x")
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("a stream: %v", err)
					}
					mu.Lock()
					close(changed)
					changed = make(chan struct{})
					mu.Unlock()
					return
				}
				mu.Lock()
				all = append(all, s)
				close(changed)
				changed = make(chan struct{})
				mu.Unlock()
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	defer func() { cancel(); workers.Wait() }()
	// ended waits until n streams with an adapter have ended after the first from.
	ended := func(digest string, from int) {
		t.Helper()
		for {
			mu.Lock()
			count, wait := 0, changed
			for _, s := range all[from:] {
				if s.digest == digest {
					count++
				}
			}
			mu.Unlock()
			if count >= prompts || t.Failed() {
				return
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%d streams with %s", count, digest)
			case <-wait:
			}
		}
	}
	ended(old, 0)
	last := trainer.await(trainer.begin(raw, 2, 1), never)
	published := last.GetPublished()
	if len(published) != 1 || published[0].GetError() != "" || published[0].GetReplaced() != old ||
		published[0].GetName() != "x" || published[0].GetModel() != "llama" {
		t.Fatalf("state %v, published %v, error %q", last.GetState(), published, last.GetError())
	}
	now := published[0].GetDigest()
	ended(now, 0)
	mu.Lock()
	tail := len(all)
	mu.Unlock()
	back, err := sendFolder(t, ctx, router, &routerv1.LoadAdapterOpen{Name: "x", Digest: "previous"}, "")
	if err != nil || back.GetAdapter().GetDigest() != old || back.GetReplaced() != now {
		t.Fatal(back, err)
	}
	ended(old, tail)
	close(stop)
	workers.Wait()
	if _, err := sendFolder(t, ctx, router, &routerv1.LoadAdapterOpen{Name: "new", Digest: now}, ""); err != nil {
		t.Fatal(err)
	}
	want := map[string][prompts][]uint32{}
	for name, digest := range map[string]string{"x": old, "new": now} {
		var alone [prompts][]uint32
		for i := range prompts {
			s, err := stream(ctx, router, i, name)
			if err != nil || s.digest != digest {
				t.Fatalf("alone: %v, %v", s, err)
			}
			alone[i] = s.ids
		}
		want[digest] = alone
	}
	for i := range prompts {
		if slices.Equal(want[old][i], want[now][i]) {
			t.Fatalf("the versions give the same for prompt %d", i)
		}
	}
	for i, s := range all {
		if !slices.Equal(s.ids, want[s.digest][s.prompt]) {
			t.Errorf("stream %d of prompt %d with %s: %v, want %v", i, s.prompt, s.digest, s.ids, want[s.digest][s.prompt])
		}
	}
	t.Logf("%d streams, %d after the roll back", len(all), len(all)-tail)

	list, err := router.ListAdapters(ctx, &routerv1.ListAdaptersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list.GetAdapters() { // training records its base, and the other folder has none
		if want := map[string]string{"x": "", "new": a.GetModelDigest()}[a.GetName()]; a.GetBase() != want {
			t.Errorf("the base of %s is %q, want %q", a.GetName(), a.GetBase(), want)
		}
	}
	testAdapterKeys(t, m.GRPCAddr(), secrets, now)
	testOtherBase(t, base, last.GetModelPath(), app.Kernels{Set: set, Threads: 2})
}

// testAdapterKeys loads and removes adapters with a key for one of them and with one for their base. x has been the
// adapter with the digest, and new is it.
func testAdapterKeys(t *testing.T, addr string, secrets map[string]string, digest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	clients := map[string]routerv1.RouterServiceClient{}
	for name, secret := range secrets {
		d := rpc.NewDialer(rpc.DialOptions{Secret: secret})
		defer d.Close()
		conn, err := d.Dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		clients[name] = routerv1.NewRouterServiceClient(conn)
	}
	load := func(key, name, digest string, want codes.Code) string {
		t.Helper()
		resp, err := sendFolder(t, ctx, clients[key], &routerv1.LoadAdapterOpen{Name: name, Digest: digest}, "")
		if status.Code(err) != want {
			t.Errorf("key %s loads %s as %s: %v, want %v", key, digest, name, err, want)
		}
		return resp.GetAdapter().GetDigest()
	}
	unload := func(key, name string, want codes.Code) {
		t.Helper()
		_, err := clients[key].UnloadAdapter(ctx, &routerv1.UnloadAdapterRequest{Name: name})
		if status.Code(err) != want {
			t.Errorf("key %s removes %s: %v, want %v", key, name, err, want)
		}
	}
	load("x", "new", digest, codes.PermissionDenied)
	if got := load("x", "x", "previous", codes.OK); got != digest {
		t.Errorf("x is %s, want %s", got, digest)
	}
	old := load("x", "x", "previous", codes.OK)
	load("x", "x", digest, codes.OK)
	load("x", "x", old, codes.OK)
	unload("x", "new", codes.PermissionDenied)
	unload("x", "x", codes.OK)
	load("x", "x", digest, codes.NotFound) // new has it, and x no longer has a past
	load("all", "x", digest, codes.OK)
	unload("all", "new", codes.OK)
	list, err := clients["x"].ListAdapters(ctx, &routerv1.ListAdaptersRequest{})
	if err != nil || len(list.GetAdapters()) != 1 || list.GetAdapters()[0].GetName() != "x" {
		t.Errorf("the key for x sees %v, %v", list, err)
	}
}

// testOtherBase offers an adapter beside a model with the same shapes and other values.
func testOtherBase(t *testing.T, base, trained string, kernels app.Kernels) {
	t.Helper()
	other := filepath.Join(t.TempDir(), "llama")
	if err := os.CopyFS(other, os.DirFS(base)); err != nil {
		t.Fatal(err)
	}
	weights := filepath.Join(other, "model.safetensors")
	data, err := os.ReadFile(weights)
	if err == nil {
		err = os.Remove(weights) // a copy of a file that may not be written cannot be, either
	}
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if err := os.WriteFile(weights, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, anyBase := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		m, err := app.Start(ctx, app.MeshConfig{Model: other, Kernels: kernels,
			Adapters: []app.Adapter{{Name: "x", Dir: trained, AnyBase: anyBase}}})
		cancel()
		if m != nil {
			err = m.Close()
		}
		if anyBase != (err == nil) || err != nil && (fault.CodeOf(err) != fault.FailedPrecondition ||
			!strings.Contains(err.Error(), fmt.Sprintf("load adapter %q: it was trained on the base", "x"))) {
			t.Errorf("any base %v: %v", anyBase, err)
		}
	}
}
