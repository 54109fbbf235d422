package trainer

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// Publish makes the routers of the mesh offer the adapter of a run as soon as the run is done. Requests that run keep
// the adapter that the name had before.
type Publish struct {
	// Name is the adapter's name on the routers; the run's name when absent.
	Name string `json:"name,omitempty"`
	// Model is the name or digest of the model that it is offered for; the one that it was trained on when absent.
	Model string `json:"model,omitempty"`
	// Router is the address of the only router that offers it; every router of the mesh when absent. A trainer of a
	// mesh sends to its own routers alone. Without a trainer service, the command that runs the manifest sends to any.
	Router string `json:"router,omitempty"`
	// AnyBase accepts that Model is another base, such as the same weights in another element type.
	AnyBase bool `json:"any_base,omitempty"`
}

const (
	maxAddress   = 256              // bytes of a router's address
	publishTime  = 10 * time.Minute // for all routers, which are sent to at once
	publishAgain = time.Second      // before the second try at a router; doubled after each
	publishLimit = 30 * time.Second // between two tries at most
)

// checkPublish checks the section.
func (m *Manifest) checkPublish() error {
	if m.Publish == nil {
		return nil
	}
	if m.Adapter == nil {
		return fault.Field("publish", "is for runs that train an adapter")
	}
	if adapter.CheckName(cmp.Or(m.Publish.Name, m.Name)) != nil {
		return fault.Field("publish.name", "want 1 to 64 letters, digits and -_., got %.80q",
			cmp.Or(m.Publish.Name, m.Name))
	}
	if n := len(m.Publish.Router); n > maxAddress {
		return fault.Field("publish.router", "an address of %d bytes, want at most %d", n, maxAddress)
	}
	return nil
}

// publish sends the adapter of a run that has made all of its steps to every router, if the manifest says so. What has
// become of that is in the state of the run. It returns an error only if ctx has ended, so that a trainer that goes on
// with the run publishes again.
func (r *run) publish(ctx context.Context) error {
	p := r.manifest.Publish
	if p == nil || r.service.cfg.Transient { // such a trainer knows no routers
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, publishTime)
	ended := make(chan struct{})
	go func() { // a run that is stopped does not wait for routers
		defer close(ended)
		select {
		case <-r.stop:
			cancel()
		case <-limited.Done():
		}
	}()
	defer func() { cancel(); <-ended }()
	addrs, err := r.service.routers(limited)
	if p.Router != "" {
		if err == nil && !slices.Contains(addrs, p.Router) {
			err = fault.Field("publish.router", "no router of this mesh has the address %s", p.Router)
		}
		addrs = []string{p.Router}
	}
	if err != nil && len(addrs) == 0 {
		addrs = []string{""}
	}
	published := make([]*trainerv1.Published, len(addrs))
	var work sync.WaitGroup // a router that cannot be reached takes no time from the others
	for i, addr := range addrs {
		work.Go(func() {
			done := &trainerv1.Published{Router: addr, Name: cmp.Or(p.Name, r.name)}
			failure := err
			if failure == nil {
				failure = r.publishAt(limited, addr, done)
			}
			if failure != nil {
				done.Error = failure.Error()
				r.service.log.Warn("publish the adapter of a run", "run", r.name, "router", addr, "error", failure)
			}
			published[i] = done
		})
	}
	work.Wait()
	r.update(func(s *trainerv1.Run) { s.Published = published })
	return ctx.Err()
}

// routers lists the addresses of the routers. It waits for the first one.
func (s *Service) routers(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, shardsWait)
	defer cancel()
	ch, err := s.cfg.Registry.Watch(ctx, "router")
	if err != nil {
		return nil, err
	}
	for state := range ch {
		if len(state) == 0 {
			continue
		}
		var out []string
		for _, i := range state {
			out = append(out, i.Addr)
		}
		slices.Sort(out)
		return slices.Compact(out), nil
	}
	return nil, fault.New(fault.Unavailable, "find routers: none within %v", shardsWait)
}

// publishAt sends the adapter to a router, again and again while the router cannot load it yet.
func (r *run) publishAt(ctx context.Context, addr string, done *trainerv1.Published) error {
	for tries := 0; ; tries++ {
		err := r.sendAdapter(ctx, addr, done)
		if err == nil || ctx.Err() != nil || !temporary(err) {
			return err
		}
		r.service.log.Debug("publish again", "run", r.name, "router", addr, "error", err)
		select {
		case <-time.After(min(publishAgain<<min(tries, 10), publishLimit)):
		case <-ctx.Done():
			return err
		}
	}
}

// temporary reports whether a router may take the adapter later.
func temporary(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.DeadlineExceeded, fault.Aborted:
		return true
	}
	return false
}

// sendAdapter sends the adapter of the run to a router and returns when every pipeline of the model has loaded it.
func (r *run) sendAdapter(ctx context.Context, addr string, done *trainerv1.Published) error {
	p, dir := r.manifest.Publish, filepath.Join(r.dir, adapterDir)
	values, err := adapter.Open(dir)
	if err != nil {
		return err
	}
	conn, err := r.service.cfg.Dialer.Dial(addr)
	if err != nil {
		return err
	}
	resp, err := loadAdapter(ctx, routerv1.NewRouterServiceClient(conn), &routerv1.LoadAdapterOpen{
		Model: cmp.Or(p.Model, values.BaseDigest), Name: done.GetName(), AnyBase: p.AnyBase,
	}, dir)
	if err != nil {
		return err
	}
	done.Model, done.Digest, done.Replaced = resp.GetAdapter().GetModel(), resp.GetAdapter().GetDigest(),
		resp.GetReplaced()
	r.service.log.Info("publish the adapter of a run", "run", r.name, "router", addr, "model", done.GetModel(),
		"name", done.GetName(), "digest", done.GetDigest(), "replaced", done.GetReplaced())
	return nil
}

// loadAdapter sends the files of an adapter to a router, which loads it. It sets the config and the size of open.
func loadAdapter(ctx context.Context, client routerv1.RouterServiceClient, open *routerv1.LoadAdapterOpen, dir string) (
	_ *routerv1.LoadAdapterResponse, err error) {
	if open.Config, err = os.ReadFile(filepath.Join(dir, adapter.ConfigFile)); err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(dir, adapter.WeightsFile))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	open.Size = uint64(info.Size())
	ctx, cancel := context.WithCancel(ctx) // a stream that is left early ends with it
	defer cancel()
	stream, err := client.LoadAdapter(ctx)
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	err = stream.Send(&routerv1.LoadAdapterRequest{Frame: &routerv1.LoadAdapterRequest_Open{Open: open}})
	for err == nil {
		piece := make([]byte, wire.ChunkSize)
		n, readErr := io.ReadFull(file, piece)
		if n > 0 {
			err = stream.Send(&routerv1.LoadAdapterRequest{
				Frame: &routerv1.LoadAdapterRequest_Data{Data: piece[:n]},
			})
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		}
		if readErr != nil {
			return nil, readErr
		}
	}
	resp, err := stream.CloseAndRecv() // it has the reason if a Send has failed
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	return resp, nil
}
