package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// askTimeout is the deadline of calls that a person waits for.
const askTimeout = 10 * time.Second

type modelsCmd struct {
	connectFlags
	Router string `help:"Address of a router, to list the models that it serves."                         env:"LAMINA_ROUTER"`
	Local  bool   `help:"List the models of the store, also if LAMINA_ROUTER is set."`
	Verify bool   `help:"Read the files of the store and compare them with their digests."`
	Format string `help:"Output: text or json."  default:"text"                               enum:"text,json"`
}

// Run lists the models of the store, or those that a router serves.
func (c *modelsCmd) Run(e *verb.Env) error {
	if c.Router == "" || c.Local {
		return c.stored(e)
	}
	var resp *routerv1.ListModelsResponse
	err := c.connect(e, c.Router, askTimeout, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		resp, err = routerv1.NewRouterServiceClient(conn).ListModels(ctx, &routerv1.ListModelsRequest{})
		return err
	})
	if err != nil {
		return err
	}
	if c.Format == "json" {
		return printProto(e, resp)
	}
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MODEL\tARCHITECTURE\tLAYERS\tCONTEXT\tVOCAB\tCHAT\tPIPELINES\tDIGEST")
	for _, m := range resp.GetModels() {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%v\t%d\t%.19s\n", m.GetName(), m.GetArchitecture(), m.GetLayers(),
			m.GetContext(), m.GetVocab(), m.GetChat(), m.GetPipelines(), m.GetDigest())
		for _, a := range m.GetAdapters() {
			fmt.Fprintf(w, "%s:%s\t%s\t%d\t%d\t%d\t%v\t%d\t%.19s\n", m.GetName(), a.GetName(), m.GetArchitecture(),
				m.GetLayers(), m.GetContext(), m.GetVocab(), m.GetChat(), a.GetPipelines(), a.GetDigest())
		}
	}
	return w.Flush()
}

type statusCmd struct {
	connectFlags
	Router  string `help:"Address of the router."                                       default:"127.0.0.1:7070" env:"LAMINA_ROUTER"`
	Trainer string `help:"Address of the trainer. Default: the router is asked for it."                          env:"LAMINA_TRAINER"`
	Format  string `help:"Output: text or json."                                        default:"text"                                enum:"text,json"`
}

// Run shows the services, the pipelines and the training runs.
func (c *statusCmd) Run(e *verb.Env) error {
	var mesh *routerv1.Mesh
	err := c.connect(e, c.Router, askTimeout, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := routerv1.NewRouterServiceClient(conn).Topology(ctx, &routerv1.TopologyRequest{})
		mesh = resp.GetMesh()
		return err
	})
	runs := &trainerv1.ListRunsResponse{}
	if address := c.trainer(mesh); err == nil && address != "" {
		err = c.connect(e, address, askTimeout, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
			runs, err = trainerv1.NewTrainerServiceClient(conn).ListRuns(ctx, &trainerv1.ListRunsRequest{})
			return err
		})
	}
	if err != nil {
		return err
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, map[string]json.RawMessage{"mesh": rawProto(mesh), "runs": rawProto(runs)})
	}
	return printStatus(e.Stdout, mesh, runs.GetRuns())
}

// trainer returns the address of the trainer, or an empty string if there is none.
func (c *statusCmd) trainer(mesh *routerv1.Mesh) string {
	if c.Trainer != "" {
		return c.Trainer
	}
	for _, m := range mesh.GetMembers() {
		if m.GetService() != "trainer" {
			continue
		}
		if strings.HasPrefix(m.GetAddress(), "mem:") {
			return c.Router // a mesh in one process serves all APIs on one public address
		}
		return m.GetAddress()
	}
	return ""
}

func printStatus(out io.Writer, mesh *routerv1.Mesh, runs []*trainerv1.Run) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERVICE\tADDRESS\tHOLDS\tKV PAGES\tSESSIONS")
	for _, m := range mesh.GetMembers() {
		if len(m.GetHeld()) == 0 {
			fmt.Fprintf(w, "%s\t%s\t\t\t\n", m.GetService(), m.GetAddress())
		}
		for _, h := range m.GetHeld() {
			fmt.Fprintf(w, "%s\t%s\t%s layers %d-%d of %d\t%d/%d\t%d\n", m.GetService(), m.GetAddress(),
				h.GetModel(), h.GetLo(), h.GetHi(), h.GetLayers(), h.GetKvPagesUsed(), h.GetKvPages(), h.GetSessions())
		}
	}
	fmt.Fprintln(
		w,
		"\nPIPELINE\tMODEL\tSTAGES\tRUNNING\tWAITING\tTOKENS/S\tSTEP MS (P99)\tBUBBLE\tKV PAGES\tCACHED\tHITS",
	)
	for _, p := range mesh.GetPipelines() {
		var stages []string
		for _, hop := range p.GetStages() {
			stages = append(stages, fmt.Sprintf("%d-%d@%s", hop.GetLo(), hop.GetHi(), hop.GetAddress()))
		}
		fmt.Fprintf(
			w,
			"%.8s\t%s\t%s\t%d\t%d\t%.1f\t%.1f (%.1f)\t%.0f %%\t%d/%d\t%d\t%.0f %%\n",
			p.GetId(),
			p.GetModel(),
			strings.Join(stages, " > "),
			p.GetRunning(),
			p.GetWaiting(),
			p.GetTokensPerSecond(),
			p.GetStepMs(),
			p.GetSlowStepMs(),
			100*p.GetBubble(),
			p.GetKvPagesHeld(),
			p.GetKvPages(),
			p.GetKvPagesCached(),
			100*float64(p.GetPrefixHits())/float64(max(1, p.GetPrefixQueries())),
		)
	}
	printPlacement(w, mesh)
	if len(mesh.GetDeployments()) > 0 {
		fmt.Fprintln(w)
		listDeployments(w, mesh.GetDeployments())
	}
	if len(mesh.GetAdapters()) > 0 {
		fmt.Fprintln(w)
		listAdapters(w, mesh.GetAdapters())
	}
	if b := mesh.GetReplays(); b != nil {
		fmt.Fprintln(w, "\nREPLAYED TOKENS\tMORE ALLOWED NOW\tBURST\tSHARE OF WORK\tWAITING\tOVER BUDGET")
		fmt.Fprintf(w, "%d\t%d\t%d\t%.0f %%\t%d\t%d\n", b.GetSpent(), b.GetAvailable(), b.GetBurst(), 100*b.GetShare(),
			b.GetWaiting(), b.GetRefused())
	}
	if len(runs) > 0 {
		fmt.Fprintln(w, "\nRUN\tSTATE\tSTEP\tLOSS\tVALIDATION\tTOKENS/S")
	}
	for _, r := range runs {
		state := strings.ToLower(strings.TrimPrefix(r.GetState().String(), "RUN_STATE_"))
		fmt.Fprintf(w, "%s\t%s\t%d/%d\t%.4f\t%.4f\t%.0f\n", r.GetName(), state, r.GetStep(), r.GetSteps(), r.GetLoss(),
			r.GetValidationLoss(), r.GetTokensPerSecond())
	}
	return w.Flush()
}

type healthCmd struct {
	connectFlags
	Address string `arg:"" optional:"" help:"Address of the service."`
	FromEnv bool   `                   help:"Read the address from the environment variable LAMINA_HEALTH, as container health checks do."`
	Env     string `                                                                                                                       hidden:"" env:"LAMINA_HEALTH"`
}

// Run calls the health service (grpc.health.v1) and returns an error unless the status is SERVING.
func (c *healthCmd) Run(e *verb.Env) error {
	if c.FromEnv {
		c.Address = c.Env
	}
	if c.Address == "" {
		return fault.Field("address", "give the address of a service")
	}
	var resp *healthv1.HealthCheckResponse
	err := c.connect(e, c.Address, 3*time.Second, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		resp, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		return err
	})
	if err != nil {
		return err
	}
	if resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return fault.New(fault.Unavailable, "check %s: it is %v", c.Address, resp.GetStatus())
	}
	fmt.Fprintln(e.Stdout, "serving")
	return nil
}

func rawProto(m proto.Message) json.RawMessage {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return json.RawMessage(fmt.Sprintf("%q", err.Error()))
	}
	return text
}

func printProto(e *verb.Env, m proto.Message) error {
	return verb.PrintJSON(e, rawProto(m))
}
