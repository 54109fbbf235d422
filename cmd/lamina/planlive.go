package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/inventory"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// consulLive are the flags by which a plan is made of a running fleet.
type consulLive struct {
	Consul      string `help:"Address of a Consul agent: plan over the shards that it lists and that were started with --auto, in place of a file with hosts." env:"LAMINA_PLAN_CONSUL"`
	ConsulToken string `help:"Token for Consul." env:"LAMINA_CONSUL_TOKEN"`
	connectFlags
}

// live makes the hosts of a request those of a running fleet, and takes what their placer has learned. The model need
// not be one that they have: the times of another model are scaled by the bytes of a layer.
func (c *consulLive) live(e *verb.Env, r *plan.Request) error {
	dialer, err := c.dialer()
	if err != nil {
		return err
	}
	defer dialer.Close()
	ctx, cancel := context.WithTimeout(e.Ctx, askTimeout)
	defer cancel()
	live, err := app.LiveInventory(ctx, c.Consul, c.ConsulToken, dialer)
	if err != nil {
		return err
	}
	fleet, left := inventory.Request(live.Shards, inventory.Options{Goal: plan.Latency, Hop: live.Calibration.Hop})
	if len(fleet.Hosts) == 0 {
		var reasons []string
		for _, l := range left {
			reasons = append(reasons, l.ID+": "+l.Reason)
		}
		return fault.New(fault.FailedPrecondition, "plan over the shards of consul at %s: none can be a host: %s",
			c.Consul, strings.Join(reasons, "; "))
	}
	m := &r.Models[0]
	for _, known := range fleet.Models { // the shards know the size of their KV caches
		if known.Name == m.Name && len(known.Layers) == len(m.Layers) {
			m.KVBytes = known.KVBytes
		}
	}
	r.Hosts, r.RouterMS, r.FirstMS = fleet.Hosts, live.Calibration.RouterMS, live.Calibration.FirstMS
	return nil
}

// printPlacement shows what was predicted of each stage beside what was measured.
func printPlacement(w io.Writer, mesh *routerv1.Mesh) {
	if p := mesh.GetPlacement(); p != nil {
		fmt.Fprintln(w, "\nPLAN\tREASON\tMOVED LAYERS\tMOVED BYTES\tTHIS ROUTER PLACES")
		fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%v\n", p.GetVersion(), p.GetReason(), p.GetMoveLayers(), p.GetMoveBytes(),
			p.GetPlacer())
	}
	header := false
	for _, p := range mesh.GetPipelines() {
		for i, t := range p.GetTimes() {
			if t.GetMeasuredMs() == 0 && t.GetPredictedMs() == 0 {
				continue
			}
			if !header {
				header = true
				fmt.Fprintln(w, "\nPIPELINE\tSTAGE\tHOST\tROW MS\tPREDICTED\tHOP MS\tPREDICTED\t")
			}
			worst := ""
			switch p.GetWorst() {
			case fmt.Sprintf("stage %d at %s", i, t.GetHost()):
				worst = "slower than predicted"
			case fmt.Sprintf("hop to stage %d at %s", i, t.GetHost()):
				worst = "hop slower than predicted"
			}
			fmt.Fprintf(w, "%.8s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", p.GetId(), i, t.GetHost(), millis(t.GetMeasuredMs()),
				millis(t.GetPredictedMs()), millis(t.GetMeasuredHopMs()), millis(t.GetPredictedHopMs()), worst)
		}
	}
	printExpected(w, mesh.GetPipelines())
	printLoading(w, mesh.GetMembers())
	if left := mesh.GetPlacement().GetLeftOut(); len(left) > 0 {
		fmt.Fprintln(w, "\nLEFT OUT\tREASON")
		for _, l := range left {
			fmt.Fprintf(w, "%s\t%s\n", l.GetId(), l.GetReason())
		}
	}
	for _, l := range mesh.GetPlacement().GetUncovered() {
		fmt.Fprintf(w, "\nNOT SERVED\t%s: %s\n", l.GetId(), l.GetReason())
	}
}

// millis formats a time that may not be known.
func millis(ms float64) string {
	if ms <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", ms)
}

// printExpected shows what single streams give: as the plan has predicted it, as it is expected now, and as it was
// measured.
func printExpected(w io.Writer, pipelines []*routerv1.Pipeline) {
	header := false
	for _, p := range pipelines {
		if p.GetPredictedTokenMs() <= 0 {
			continue
		}
		if !header {
			header = true
			fmt.Fprintln(w, "\nSINGLE STREAM\tOF\tPLANNED\tEXPECTED NOW\tMEASURED")
		}
		perSecond := func(ms float64) string {
			if ms <= 0 {
				return "-"
			}
			return fmt.Sprintf("%.1f", 1000/ms)
		}
		fmt.Fprintf(w, "%.8s\ttokens/s\t%s\t%s\t%s\n", p.GetId(), perSecond(p.GetPredictedTokenMs()),
			perSecond(p.GetExpectedTokenMs()), perSecond(p.GetLoneTokenMs()))
		fmt.Fprintf(w, "%.8s\tms to the first token of %d\t%s\t%s\t%s\n", p.GetId(), p.GetPredictedPromptTokens(),
			millis(p.GetPredictedTtftMs()), millis(p.GetExpectedTtftMs()), millis(p.GetMeasuredTtftMs()))
	}
}

// printLoading shows how far spans are that hosts load.
func printLoading(w io.Writer, members []*routerv1.Member) {
	header := false
	for _, m := range members {
		for _, l := range m.GetLoading() {
			if !header {
				header = true
				fmt.Fprintln(w, "\nLOADING\tLAYERS\tDIGEST\tFETCHED\tREAD")
			}
			fetched := "-"
			if l.GetFetchBytes() > 0 {
				fetched = fmt.Sprintf("%d of %d bytes", l.GetFetchedBytes(), l.GetFetchBytes())
			}
			fmt.Fprintf(w, "%s\t%d-%d\t%.20s\t%s\t%d of %d bytes\n", m.GetId(), l.GetLo(), l.GetHi(), l.GetDigest(),
				fetched, l.GetDoneBytes(), l.GetTotalBytes())
		}
	}
}
