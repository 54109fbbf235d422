package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// goldenText is a text with the embedding that sentence-transformers gives it.
type goldenText struct {
	Text      string
	Embedding []float64
}

// miniLM returns the folder of all-MiniLM-L6-v2 in LAMINA_MODELS, and its golden embeddings.
func miniLM(t *testing.T) (folder string, golden []goldenText) {
	t.Helper()
	dir, shared := os.Getenv("LAMINA_MODELS"), os.Getenv("LAMINA_SHARED")
	folder = filepath.Join(dir, "all-minilm-l6-v2")
	if _, err := os.Stat(folder); dir == "" || shared == "" || err != nil {
		t.Skip("set LAMINA_SHARED, and LAMINA_MODELS to the folder of all-minilm-l6-v2")
	}
	var file struct{ Cases []goldenText }
	readInto(t, filepath.Join(shared, "vectors", "embeddings", "minilm.json"), &file)
	if len(file.Cases) == 0 {
		t.Fatal("there are no golden embeddings")
	}
	return folder, file.Cases
}

// embedded returns the embeddings that lamina embed prints for texts.
func embedded(t *testing.T, binary string, golden []goldenText, args ...string) [][]float32 {
	t.Helper()
	var in, errs bytes.Buffer
	for _, g := range golden {
		line, err := json.Marshal(g.Text)
		if err != nil {
			t.Fatal(err)
		}
		in.Write(append(line, '\n'))
	}
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"embed", "--format=json"}, args...)...)
	cmd.Stdin, cmd.Stderr = &in, &errs
	out, err := cmd.Output()
	var got struct{ Embeddings [][]float32 }
	if err == nil {
		err = json.Unmarshal(out, &got)
	}
	if err != nil || len(got.Embeddings) != len(golden) {
		t.Fatalf("embed %v: %d embeddings of %d texts, %v\n%s", args, len(got.Embeddings), len(golden), err, errs.String())
	}
	return got.Embeddings
}

// cosine returns the cosine of the angle between two vectors.
func cosine(a []float32, b []float64) float64 {
	var dot, aa, bb float64
	for i, v := range b {
		w := float64(a[i])
		dot, aa, bb = dot+v*w, aa+w*w, bb+v*v
	}
	return dot / math.Sqrt(aa*bb)
}

// Processes with room for 1, 1, 2 and 3 of 4 parts of an encoder hold it without being told layers, and embed as
// sentence-transformers does, with the bits of a single process. One of them is killed while texts are embedded, and
// another one joins: no call fails.
func TestPromise_AutoFleet_Embeds(t *testing.T) {
	folder, golden := miniLM(t)
	f := startFleet(t, fleetSpec{model: folder, auto: roomFor(t, folder, 1, 1, 2, 3)}, false)
	p := newPlanner(f)
	held := func(without string) *plan.Document {
		t.Helper()
		d, _ := p.carriedOut(nil, "the encoder to be held", func(d *plan.Document) bool {
			return !slices.Contains(hosts(d), without)
		})
		t.Log(describePlan(d))
		return d
	}
	first := held("")
	if n := len(hosts(first)); n < 2 {
		t.Errorf("the encoder is on %d hosts, want several", n)
	}
	p.checkMoved("first plan", 0, sumLoaded(f.states()))
	want := embedded(t, f.binary, golden, "-m", folder)
	check := func(what string) {
		t.Helper()
		got := embedded(t, f.binary, golden, "--router="+f.members["router-0"].grpc, "-m", filepath.Base(folder))
		for i, g := range golden {
			if c := cosine(got[i], g.Embedding); c < 0.999999 {
				t.Errorf("%s: %.40q: cosine %v", what, g.Text, c)
			}
			if !slices.Equal(got[i], want[i]) {
				t.Errorf("%s: %.40q has other bits than in one process", what, g.Text)
			}
		}
	}
	check("four hosts")

	router := f.router(0)
	var calls atomic.Int64
	var load sync.WaitGroup
	quit := make(chan struct{})
	for i := range 3 {
		load.Go(func() {
			for n := i; ; n++ {
				select {
				case <-quit:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
				resp, err := router.Embed(ctx, &routerv1.EmbedRequest{Truncate: true, Inputs: []*routerv1.EmbedInput{
					{Input: &routerv1.EmbedInput_Text{Text: golden[n%len(golden)].Text}}}})
				cancel()
				if err != nil {
					t.Errorf("call %d: %v", calls.Load(), err)
					return
				}
				if !slices.Equal(resp.GetEmbeddings()[0].GetValues(), want[n%len(golden)]) {
					t.Errorf("call %d: other bits than in one process", calls.Load())
				}
				calls.Add(1)
			}
		})
	}
	defer load.Wait()
	stop := sync.OnceFunc(func() { close(quit) })
	defer stop()
	goesOn := func(what string) {
		from := calls.Load()
		f.await(10*time.Minute, what, func() bool { return calls.Load() >= from+20 || t.Failed() })
	}
	goesOn("calls")
	for _, what := range []string{"kill the largest", "kill another one"} {
		if what == "kill another one" {
			f.addAuto(9, roomFor(t, folder, 4)[0]).start()
		}
		before, _ := p.carriedOut(nil, "the plan before", func(*plan.Document) bool { return true })
		lost := largest(before).Host
		f.memberOf(lost).kill()
		begin := time.Now()
		held(lost)
		t.Logf("%s: held again after %v", what, time.Since(begin).Round(10*time.Millisecond))
		goesOn("calls after " + what)
	}
	stop()
	load.Wait()
	t.Logf("%d calls", calls.Load())
	check("after the kills")
}
