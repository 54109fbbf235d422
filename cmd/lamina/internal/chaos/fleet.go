package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/internal/agent"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// readyLimit is how long a fleet may take until all its pipelines are open.
const readyLimit = 3 * time.Minute

// fleet is the processes of a run.
type fleet struct {
	spec      FleetSpec
	registry  *agent.Agent
	journal   *nats.Embedded // of several routers; nil for one
	processes map[string]*process
	dialer    *rpc.Dialer
}

// newFleet prepares the members. Those that proxied names get a proxy in front of them.
func newFleet(spec FleetSpec, binary, model, dir string, proxied map[string]bool) (*fleet, error) {
	a, err := agent.New()
	if err != nil {
		return nil, err
	}
	f := &fleet{spec: spec, registry: a, processes: map[string]*process{},
		dialer: rpc.NewDialer(rpc.DialOptions{})}
	if spec.Routers > 1 {
		if f.journal, err = nats.NewLoopback(""); err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	for _, name := range spec.names() {
		if name == registry {
			continue
		}
		service, rest, _ := strings.Cut(name, "-")
		p := &process{name: name, service: service, binary: binary, log: logFile(dir, name),
			args: []string{"--consul=" + a.Addr()}}
		switch service {
		case tokenizer:
			p.args = append(p.args, "--model="+model)
		case router:
			if f.journal != nil {
				p.args = append(p.args, "--nats="+f.journal.URL())
			}
		case shard:
			_, stage, _ := strings.Cut(rest, "-")
			p.args = append(p.args, "--model="+model, fmt.Sprintf("--layers=%s/%d", stage, spec.Stages),
				fmt.Sprintf("--kv-positions=%d", spec.KVPositions), fmt.Sprintf("--threads=%d", spec.Threads))
		}
		p.args = append(p.args, spec.Args[service]...)
		if proxied[name] {
			if p.proxy, err = newProxy(); err != nil {
				return nil, errors.Join(err, f.close())
			}
		}
		f.processes[name] = p
	}
	return f, nil
}

// start starts all members and waits until every router has all pipelines open.
func (f *fleet) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	if err := f.registry.Start(); err != nil {
		return err
	}
	group, starting := errgroup.WithContext(ctx)
	for _, p := range f.processes {
		group.Go(func() error { return p.start(starting) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i := range f.spec.Routers {
		if err := f.awaitRouter(ctx, f.processes[member(router, i)]); err != nil {
			return err
		}
	}
	return nil
}

// awaitRouter waits until a router is ready and has one pipeline for each replica.
func (f *fleet) awaitRouter(ctx context.Context, p *process) error {
	conn, err := f.dialer.Dial(p.address("grpc"))
	if err != nil {
		return err
	}
	client := routerv1.NewRouterServiceClient(conn)
	for {
		asked, cancel := context.WithTimeout(ctx, 5*time.Second)
		resp, err := client.Topology(asked, &routerv1.TopologyRequest{})
		cancel()
		n := len(resp.GetMesh().GetPipelines())
		if err == nil && n >= f.spec.Replicas {
			return f.awaitReady(ctx, p)
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return fault.Wrap(fault.DeadlineExceeded, errors.Join(err, ctx.Err()),
				"wait for %s: it has %d of %d pipelines: %s",
				p.name, n, f.spec.Replicas, p.lastLine())
		}
	}
}

// awaitReady waits until the HTTP API of a router is ready.
func (f *fleet) awaitReady(ctx context.Context, p *process) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		resp, err := client.Get("http://" + p.address("http") + "/readyz")
		if err == nil {
			_ = resp.Body.Close() // only its status counts
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return fault.Wrap(fault.DeadlineExceeded, errors.Join(err, ctx.Err()), "wait for %s to be ready", p.name)
		}
	}
}

// restored waits until a member that was started again is registered, so that the next one may go.
func (f *fleet) restored(ctx context.Context, p *process) error {
	if p.service == router {
		return f.awaitRouter(ctx, p)
	}
	addr := p.address("grpc")
	if p.proxy != nil {
		addr = p.proxy.addr()
	}
	for !slices.Contains(f.registry.Names()[p.service], addr) {
		if !sleep(ctx, 50*time.Millisecond) {
			return fault.Wrap(fault.DeadlineExceeded, ctx.Err(), "wait for %s to register", p.name)
		}
	}
	if p.service != shard {
		return nil
	}
	for i := range f.spec.Routers {
		if err := f.awaitRouter(ctx, f.processes[member(router, i)]); err != nil {
			return err
		}
	}
	return nil
}

// urls returns the base URLs of the routers.
func (f *fleet) urls() []string {
	var out []string
	for i := range f.spec.Routers {
		out = append(out, "http://"+f.processes[member(router, i)].address("http"))
	}
	return out
}

// pids lists the members with their process ids, in the order of their names.
func (f *fleet) pids() string {
	var parts []string
	for _, name := range f.spec.names() {
		if p := f.processes[name]; p != nil {
			parts = append(parts, fmt.Sprintf("%s (%d)", name, p.pid()))
		}
	}
	return strings.Join(parts, ", ")
}

// crashes returns the exits that nothing in the run asked for.
func (f *fleet) crashes() []string {
	var out []string
	for _, name := range f.spec.names() {
		if p := f.processes[name]; p != nil {
			out = append(out, p.crashed()...)
		}
	}
	return out
}

// close stops all members, routers first.
func (f *fleet) close() error {
	var mu sync.Mutex
	var errs []error
	stop := func(match func(service string) bool) {
		var wg sync.WaitGroup
		for _, p := range f.processes {
			if !match(p.service) {
				continue
			}
			wg.Go(func() {
				if p.proxy != nil { // open it, so that the member can end its connections
					p.proxy.change(func() { p.proxy.holdIn, p.proxy.holdOut, p.proxy.delay = false, false, 0 })
				}
				if _, err := p.stop(); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	stop(func(s string) bool { return s == router })
	stop(func(s string) bool { return s != router })
	for _, p := range f.processes {
		if p.proxy != nil {
			p.proxy.close()
		}
	}
	if f.journal != nil {
		errs = append(errs, f.journal.Close())
	}
	return errors.Join(append(errs, f.registry.Close(), f.dialer.Close())...)
}

// newDir returns a folder for logs. Without a name it is a new temporary one.
func newDir(name string) (string, error) {
	if name == "" {
		dir, err := os.MkdirTemp("", "lamina-chaos-")
		if err != nil {
			return "", fault.Wrap(fault.Unavailable, err, "make a folder for logs")
		}
		return dir, nil
	}
	if err := os.MkdirAll(name, 0o755); err != nil {
		return "", fault.Wrap(fault.Invalid, err, "make a folder for logs")
	}
	return name, nil
}
