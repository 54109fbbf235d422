package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// deployCmd brings versions of models into service. Flags that are not given leave the settings of a deployment as they
// are.
type deployCmd struct {
	adapterRouterFlags
	Model    string         `arg:"" optional:"" help:"Name or digest of a model that shards have, or the name of a deployment to change its settings. Without one the deployments are listed."`
	As       string         `help:"Name that clients use. Default: that of the model."`
	Replicas *uint32        `help:"Number of pipelines. Default: what the routers were started with."`
	Canary   string         `help:"Share of the requests that a new version takes before it takes all of them, such as 5% or 0.05. Default: 100%."`
	Observe  *time.Duration `help:"How long it takes them, while the version before stays loaded. Default: 1m, and 5m with --canary."`
	Pinned   *bool          `help:"Never unload the model, neither for others nor because nobody uses it." negatable:""`
	Idle     *time.Duration `help:"Unload the model when nobody has used it for this time; the next request loads it again. 0 means never."`
	Load     *time.Duration `help:"How long the version may take until it is loaded and probed. Default: 10m."`
	Detach   bool           `help:"Do not wait until the version takes all requests."`
}

// Run deploys a model and shows what happens, or lists the deployments.
func (c *deployCmd) Run(e *verb.Env) error {
	if c.Model == "" {
		return c.list(e)
	}
	r := &routerv1.DeployRequest{Model: c.Model, Name: c.As, Replicas: c.Replicas, Pinned: c.Pinned}
	share, err := parseShare(c.Canary)
	if err != nil {
		return err
	}
	r.Canary = share
	for _, f := range []struct {
		name string
		from *time.Duration
		to   **uint64
	}{{"observe", c.Observe, &r.ObserveMs}, {"idle", c.Idle, &r.IdleMs}, {"load", c.Load, &r.LoadMs}} {
		if f.from == nil {
			continue
		}
		if *f.from < 0 {
			return fault.Field(f.name, "want 0 or more, got %v", *f.from)
		}
		ms := uint64(f.from.Milliseconds())
		*f.to = &ms
	}
	return c.connect(e, c.Router, 0, func(ctx context.Context, conn *grpc.ClientConn) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := routerv1.NewRouterServiceClient(conn).Deploy(ctx, r)
		if err != nil {
			return rpc.FromStatus(err)
		}
		last, told := "", map[string]bool{}
		for {
			resp, err := stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return rpc.FromStatus(err)
			case c.Format == "json":
				if err := printProto(e, resp); err != nil {
					return err
				}
			default:
				if line := deployLine(resp); line != last {
					last = line
					fmt.Fprintln(e.Stdout, line)
				}
				for _, a := range resp.GetAdaptersLeft() {
					if line := leftLine(a); !told[line] {
						told[line] = true
						fmt.Fprintln(e.Stdout, line)
					}
				}
			}
			if c.Detach {
				return nil
			}
		}
	})
}

// leftLine says which adapter a new version does not serve, and what to do.
func leftLine(a *routerv1.AdapterLeft) string {
	return fmt.Sprintf("adapter %s is not served by the new version: %s; give it one with lamina adapters load %s:%s=DIR "+
		"(--any-base for one of another base)", a.GetName(), a.GetReason(), a.GetDigest(), a.GetName())
}

// deployLine says in a line where a deployment is.
func deployLine(r *routerv1.DeployResponse) string {
	d := r.GetDeployment()
	out := fmt.Sprintf("%s: %s", d.GetName(), deploymentState(d))
	if l := r.GetLoading(); l != nil {
		return fmt.Sprintf("%s, %s of %s: %s", out, bytesOf(l.GetDoneBytes()), bytesOf(l.GetTotalBytes()), l.GetState())
	}
	return out + ": " + d.GetLast()
}

func bytesOf(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// parseShare reads a share such as 5% or 0.05; nil for an empty text.
func parseShare(text string) (*float32, error) {
	if text == "" {
		return nil, nil
	}
	number, percent := strings.CutSuffix(strings.TrimSpace(text), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		v /= 100
	}
	if err != nil || math.IsNaN(v) || v <= 0 || v > 1 {
		return nil, fault.Field("canary", "want a share of more than 0 and at most 100%%, such as 5%% or 0.05, got %q", text)
	}
	share := float32(v)
	return &share, nil
}

// deploymentState names the state of a deployment.
func deploymentState(d *routerv1.Deployment) string {
	state := strings.ToLower(strings.TrimPrefix(d.GetState().String(), "DEPLOYMENT_STATE_"))
	if d.GetState() == routerv1.DeploymentState_DEPLOYMENT_STATE_CANARY {
		return fmt.Sprintf("%s %.3g %%", state, 100*d.GetCanary())
	}
	return state
}

func (c *deployCmd) list(e *verb.Env) error {
	return c.call(e, askTimeout, func(ctx context.Context, r routerv1.RouterServiceClient) error {
		resp, err := r.ListDeployments(ctx, &routerv1.ListDeploymentsRequest{})
		if err != nil {
			return rpc.FromStatus(err)
		}
		if c.Format == "json" {
			return printProto(e, resp)
		}
		w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
		listDeployments(w, resp.GetDeployments())
		return w.Flush()
	})
}

// listDeployments writes a table of deployments.
func listDeployments(w io.Writer, list []*routerv1.Deployment) {
	fmt.Fprintln(w, "DEPLOYMENT\tSTATE\tLIVE\tNEXT\tRETIRING\tREPLICAS\tUNLOADED\tLAST")
	for _, d := range list {
		var retiring []string
		for _, v := range d.GetRetiring() {
			retiring = append(retiring, versionName(v))
		}
		replicas := "default"
		if n := d.GetReplicas(); n > 0 {
			replicas = strconv.Itoa(int(n))
		}
		unloaded := "for others"
		switch {
		case d.GetPinned():
			unloaded = "never"
		case d.GetIdleMs() > 0:
			unloaded = "after " + (time.Duration(d.GetIdleMs()) * time.Millisecond).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.GetName(), deploymentState(d), versionName(d.GetLive()),
			versionName(d.GetNext()), strings.Join(retiring, " "), replicas, unloaded, d.GetLast())
	}
}

// versionName is the name of a version's model with the first digits of its digest.
func versionName(v *routerv1.Version) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%s@%.12s", v.GetModel(), strings.TrimPrefix(v.GetDigest(), "sha256:"))
}

type undeployCmd struct {
	adapterRouterFlags
	Name string `arg:"" help:"Name of the deployment, or of a model that is served without one."`
}

// Run takes a name out of service.
func (c *undeployCmd) Run(e *verb.Env) error {
	return c.call(e, askTimeout, func(ctx context.Context, r routerv1.RouterServiceClient) error {
		resp, err := r.Undeploy(ctx, &routerv1.UndeployRequest{Name: c.Name})
		if err != nil {
			return rpc.FromStatus(err)
		}
		if c.Format == "json" {
			return printProto(e, resp)
		}
		fmt.Fprintf(e.Stdout, "%s takes no more requests; versions that end theirs: %d\n", c.Name,
			len(resp.GetDeployment().GetRetiring()))
		return nil
	})
}
