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

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// adaptersGroup are the commands for the adapters of a router.
type adaptersGroup struct {
	List   adaptersListCmd   `cmd:"" help:"List the adapters."`
	Load   adaptersLoadCmd   `cmd:"" help:"Send an adapter to the router, or let a name point to another adapter. Requests that run keep theirs."`
	Unload adaptersUnloadCmd `cmd:"" help:"Remove an adapter's name. Its memory is freed when the last request with it has ended."`
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
) (err error) {
	dialer, err := f.dialer()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dialer.Close()) }()
	conn, err := dialer.Dial(f.Router)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.Ctx, limit)
	defer cancel()
	return body(ctx, routerv1.NewRouterServiceClient(conn))
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
		fmt.Fprintln(w, "ADAPTER\tMODEL\tRANK\tMODULES\tBYTES\tREQUESTS\tPIPELINES\tLOADED\tDIGEST\tEARLIER")
		for _, a := range resp.GetAdapters() {
			var earlier []string
			for _, d := range a.GetEarlier() {
				earlier = append(earlier, fmt.Sprintf("%.19s", d))
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%.19s\t%s\n", a.GetName(), a.GetModel(), a.GetRank(),
				a.GetModules(), a.GetBytes(), a.GetRequests(), a.GetPipelines(),
				time.UnixMilli(a.GetLoadedMs()).Format(time.DateTime), a.GetDigest(), strings.Join(earlier, " "))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, a := range resp.GetAdapters() {
			if a.GetError() != "" {
				fmt.Fprintf(e.Stdout, "%s: %s\n", a.GetName(), a.GetError())
			}
		}
		return nil
	})
}

type adaptersLoadCmd struct {
	adapterRouterFlags
	Source string `arg:"" name:"adapter" help:"NAME=DIR or MODEL:NAME=DIR with a folder in PEFT's layout. To roll back: NAME=previous, or NAME=DIGEST for any earlier digest of the name (its first digits will do)."`
}

// loadLimit is how long loading an adapter may take.
const loadLimit = 10 * time.Minute

// Run sends an adapter, or the digest of one that the router has.
func (c *adaptersLoadCmd) Run(e *verb.Env) error {
	a, err := app.ParseAdapter(c.Source)
	if err != nil {
		return err
	}
	open := &routerv1.LoadAdapterOpen{Model: a.Model, Name: a.Name, Digest: a.Dir}
	var content io.Reader // nil for an adapter that the router has
	if adapter.Is(a.Dir) {
		open.Digest = ""
		if open.Config, err = os.ReadFile(filepath.Join(a.Dir, adapter.ConfigFile)); err != nil {
			return fault.Wrap(fault.NotFound, err, "read adapter")
		}
		file, err := os.Open(filepath.Join(a.Dir, adapter.WeightsFile))
		if err != nil {
			return fault.Wrap(fault.NotFound, err, "read adapter")
		}
		defer file.Close()
		content = file
		info, err := file.Stat()
		if err != nil {
			return fault.Wrap(fault.NotFound, err, "read adapter")
		}
		open.Size = uint64(info.Size())
	} else if a.Dir != "previous" && strings.Trim(strings.TrimPrefix(a.Dir, "sha256:"), "0123456789abcdef") != "" {
		return fault.New(fault.NotFound, "load adapter: %s has no %s, and is no digest", a.Dir, adapter.ConfigFile)
	}
	return c.call(e, loadLimit, func(ctx context.Context, r routerv1.RouterServiceClient) error {
		resp, err := sendAdapter(ctx, r, open, content)
		if err != nil {
			return err
		}
		if c.Format == "json" {
			return printProto(e, resp)
		}
		now := resp.GetAdapter()
		fmt.Fprintf(e.Stdout, "%s:%s is %s", now.GetModel(), now.GetName(), now.GetDigest())
		if resp.GetReplaced() != "" {
			fmt.Fprintf(e.Stdout, ", it was %.19s (lamina adapters load %s=previous goes back)", resp.GetReplaced(),
				now.GetName())
		}
		fmt.Fprintln(e.Stdout)
		return nil
	})
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
	req := &routerv1.UnloadAdapterRequest{Name: c.Name}
	if at := strings.LastIndexByte(c.Name, ':'); at >= 0 {
		req.Model, req.Name = c.Name[:at], c.Name[at+1:]
	}
	return c.call(e, askTimeout, func(ctx context.Context, r routerv1.RouterServiceClient) error {
		resp, err := r.UnloadAdapter(ctx, req)
		if err != nil {
			return rpc.FromStatus(err)
		}
		if c.Format == "json" {
			return printProto(e, resp)
		}
		if n := resp.GetRequests(); n > 0 {
			fmt.Fprintf(e.Stdout, "%d requests still use it\n", n)
		}
		return nil
	})
}
