package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// adaptersGroup are the commands for the adapters of a router.
type adaptersGroup struct {
	List     adaptersListCmd     `cmd:"" help:"List the adapters."`
	Load     adaptersLoadCmd     `cmd:"" help:"Send an adapter to the router, or let a name point to another adapter. Requests that run keep theirs."`
	Publish  adaptersPublishCmd  `cmd:"" help:"Send the adapter of a training run to the router, when the run is done."`
	Rollback adaptersRollbackCmd `cmd:"" help:"Let a name point to the adapter that it had before."`
	Unload   adaptersUnloadCmd   `cmd:"" help:"Remove an adapter's name. Its memory is freed when the last request with it has ended."`
}

// adapterRouterFlags name the router.
type adapterRouterFlags struct {
	connectFlags
	Router string `help:"Address of the router." default:"127.0.0.1:7070" env:"LAMINA_ROUTER"`
	Format string `help:"Output: text or json."  default:"text"                               enum:"text,json"`
}

// call runs body with a client of the router.
func (f *adapterRouterFlags) call(
	e *verb.Env, limit time.Duration, body func(context.Context, routerv1.RouterServiceClient) error,
) error {
	return f.connect(e, f.Router, limit, func(ctx context.Context, conn *grpc.ClientConn) error {
		return body(ctx, routerv1.NewRouterServiceClient(conn))
	})
}

type adaptersListCmd struct{ adapterRouterFlags }

// Run lists the adapters.
func (c *adaptersListCmd) Run(e *verb.Env) error {
	return c.call(e, askTimeout, func(ctx context.Context, r routerv1.RouterServiceClient) error {
		resp, err := r.ListAdapters(ctx, &routerv1.ListAdaptersRequest{})
		if err != nil {
			return rpc.FromStatus(err)
		}
		if c.Format == "json" {
			return printProto(e, resp)
		}
		w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
		listAdapters(w, resp.GetAdapters())
		return w.Flush()
	})
}

// listAdapters writes a table of adapters.
func listAdapters(w io.Writer, list []*routerv1.Adapter) {
	fmt.Fprintln(w, "ADAPTER\tRANK\tMODULES\tBYTES\tREQUESTS\tPIPELINES\tLOADED\tBASE\tDIGEST\tEARLIER\tERROR")
	for _, a := range list {
		var earlier []string
		for _, d := range a.GetEarlier() {
			earlier = append(earlier, fmt.Sprintf("%.13s", strings.TrimPrefix(d, "sha256:")))
		}
		base := "another"
		switch a.GetBase() {
		case a.GetModelDigest():
			base = "this"
		case "":
			base = "not recorded"
		}
		fmt.Fprintf(w, "%s:%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%.20s\t%s\t%s\n", a.GetModel(), a.GetName(), a.GetRank(),
			a.GetModules(), a.GetBytes(), a.GetRequests(), a.GetPipelines(),
			time.UnixMilli(a.GetLoadedMs()).Format(time.DateTime), base, a.GetDigest(), strings.Join(earlier, " "),
			a.GetError())
	}
}

type adaptersLoadCmd struct {
	adapterRouterFlags
	AnyBase bool   `help:"Accept an adapter that was trained on another base, such as the same weights in another element type."`
	Source  string `arg:"" name:"adapter" help:"NAME=DIR or MODEL:NAME=DIR with a folder in PEFT's layout. To roll back: NAME=previous, or NAME=DIGEST for any earlier digest of the name (its first digits will do)."`
}

// loadLimit is how long loading an adapter may take.
const loadLimit = 10 * time.Minute

// Run sends an adapter, or the digest of one that the router has.
func (c *adaptersLoadCmd) Run(e *verb.Env) error {
	a, err := app.ParseAdapter(c.Source)
	if err != nil {
		return err
	}
	open := &routerv1.LoadAdapterOpen{Model: a.Model, Name: a.Name, AnyBase: c.AnyBase}
	if adapter.Is(a.Dir) {
		return c.send(e, open, a.Dir)
	}
	if a.Dir != "previous" && strings.Trim(strings.TrimPrefix(a.Dir, "sha256:"), "0123456789abcdef") != "" {
		return fault.New(fault.NotFound, "load adapter: %s has no %s, and is no digest", a.Dir, adapter.ConfigFile)
	}
	open.Digest = a.Dir
	return c.send(e, open, "")
}

// send sends the adapter in a folder to the router, or for an empty dir the digest that open has, and says what the
// router has made of it.
func (f *adapterRouterFlags) send(e *verb.Env, open *routerv1.LoadAdapterOpen, dir string) error {
	loaded, err := f.load(e, open, dir)
	if err != nil {
		return err
	}
	return f.print(e, loaded)
}

// load is send without output.
func (f *adapterRouterFlags) load(
	e *verb.Env, open *routerv1.LoadAdapterOpen, dir string,
) (loaded *routerv1.LoadAdapterResponse, err error) {
	var content io.Reader // nil for an adapter that the router has
	if dir != "" {
		if open.Config, err = os.ReadFile(filepath.Join(dir, adapter.ConfigFile)); err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "read adapter")
		}
		file, err := os.Open(filepath.Join(dir, adapter.WeightsFile))
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "read adapter")
		}
		defer file.Close()
		content = file
		info, err := file.Stat()
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "read adapter")
		}
		open.Size = uint64(info.Size())
	}
	err = f.call(e, loadLimit, func(ctx context.Context, r routerv1.RouterServiceClient) (err error) {
		loaded, err = sendAdapter(ctx, r, open, content)
		return err
	})
	return loaded, err
}

// print says what the router offers now.
func (f *adapterRouterFlags) print(e *verb.Env, loaded *routerv1.LoadAdapterResponse) error {
	if f.Format == "json" {
		return printProto(e, loaded)
	}
	printLoaded(e, loaded)
	return nil
}

func printLoaded(e *verb.Env, loaded *routerv1.LoadAdapterResponse) {
	now := loaded.GetAdapter()
	fmt.Fprintf(e.Stdout, "%s:%s is %s", now.GetModel(), now.GetName(), now.GetDigest())
	if loaded.GetReplaced() != "" {
		fmt.Fprintf(e.Stdout, ", it was %.20s (lamina adapters rollback %s goes back)", loaded.GetReplaced(),
			now.GetName())
	}
	fmt.Fprintln(e.Stdout)
}

type adaptersRollbackCmd struct {
	adapterRouterFlags
	Name string `arg:"" help:"NAME or MODEL:NAME."`
}

// Run points a name to the adapter that it had before.
func (c *adaptersRollbackCmd) Run(e *verb.Env) error {
	open := &routerv1.LoadAdapterOpen{Digest: "previous"}
	open.Model, open.Name = splitAdapter(c.Name)
	return c.send(e, open, "")
}

// splitAdapter reads NAME or MODEL:NAME.
func splitAdapter(text string) (model, name string) {
	if at := strings.LastIndexByte(text, ':'); at >= 0 {
		return text[:at], text[at+1:]
	}
	return "", text
}

// sendAdapter sends the frames of LoadAdapter. content is the file of the tensors, or nil.
func sendAdapter(
	ctx context.Context, r routerv1.RouterServiceClient, open *routerv1.LoadAdapterOpen, content io.Reader,
) (*routerv1.LoadAdapterResponse, error) {
	stream, err := r.LoadAdapter(ctx)
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	err = stream.Send(&routerv1.LoadAdapterRequest{Frame: &routerv1.LoadAdapterRequest_Open{Open: open}})
	for err == nil && content != nil {
		piece := make([]byte, wire.ChunkSize)
		n, readErr := io.ReadFull(content, piece)
		if n > 0 {
			frame := &routerv1.LoadAdapterRequest_Data{Data: piece[:n]}
			err = stream.Send(&routerv1.LoadAdapterRequest{Frame: frame})
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		}
		if readErr != nil {
			return nil, fault.Wrap(fault.DataLoss, readErr, "read adapter")
		}
	}
	resp, err := stream.CloseAndRecv() // it has the reason if a Send has failed
	return resp, rpc.FromStatus(err)
}

type adaptersUnloadCmd struct {
	adapterRouterFlags
	Name string `arg:"" help:"NAME or MODEL:NAME."`
}

// Run removes a name.
func (c *adaptersUnloadCmd) Run(e *verb.Env) error {
	req := &routerv1.UnloadAdapterRequest{}
	req.Model, req.Name = splitAdapter(c.Name)
	return c.call(e, askTimeout, func(ctx context.Context, r routerv1.RouterServiceClient) error {
		resp, err := r.UnloadAdapter(ctx, req)
		if err != nil {
			return rpc.FromStatus(err)
		}
		if c.Format == "json" {
			return printProto(e, resp)
		}
		if n := resp.GetRequests(); n > 0 {
			fmt.Fprintf(e.Stdout, "in use by %s\n", plural.Of(n, "request"))
		}
		return nil
	})
}
