package integration_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// pause waits between two faults of a schedule.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal("the test ended")
	}
}

// S2: a shard freezes in a pipeline's first steps, or later; streams go on with the same text.
func TestPromise_S2_FrozenJustAfterAPipelineOpened(t *testing.T) {
	f := startFleet(t, fleetSpec{stages: 2, replicas: 2}, true)
	requests := mixed(12, 64)
	want := undisturbed(t, f.router(0), requests)
	flow := startFlow(t, []routerv1.RouterServiceClient{f.router(0)}, requests, want, 8, false)
	t.Logf("%.0f tokens/s before the faults", flow.prove())
	for round := range pickInt(1, 10) {
		victim := f.members[fmt.Sprintf("shard-%d-%d", round%2, round/2%2)]
		victim.kill()
		f.await(time.Minute, "the pipeline to be lost", func() bool { return f.pipelines(0) == 1 })
		victim.start()
		f.await(time.Minute, "the pipeline to be open again", func() bool { return f.pipelines(0) == 2 })
		victim.freeze() // within the first steps
		pause(t, time.Duration(pickInt(2, 15))*time.Second)
		victim.thaw()
		f.awaitPipelines(2)
	}
	flow.hold(within(time.Second))
}

// pipelines returns how many pipelines a router has.
func (f *fleet) pipelines(i int) int {
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	resp, err := f.router(i).Topology(ctx, &routerv1.TopologyRequest{})
	if err != nil {
		return -1
	}
	return len(resp.GetMesh().GetPipelines())
}

// S4: all replicas of a stage are lost; every stream is told so in time, and none looks finished.
func TestPromise_S4_LostStageIsTold(t *testing.T) {
	streams := pickInt(64, 500)
	f := startFleet(t, fleetSpec{stages: 2, replicas: 2, routerArg: []string{"--queue=1024"}}, true)
	router := f.router(0)
	var requests []*routerv1.GenerateRequest
	for i := range streams {
		requests = append(requests, seeded(fmt.Sprintf("%s %d", prompts[i%len(prompts)], i), 200, uint64(i)))
	}
	flow := &flow{t: t, right: asBefore(make([]answer, streams)), quit: make(chan struct{})}
	for i, r := range requests {
		flow.work.Go(func() { flow.one([]routerv1.RouterServiceClient{router}, i, r, false) })
	}
	t.Cleanup(flow.stop)
	t.Logf("%.0f tokens/s before the fault", flow.prove())
	ended := flow.sum().streams
	lost := time.Now()
	var killing sync.WaitGroup
	for _, m := range f.match("shard-*-1") {
		killing.Go(m.kill)
	}
	killing.Wait()
	flow.stop()
	var told time.Duration
	cut := 0
	for _, o := range flow.done[ended:] {
		if o.finished && o.end.Before(lost) {
			continue
		}
		cut++
		switch code := status.Code(o.err); {
		case o.err == nil || o.finished:
			t.Errorf("request %d looks finished", o.request)
		case code != codes.Unavailable && code != codes.ResourceExhausted:
			t.Errorf("request %d: want an error that says to try again, got %v", o.request, o.err)
		}
		told = max(told, o.end.Sub(lost))
	}
	t.Logf("%d streams were cut and told within %v", cut, told.Round(time.Millisecond))
	if cut < streams/2 {
		t.Errorf("only %d of %d streams ran when the stage was lost", cut, streams)
	}
	if limit := within(5 * time.Second); told > limit {
		t.Errorf("a stream was told after %v, want at most %v", told, limit)
	}
}

// S17 and S15: a stage that looks healthy on every socket stops computing under load.
func TestPromise_S17_WedgedStageIsLeft(t *testing.T) {
	for _, stages := range pickStages() {
		t.Run(fmt.Sprintf("%d stages", stages), func(t *testing.T) {
			f := startFleet(t, fleetSpec{stages: stages, replicas: 2, gates: true, model: deep(t, stages)}, true)
			requests := mixed(12, 64)
			want := undisturbed(t, f.router(0), requests)
			flow := startFlow(t, []routerv1.RouterServiceClient{f.router(0)}, requests, want, 16, false)
			t.Logf("%.0f tokens/s before the faults", flow.prove())
			random := rand.New(rand.NewPCG(17, uint64(stages)))
			shards := f.match("shard-*")
			swallowed, wedged := 0, 0
			begin := time.Now()
			for ; time.Since(begin) < soak(t) || swallowed == 0 && time.Since(begin) < 2*time.Minute; wedged++ {
				victim := shards[random.IntN(len(shards))]
				before := victim.gate.swallowed()
				victim.gate.wedge(true)
				pause(t, 2*time.Second)
				if n := victim.gate.swallowed() - before; n > 0 {
					swallowed++
				}
				victim.gate.wedge(false)
				begin := time.Now()
				f.awaitPipelines(2)
				if took := time.Since(begin); took > within(10*time.Second) {
					t.Errorf("a stage that computes again was used only after %v", took)
				}
			}
			t.Logf("%d times a stage was wedged, %d times with work", wedged, swallowed)
			if swallowed == 0 {
				t.Error("no wedged stage had work: the test proves nothing")
			}
			t.Logf("missed deadlines: %s", f.missedDeadlines())
			flow.hold(within(time.Second))
		})
	}
}

// pickStages returns the numbers of stages of the soak.
func pickStages() []int {
	if slow() {
		return []int{3, 4, 5, 6, 7, 8}
	}
	return []int{3}
}

// missedDeadlines sums up when the first router has noticed that steps were late, and what their deadlines were.
func (f *fleet) missedDeadlines() string {
	f.t.Helper()
	text, err := os.ReadFile(f.members["router-0"].log())
	if err != nil {
		f.t.Fatal(err)
	}
	var limits, beyond []time.Duration
	seen := map[string]bool{}
	for _, m := range missed.FindAllStringSubmatch(string(text), -1) {
		late, err1 := time.ParseDuration(m[2])
		limit, err2 := time.ParseDuration(m[3])
		if err := errors.Join(err1, err2); err != nil {
			f.t.Fatal(err)
		}
		if !seen[m[0]] { // every stream that moves names it
			seen[m[0]] = true
			limits, beyond = append(limits, limit), append(beyond, late-limit)
		}
	}
	slices.Sort(limits)
	slices.Sort(beyond)
	return fmt.Sprintf("%d, p50 %v, longest %v, noticed at most %v after them", len(limits), quantile(limits, 0.5),
		quantile(limits, 1), quantile(beyond, 1))
}

var missed = regexp.MustCompile(`run step (\d+): no result within (\S+), its deadline was ([0-9.a-zµ]+)`)

// soak returns how long each soak takes. LAMINA_SOAK overrides it.
func soak(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("LAMINA_SOAK")
	if text == "" {
		return time.Duration(pickInt(4, 60)) * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// S15: a stage whose port answers but that computes nothing is not advertised.
func TestPromise_S15_ReadyMeansThatEveryStageComputes(t *testing.T) {
	f := startFleet(t, fleetSpec{stages: 2, replicas: 1, gates: true}, false)
	stage := f.members["shard-0-1"]
	// The fleet may have become ready at once: the pipeline is lost by a restart of its other stage.
	f.awaitPipelines(1)
	stage.gate.wedge(true)
	asked, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() { _, _ = generate(asked, &Mesh{Router: f.router(0)}, greedy(prompts[0], 64)) })
	begin := time.Now()
	f.await(within(5*time.Second), "the router not to be ready", func() bool { return !f.ready(0) })
	t.Logf("not ready %v after a stage was wedged", time.Since(begin).Round(time.Millisecond))
	stop()
	asking.Wait()
	f.members["shard-0-0"].kill()
	f.await(time.Minute, "the pipeline to be lost", func() bool { return f.pipelines(0) == 0 })
	before := stage.gate.swallowed()
	f.members["shard-0-0"].start()
	f.await(time.Minute, "the probe to reach the wedged stage", func() bool { return stage.gate.swallowed() > before })
	for begin := time.Now(); time.Since(begin) < 2*time.Second; {
		if f.ready(0) || f.pipelines(0) > 0 {
			t.Fatal("a pipeline with a wedged stage is advertised")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), within(5*time.Second))
	defer cancel()
	begin = time.Now()
	_, err := generate(ctx, &Mesh{Router: f.router(0)}, greedy(prompts[0], 4))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a request got %v, want UNAVAILABLE", err)
	}
	t.Logf("a request is told after %v: %v", time.Since(begin).Round(time.Millisecond), err)
	stage.gate.wedge(false)
	if slow() {
		// The router gives a new pipeline a minute, since the restarted stage may have to read weights first.
		f.await(90*time.Second, "the log to name the stage", func() bool {
			return contains(f.members["router-0"].tail(), "stage 1", stage.gate.addr, "computes nothing")
		})
	} else {
		f.members["shard-0-0"].kill()
		f.members["shard-0-0"].start()
	}
	f.awaitPipelines(1)
	if _, err := generate(t.Context(), &Mesh{Router: f.router(0)}, greedy(prompts[0], 4)); err != nil {
		t.Error(err)
	}
}

func contains(text string, parts ...string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}
