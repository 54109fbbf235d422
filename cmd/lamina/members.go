package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/discovery"
)

// membersGroup are the commands for the entries of the registry.
type membersGroup struct {
	List membersListCmd `cmd:"" default:"withargs" help:"List the instances of all services that Consul knows, with those that fail their checks."`
	Rm   membersRmCmd   `cmd:"" help:"Remove an entry that a service has left behind."`
}

// consulFlags say how to reach Consul.
type consulFlags struct {
	Consul      string `help:"Address of the Consul agent." default:"127.0.0.1:8500" env:"LAMINA_CONSUL_ADDR"`
	ConsulToken string `help:"Token for Consul."                                     env:"LAMINA_CONSUL_TOKEN"`
}

type membersListCmd struct {
	consulFlags
	Format string `help:"Output: text or json." default:"text" enum:"text,json"`
}

// member is what --format json prints of an instance.
type member struct {
	ID      string            `json:"id"`
	Service string            `json:"service"`
	Address string            `json:"address"`
	Healthy bool              `json:"healthy"`
	Why     string            `json:"why,omitempty"` // it is not
	Meta    map[string]string `json:"meta,omitempty"`
}

// Run lists the members.
func (c *membersListCmd) Run(e *verb.Env) error {
	directory, closing, err := app.Directory(c.Consul, c.ConsulToken)
	if err != nil {
		return err
	}
	defer closing()
	ctx, cancel := context.WithTimeout(e.Ctx, askTimeout)
	defer cancel()
	members, err := directory.Members(ctx)
	if err != nil {
		return err
	}
	out := make([]member, 0, len(members))
	for _, m := range members {
		out = append(out, member{m.ID, m.Service, m.Addr, m.Healthy, m.Why, m.Meta})
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, out)
	}
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSERVICE\tADDRESS\tHEALTHY\tHOLDS")
	for _, m := range members {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.ID, m.Service, m.Addr, healthOf(m), m.Meta["layers"]+m.Meta["spans"])
	}
	return w.Flush()
}

func healthOf(m discovery.Member) string {
	if m.Healthy {
		return "yes"
	}
	why, _, _ := strings.Cut(m.Why, "\n")
	return "no: " + why
}

type membersRmCmd struct {
	consulFlags
	ID string `arg:"" help:"Id of the entry."`
}

// Run removes an entry.
func (c *membersRmCmd) Run(e *verb.Env) error {
	directory, closing, err := app.Directory(c.Consul, c.ConsulToken)
	if err != nil {
		return err
	}
	defer closing()
	ctx, cancel := context.WithTimeout(e.Ctx, askTimeout)
	defer cancel()
	if err := directory.Remove(ctx, c.ID); err != nil {
		return err
	}
	fmt.Fprintf(e.Stdout, "removed %s\n", c.ID)
	return nil
}
