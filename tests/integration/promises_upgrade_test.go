package integration_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// versions is a folder with versions of a model, which appear in it one after the other.
type versions struct {
	t           *testing.T
	dir, source string
	binary      string
}

// newVersions makes a folder with a model as its first version.
func newVersions(t *testing.T, source string) *versions {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	v := &versions{t: t, dir: t.TempDir(), source: source, binary: binary}
	if strings.HasSuffix(source, ".gguf") {
		err = os.Symlink(source, v.path("first.gguf"))
	} else {
		err = os.CopyFS(v.path("first"), os.DirFS(source))
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *versions) path(name string) string { return filepath.Join(v.dir, name) }

// first is the path of the first version.
func (v *versions) first() string {
	if strings.HasSuffix(v.source, ".gguf") {
		return v.path("first.gguf")
	}
	return v.path("first")
}

// add adds the model with weights of another type, after ruin has changed the file, and returns its path.
func (v *versions) add(name, kind string, ruin func(path string)) string {
	v.t.Helper()
	made := filepath.Join(v.t.TempDir(), name+".gguf")
	if out, err := exec.Command(v.binary, "quantize", "--quiet", v.source, made, kind).CombinedOutput(); err != nil {
		v.t.Fatalf("quantise %s: %v\n%s", v.source, err, out)
	}
	if ruin != nil {
		ruin(made)
	}
	path := v.path(name + ".gguf")
	if err := os.Rename(made, path); err != nil {
		v.t.Fatal(err)
	}
	return path
}

// spoil makes the weights of a norm NaN: such a model loads, and none of its logits is a number.
func spoil(t *testing.T, path string) {
	t.Helper()
	g, err := weights.OpenGGUF(path)
	if err != nil {
		t.Fatal(err)
	}
	place, ok := g.Place("blk.1.ffn_norm.weight")
	if err := g.Close(); err != nil || !ok {
		t.Fatalf("%s has no norm in layer 1: %v", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(binary.LittleEndian.AppendUint32(nil, math.Float32bits(float32(math.NaN()))), place.From)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// record keeps the answers of a load by the digest of the model and by request.
type record struct {
	mu      sync.Mutex
	answers map[string]map[int][]answer
}

// take is a judge that finds each answer right for the moment.
func (r *record) take(request int, digest string, a answer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answers == nil {
		r.answers = map[string]map[int][]answer{}
	}
	if r.answers[digest] == nil {
		r.answers[digest] = map[int][]answer{}
	}
	r.answers[digest][request] = append(r.answers[digest][request], a)
	return true
}

// counts returns the number of answers by model.
func (r *record) counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]int{}
	for digest, requests := range r.answers {
		for _, list := range requests {
			out[digest] += len(list)
		}
	}
	return out
}

func (r *record) count(digest string) int { return r.counts()[digest] }

// differ returns the number of answers of a model that are others than those of an undisturbed run.
func (r *record) differ(digest string, want []answer) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for request, list := range r.answers[digest] {
		for _, a := range list {
			if !a.equal(want[request]) {
				n++
			}
		}
	}
	return n
}

// deploy deploys a model and waits until that has ended. It returns the states that it has gone through. A model whose
// tokenizer the router has not found yet is deployed again, and so is one for which a busy registry has no answer.
func (f *fleet) deploy(r *routerv1.DeployRequest) (states []string, err error) {
	f.t.Helper()
	poll(50*time.Millisecond, 5*time.Minute, func() bool {
		states, err = f.deployOnce(r)
		return status.Code(err) != codes.FailedPrecondition && status.Code(err) != codes.Unavailable
	})
	return states, err
}

func (f *fleet) deployOnce(r *routerv1.DeployRequest) (states []string, err error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Minute)
	defer cancel()
	stream, err := f.routerConn(0).Deploy(ctx, r)
	if err != nil {
		return nil, err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return states, nil
		}
		if err != nil {
			return states, err
		}
		state := strings.ToLower(strings.TrimPrefix(resp.GetDeployment().GetState().String(), "DEPLOYMENT_STATE_"))
		if n := len(states); n == 0 || states[n-1] != state {
			states = append(states, state)
		}
	}
}

// offered waits until a model that has come into the folder can be deployed, and returns its digest.
func (f *fleet) offered(path string) string {
	f.t.Helper()
	digest, err := weights.Digest(path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.await(10*time.Minute, "all shards to offer "+path, func() bool {
		for _, m := range f.match("shard-auto-*") {
			if s, err := m.describe(); err != nil || !s.offers[digest] {
				return false
			}
		}
		return true
	})
	return digest
}

// holders returns how many spans of a model the fleet's shards hold.
func (f *fleet) holders(digest string) int {
	n := 0
	for _, s := range f.states() {
		n += s.spans[digest]
	}
	return n
}

// A fleet that places itself serves a model under load. A new version of it takes a share of the requests and then all;
// a version whose weights are damaged is rolled back by itself, and the new version by hand. No stream fails, and each
// answer is wholly that of the digest that it names.
func TestPromise_AutoFleet_Upgrade(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a fleet of processes")
	}
	served := fleetModel(t)
	v := newVersions(t, served)
	f := startFleet(t, fleetSpec{model: v.first(), routerArg: []string{"--only-deployed"},
		auto: roomFor(t, served, 2, 3, 3, 4), autoDir: v.dir}, false)
	old := f.offered(v.first())
	if states, err := f.deploy(&routerv1.DeployRequest{Model: old, Name: "chat"}); err != nil {
		t.Fatalf("deploy the first version: %v, %v", states, err)
	}
	p := newPlanner(f)
	first, _ := p.carriedOut([]int{0}, "the first plan", func(*plan.Document) bool { return true })
	t.Log(describePlan(first))
	requests := patient(mixed(12, 64))
	for _, r := range requests {
		r.Model = "chat"
	}
	want := map[string][]answer{old: undisturbed(t, f.router(0), requests)}
	var answers record
	flow := startJudged(t, []routerv1.RouterServiceClient{f.router(0)}, requests, answers.take, 4, false)
	t.Logf("%.0f tokens/s before the new version", flow.prove())

	share, observe := float32(0.3), uint64(pickInt(5_000, 20_000))
	// As long as the damaged version may need for the failures that roll it back, however slow the machine is.
	patiently := uint64(pickInt(600_000, 20_000))
	upgrade := func(what, digest string, share *float32, observe uint64) (states []string, err error) {
		begin, was := time.Now(), answers.counts()
		states, err = f.deploy(&routerv1.DeployRequest{Model: digest, Name: "chat", Canary: share, ObserveMs: &observe})
		t.Logf("%s: %v after %v, error %v; answers by version before %v, now %v", what, states,
			time.Since(begin).Round(10*time.Millisecond), err, was, answers.counts())
		return states, err
	}
	answersOf := func(digest string) {
		from := answers.count(digest)
		f.await(10*time.Minute, "the answers of "+digest, func() bool { return answers.count(digest) >= from+8 })
	}

	path := v.add("second", "Q4_0", nil)
	f.add("tokenizer", "second", "--model="+path).start()
	second := f.offered(path)
	states, err := upgrade("the new version", second, &share, observe)
	if err != nil || states[len(states)-1] != "live" {
		t.Fatalf("deploy the new version: %v, %v", states, err)
	}
	answersOf(second)

	path = v.add("damaged", "Q8_0", func(path string) { spoil(t, path) })
	f.add("tokenizer", "damaged", "--model="+path).start()
	damaged := f.offered(path)
	states, err = upgrade("the damaged version", damaged, &share, patiently)
	if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "rolled back") {
		t.Errorf("deploy the damaged version: %v, %v, want ABORTED and that it was rolled back", states, err)
	}
	answersOf(second)
	f.await(10*time.Minute, "the damaged version to be unloaded", func() bool { return f.holders(damaged) == 0 })
	if n := answers.count(damaged); n > 0 {
		t.Errorf("the damaged version gave %d answers", n)
	}

	if states, err = upgrade("back to the first version", old, nil, observe); err != nil {
		t.Fatalf("deploy the first version again: %v, %v", states, err)
	}
	answersOf(old)
	flow.hold(within(10 * time.Second))

	// What the new version gives when nothing is changed.
	if states, err := f.deploy(&routerv1.DeployRequest{Model: second, Name: "chat", ObserveMs: &observe}); err != nil {
		t.Fatalf("deploy the new version for comparison: %v, %v", states, err)
	}
	want[second] = undisturbed(t, f.router(0), requests)
	same := 0
	for i, a := range want[old] {
		if a.equal(want[second][i]) {
			same++
		}
	}
	if same > len(requests)/2 {
		t.Fatalf("the run is invalid: both versions give the same %d of %d answers", same, len(requests))
	}
	for digest, list := range want {
		n := answers.differ(digest, list)
		t.Logf("%s gave %d answers, of which %d differ", digest, answers.count(digest), n)
		if n > 0 {
			t.Errorf("%d of %d answers of %s are not those of an undisturbed run", n, answers.count(digest), digest)
		}
	}
}
