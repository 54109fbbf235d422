package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/doctor"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// natsFloor is the first release of the NATS server without known holes (docs/SECURITY.md).
const natsFloor = "2.14.1"

type doctorCmd struct {
	Port        []string      `help:"Address that a listener of this machine is to have. Can be repeated." default:"127.0.0.1:7070,127.0.0.1:8080"`
	Model       string        `help:"Model that is to be served: GGUF file, folder, or name of a model of the store." short:"m"`
	Consul      string        `help:"Address of the Consul agent. Default: 127.0.0.1:8500, which may be missing." env:"LAMINA_CONSUL_ADDR"`
	ConsulToken string        `help:"Token for Consul." env:"LAMINA_CONSUL_TOKEN"`
	NATS        string        `help:"Address of the NATS server. Default: nats://127.0.0.1:4222, which may be missing." name:"nats" env:"LAMINA_NATS"`
	TLSCert     string        `help:"Certificate of a service (PEM file)." name:"tls-cert"`
	TLSKey      string        `help:"Private key of the certificate (PEM file)." name:"tls-key"`
	TLSCA       string        `help:"Certificate authority (PEM file)." name:"tls-ca"`
	Runs        string        `help:"Folder of training runs." default:"runs"`
	Limit       time.Duration `help:"How long a check may take." default:"3s"`
	Format      string        `help:"Output: text or json." enum:"text,json" default:"text"`
	natsFlags
}

// Run prints what the checks find, and fails if one fails.
func (c *doctorCmd) Run(e *verb.Env) error {
	if c.Limit <= 0 || c.Limit > time.Hour {
		return fault.Field("limit", "want more than 0 and at most 1h, got %v", c.Limit)
	}
	worst, err := doctor.Run(e.Ctx, c.Limit, c.checks(e), func(f doctor.Finding) error {
		if c.Format == "json" {
			return verb.PrintJSON(e, f)
		}
		return doctor.Print(e.Stdout, f)
	})
	if err == nil && worst == doctor.Fail {
		err = fault.New(fault.FailedPrecondition, "a check has failed: the lines that begin with > say what to do")
	}
	return err
}

func (c *doctorCmd) checks(e *verb.Env) []doctor.Check {
	bytes, modelErr := c.weights(e)
	consulAddr, natsAddr := orDefault(c.Consul, "127.0.0.1:8500"), orDefault(c.NATS, "nats://127.0.0.1:4222")
	return []doctor.Check{
		{Name: "version", Run: func(context.Context) []doctor.Finding {
			v := buildVersion()
			detail := fmt.Sprintf("lamina %s, %s, %s", v.Version, v.Go, v.Platform)
			return []doctor.Finding{{Status: doctor.OK, Detail: detail}}
		}},
		doctor.Processor(cpu.Instructions()),
		doctor.Model(c.Model, modelErr),
		doctor.Memory(app.MachineMemory(), bytes),
		doctor.Files(openFiles()),
		doctor.Folder("runs", c.Runs),
		doctor.Ports(c.Port...),
		doctor.Certificates(c.TLSCert, c.TLSKey, c.TLSCA, time.Now()),
		doctor.Server("consul", consulAddr, consul.Floor, c.Consul != "", consul.Older, func(ctx context.Context) (string, error) {
			r, err := consul.New(consul.Config{Addr: consulAddr, Token: c.ConsulToken})
			if err != nil {
				return "", err
			}
			defer r.Close()
			return r.Version(ctx)
		}),
		doctor.Server("nats", natsAddr, natsFloor, c.NATS != "", consul.Older,
			func(ctx context.Context) (string, error) { return natsVersion(ctx, c.config(natsAddr)) }),
		doctor.Clock(map[string]func(context.Context) (time.Time, error){
			"consul": func(ctx context.Context) (time.Time, error) {
				return dateOf(ctx, "http://"+consulAddr+"/v1/status/leader")
			},
		}),
	}
}

func orDefault(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// weights returns the bytes of the model's weights, or 0 without a model.
func (c *doctorCmd) weights(e *verb.Env) (int64, error) {
	if c.Model == "" {
		return 0, nil
	}
	path := c.Model
	lease, err := acquireModel(e, path)
	if err != nil {
		return 0, err
	}
	if lease != nil {
		defer lease.Close()
		path = lease.Path
	}
	files, err := model.Open(path)
	if err != nil {
		return 0, err
	}
	defer files.Close()
	z := files.Sizes()
	total := z.Embedding + z.Head
	for _, layer := range z.Layers {
		total += layer
	}
	return total, nil
}

// natsVersion returns the version of a NATS server.
func natsVersion(ctx context.Context, c nats.Config) (string, error) {
	conn, err := nats.Dial(c)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	status := conn.StatusChanged(natsgo.CONNECTED, natsgo.CLOSED)
	for !conn.IsConnected() {
		select {
		case <-status:
		case <-ctx.Done():
			if err := conn.LastError(); err != nil {
				return "", fault.Wrap(fault.Unavailable, err, "connect to nats")
			}
			return "", ctx.Err()
		}
		if conn.IsClosed() {
			return "", fault.Wrap(fault.Unavailable, conn.LastError(), "connect to nats")
		}
	}
	return conn.ConnectedServerVersion(), nil
}

// dateOf returns the time by the clock of an HTTP server.
func dateOf(ctx context.Context, url string) (time.Time, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return time.Time{}, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return time.Time{}, err
	}
	defer resp.Body.Close()
	return http.ParseTime(resp.Header.Get("Date"))
}
