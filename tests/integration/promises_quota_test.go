package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// quotaPeriod is short, so that a stage which is idle between two tokens saves up next to nothing.
const quotaPeriod = 5 * time.Millisecond

// quotas makes a group of processes for each share of a processor below LAMINA_CPU_GROUP, a folder of version 1 of the
// cpu controller, and returns how to start a process in each.
func quotas(t *testing.T, shares []float64) map[string][]string {
	t.Helper()
	dir := os.Getenv("LAMINA_CPU_GROUP")
	if dir == "" {
		t.Skip("set LAMINA_CPU_GROUP to a folder of the cpu controller below which groups may be made")
	}
	out := map[string][]string{}
	for i, share := range shares {
		group := filepath.Join(dir, fmt.Sprintf("shard-%d", i))
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		for name, v := range map[string]int64{"cpu.cfs_period_us": quotaPeriod.Microseconds(),
			"cpu.cfs_quota_us": int64(share * float64(quotaPeriod.Microseconds()))} {
			if err := os.WriteFile(filepath.Join(group, name), []byte(fmt.Sprint(v)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out[fmt.Sprintf("shard-auto-%d", i)] = []string{"/bin/sh", "-c",
			"echo $$ > " + filepath.Join(group, "cgroup.procs") + ` && exec "$@"`, "sh"}
	}
	return out
}

// timedRequest runs a request and returns the time to its first token and the mean time of the others.
func timedRequest(t *testing.T, router routerv1.RouterServiceClient, prompt []uint32, n uint32) (first, token float64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	zero, wait := float32(0), uint32(120)
	begin := time.Now()
	stream, err := router.Generate(ctx, &routerv1.GenerateRequest{MaxTokens: n, IgnoreEnd: true, WaitForCapacity: &wait,
		Prompt:   &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: prompt}},
		Sampling: &routerv1.Sampling{Temperature: &zero}})
	var times []time.Duration
	for err == nil {
		var e *routerv1.GenerateResponse
		if e, err = stream.Recv(); err == nil && e.GetToken() != nil {
			times = append(times, time.Since(begin))
		}
	}
	if !errors.Is(err, io.EOF) || len(times) < 2 {
		t.Fatalf("%d tokens, %v", len(times), err)
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	return ms(times[0]), ms(times[len(times)-1]-times[0]) / float64(len(times)-1)
}

// Fleets whose hosts have quotas of processor time: what the plan says before anything is loaded, and what is expected
// after some streams, is near what a client measures. How near depends on what else runs on the machine, so the limit
// is a factor of two; TestPlacement_TwentyLayoutsArePredicted has 15 % in virtual time.
func TestPromise_AutoFleet_QuotasArePredicted(t *testing.T) {
	const promptLen, tries = 64, 7
	served := fleetModel(t)
	if served == bundled(t) {
		t.Skip("a token of the bundled model takes less than a period of the quotas; LAMINA_FLEET_MODEL names another one")
	}
	for _, c := range []struct {
		quarters []int
		shares   []float64
	}{
		{[]int{2, 3}, []float64{0.4, 0.8}},
		{[]int{1, 2, 3}, []float64{0.6, 0.4, 0.3}},
		{[]int{3, 2, 2}, []float64{0.25, 0.5, 0.7}},
		{[]int{1, 1, 2, 3}, []float64{0.4, 0.4, 0.4, 0.2}},
	} {
		t.Run(fmt.Sprint(c.quarters, c.shares), func(t *testing.T) {
			f := startFleet(t, fleetSpec{model: served, auto: roomFor(t, served, c.quarters...),
				start: quotas(t, c.shares)}, false)
			p := newPlanner(f)
			p.carriedOut([]int{0}, "the first plan", func(*plan.Document) bool { return true })
			router := f.router(0)
			now := func() (*routerv1.Pipeline, *routerv1.Placement) {
				t.Helper()
				resp, err := router.Topology(t.Context(), &routerv1.TopologyRequest{})
				if err != nil || len(resp.GetMesh().GetPipelines()) != 1 {
					t.Fatalf("%d pipelines, %v", len(resp.GetMesh().GetPipelines()), err)
				}
				return resp.GetMesh().GetPipelines()[0], resp.GetMesh().GetPlacement()
			}
			before, _ := now()
			prompt := func(i int) []uint32 {
				out := []uint32{1}
				for len(out) < promptLen {
					out = append(out, 300+uint32(len(out)+7*i)%200)
				}
				return out
			}
			timedRequest(t, router, prompt(0), 48) // stages read their weights
			var firsts, tokens []float64
			for i := range tries {
				first, token := timedRequest(t, router, prompt(i+1), 48)
				firsts, tokens = append(firsts, first), append(tokens, token)
			}
			slices.Sort(firsts)
			slices.Sort(tokens)
			first, token := firsts[tries/2], tokens[tries/2]
			// What is expected is corrected by these streams if it is off.
			var after *routerv1.Pipeline
			var placement *routerv1.Placement
			poll(time.Second, 30*time.Second, func() bool {
				after, placement = now()
				return math.Abs(plan.Off(after.GetExpectedTokenMs(), token)) <= 0.07
			})
			// The prompts that predictions are for are longer.
			scaled := func(ttft, token, first float64) float64 {
				return first + token + (ttft-first-token)*(promptLen-1)/float64(before.GetPredictedPromptTokens()-1)
			}
			var stages []string
			for i, s := range after.GetStages() {
				host := f.memberOf(after.GetTimes()[i].GetHost())
				number := strings.TrimPrefix(host.name, "shard-auto-")
				stages = append(stages, fmt.Sprintf("%d-%d@%s", s.GetLo(), s.GetHi(), number))
			}
			off := map[string]float64{ // of 1
				"planned tokens/s":  plan.Off(before.GetPredictedTokenMs(), token),
				"expected tokens/s": plan.Off(after.GetExpectedTokenMs(), token),
				"planned TTFT":      plan.Off(scaled(before.GetPredictedTtftMs(), before.GetPredictedTokenMs(), 0), first),
				"expected TTFT": plan.Off(scaled(after.GetExpectedTtftMs(), after.GetExpectedTokenMs(),
					placement.GetFirstMs()), first),
			}
			t.Logf("stages %s: tokens/s planned %.1f, expected %.1f, measured %.1f; first token planned %.0f ms, "+
				"expected %.0f, measured %.0f; ms of a token %.1f, of the first %.0f", strings.Join(stages, " "),
				1000/before.GetPredictedTokenMs(), 1000/after.GetExpectedTokenMs(), 1000/token,
				scaled(before.GetPredictedTtftMs(), before.GetPredictedTokenMs(), 0),
				scaled(after.GetExpectedTtftMs(), after.GetExpectedTokenMs(), placement.GetFirstMs()), first,
				tokens, firsts)
			for what, v := range off {
				t.Logf("%s is off by %+.0f %%", what, 100*v)
				if v > 1 || v < -0.5 {
					t.Errorf("%s is off by %.0f %%", what, 100*v)
				}
			}
		})
	}
}
